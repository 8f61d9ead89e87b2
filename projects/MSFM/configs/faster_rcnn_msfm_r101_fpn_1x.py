"""Faster R-CNN, R-101-FPN with MSFM, 12 epochs: Table 4."""

from .faster_rcnn_msfm_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.init_checkpoint = "resnet101-63fe2227.pth"  # torchvision's ResNet-101, IMAGENET1K_V1
