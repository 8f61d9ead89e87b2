"""ResNet-8 on scikit-learn's digits, stages aligned by l2 in the place of OT."""

from .digits_resnet_ot import dataloader, lr_multiplier, model, optimizer, train

model.transport.loss = "l2"
train.output_dir = "./output/digits_resnet_l2"
