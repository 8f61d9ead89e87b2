"""What the quick detectors share: the quickstart's training and narrow ResNet under P3 to P7, AP and alignment."""

from detectron2.config import LazyCall as L
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from projects.MuSu import AlignmentEvaluator

from .....configs.quickstart import dataloader, lr_multiplier, model, optimizer, train

backbone, pixel_std = model.backbone, model.pixel_std
del model
backbone.bottom_up.out_features = ["res3", "res4", "res5"]
backbone.top_block = L(LastLevelP6P7)(
    in_channels="${..out_channels}", out_channels="${..out_channels}", in_feature="p5"
)
head = dict(input_shape=[ShapeSpec(channels=64)] * 5, conv_dims=[64, 64])
dataloader.evaluator = L(DatasetEvaluators)(
    evaluators=[
        L(evaluator)(dataset_name="${....test.dataset.names}") for evaluator in (COCOEvaluator, AlignmentEvaluator)
    ]
)
