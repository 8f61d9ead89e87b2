"""What the quick detectors share: the quickstart's training and narrow ResNet under P3 to P7, AP and alignment."""

from detectron2.config import LazyCall as L
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from projects.MuSu import AlignmentEvaluator

from .....configs.quickstart_retinanet import dataloader, lr_multiplier, model, optimizer, train

backbone, pixel_std = model.backbone, model.pixel_std
backbone.top_block.update(in_channels="${..out_channels}", in_feature="p5")
head = dict(input_shape=model.head.input_shape, conv_dims=model.head.conv_dims)
del model
dataloader.evaluator = L(DatasetEvaluators)(
    evaluators=[
        L(evaluator)(dataset_name="${....test.dataset.names}") for evaluator in (COCOEvaluator, AlignmentEvaluator)
    ]
)
