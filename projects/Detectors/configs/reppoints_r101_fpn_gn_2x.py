"""RepPoints, R-101-FPN, group norm in pyramid and towers, 2x."""

from .reppoints_r50_fpn_gn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.init_checkpoint = "resnet101-63fe2227.pth"  # torchvision's ResNet-101, IMAGENET1K_V1
train.max_iter = 24 * 7330
