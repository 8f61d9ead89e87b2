"""A Faster R-CNN small enough for a test: 64 px images, 32 channels, 3 classes."""

from omegaconf import OmegaConf

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from shared.modeling.resnet import resnet_stages

from ...configs.common.data.custom import dataloader
from ...configs.common.models.faster_rcnn_fpn import model
from ...configs.common.optim import SGD as optimizer
from ...configs.common.schedule import steps as lr_multiplier
from ...configs.common.train import train

model.backbone.bottom_up.stem.out_channels = 32
model.backbone.bottom_up.stem.norm = "GN"
model.backbone.bottom_up.stages = L(resnet_stages)(depth=18, stem_channels=32, res2_channels=32, norm="GN")
model.backbone.out_channels = 32
model.proposal_generator.head.in_channels = 32
model.proposal_generator.anchor_generator.sizes = [[8], [16], [32], [64], [128]]
model.proposal_generator.pre_nms_topk = (100, 100)
model.proposal_generator.post_nms_topk = (20, 20)
model.roi_heads.num_classes = 3
model.roi_heads.box_predictor.test_score_thresh = 0.0  # untrained, but with detections
model.roi_heads.box_head.input_shape = ShapeSpec(channels=32, height=7, width=7)
model.roi_heads.box_head.fc_dims = [32]
model.roi_heads.box_predictor.input_shape = ShapeSpec(channels=32)

dataloader.train.mapper.augmentations[0].short_edge_length = [64]
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = 0
dataloader.test.mapper.augmentations[0].short_edge_length = 64
dataloader.test.num_workers = 0

optimizer.lr = 0.01
lr_multiplier.warmup_iters = 2
train = OmegaConf.merge(train, dict(max_iter=4, device="cpu", seed=1, log_period=1, checkpointer=dict(period=2)))
