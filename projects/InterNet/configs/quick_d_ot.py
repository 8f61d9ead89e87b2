"""The detector of quick.py with large objects from source (d), OT."""

from .common.transport import transport
from .quick import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.intertwiner.update(large_source="d", transport=transport)
del transport
train.output_dir = "./output/internet_quick_d_ot"
