"""InterNet on the digit scenes, or data of one's own: configs/quickstart.py with units of 64 to 256 channels."""

from projects.InterNet.combine import with_internet

from ....configs.quickstart import dataloader, lr_multiplier, model, optimizer, train

model = with_internet(model)
train.output_dir = "./output/internet_quick"
