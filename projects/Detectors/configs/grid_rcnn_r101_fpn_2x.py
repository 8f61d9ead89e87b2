"""Grid R-CNN, R-101-FPN, mmdetection's 2x."""

from .grid_rcnn_r50_fpn_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.init_checkpoint = "resnet101-63fe2227.pth"  # torchvision's ResNet-101, IMAGENET1K_V1
