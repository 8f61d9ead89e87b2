"""Small detectors with LabelEnc: 5 classes, pyramids of 32 channels on a ResNet-18 of 8 to 64, encoders
of the same widths."""

import torch

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from detectron2.structures import BitMasks, Boxes, Instances
from projects.LabelEnc import LabelEnc, LabelEncFCOS, LabelEncGeneralizedRCNN, LabelEncRetinaNet
from shared.modeling.resnet import resnet_stages
from tests.paths import ROOT

CLASSES, CHANNELS = 5, 32
TARGETS = {
    "retinanet": LabelEncRetinaNet,
    "fcos": LabelEncFCOS,
    "faster_rcnn_fpn": LabelEncGeneralizedRCNN,
    "mask_rcnn_fpn": LabelEncGeneralizedRCNN,
    "cascade_faster_rcnn_fpn": LabelEncGeneralizedRCNN,
}
HOSTS = list(TARGETS)


def host_config(name="retinanet"):
    """`configs/common/models/{name}.py`, shrunk."""
    model = LazyConfig.load(str(ROOT / f"configs/common/models/{name}.py")).model
    bottom_up, fpn = model.backbone.bottom_up, model.backbone
    bottom_up.stem.out_channels = 8
    bottom_up.stages = L(resnet_stages)(depth=18, stem_channels=8, res2_channels=8, norm="FrozenBN")
    fpn.out_channels = CHANNELS
    if "roi_heads" not in model:
        model.num_classes = CLASSES
        fpn.top_block.in_channels = 64 if name == "retinanet" else CHANNELS
        model.head.update(input_shape=[ShapeSpec(channels=CHANNELS)] * 5, conv_dims=[CHANNELS])
        return model
    rpn, heads = model.proposal_generator, model.roi_heads
    rpn.head.in_channels = CHANNELS
    rpn.anchor_generator.sizes = [[8], [16], [32], [64], [128]]
    rpn.update(pre_nms_topk=(100, 100), post_nms_topk=(30, 20), batch_size_per_image=16)
    heads.update(num_classes=CLASSES, batch_size_per_image=16)
    shape = ShapeSpec(channels=CHANNELS, height=7, width=7)
    if name.startswith("cascade"):
        heads.box_heads = [L(FastRCNNConvFCHead)(input_shape=shape, conv_dims=[], fc_dims=[32]) for _ in range(3)]
        for predictor in heads.box_predictors:
            predictor.input_shape = ShapeSpec(channels=32)
    else:
        heads.box_head.update(input_shape=shape, fc_dims=[32])
        heads.box_predictor.input_shape = ShapeSpec(channels=32)
    if "mask_head" in heads:
        heads.mask_head.update(input_shape=ShapeSpec(channels=CHANNELS, width=14, height=14), conv_dims=[16, 16])
    return model


def label_enc(**changes):
    return L(LabelEnc)(**{"stem_out": 8, "res2_out": 8, "warmup_iters": 2, "aux_loss_iters": 3, **changes})


def enc_config(name="retinanet", **changes):
    """The config of a host with LabelEnc; changes: LabelEnc's arguments."""
    model = host_config(name)
    model.update(_target_=TARGETS[name], label_enc=label_enc(**changes))
    return model


def plain_host(name="retinanet", seed=0):
    torch.manual_seed(seed)
    return instantiate(host_config(name))


def enc_host(name="retinanet", seed=0, **changes):
    """In training mode. The host's own weights are those of `plain_host`."""
    torch.manual_seed(seed)
    return instantiate(enc_config(name, **changes))


def make_instances(boxes, classes, size):
    """With masks: each box without its right third."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target = Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.tensor(classes, dtype=torch.int64))
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.round().long().tolist()):
        mask[y0:y1, x0 : x1 - (x1 - x0) // 3] = True
    target.gt_masks = BitMasks(masks)
    return target


def make_batch(objects=True):
    """Two images of different sizes, padded to (64, 96) together; the second one without objects."""
    rng = torch.Generator().manual_seed(1)
    sizes = [(64, 90), (50, 96)]
    boxes = [[8.0, 8.0, 40.0, 52.0], [30.0, 10.0, 80.0, 60.0], [50.0, 4.0, 66.0, 24.0]] if objects else []
    targets = [make_instances(boxes, [1, 3, 1][: len(boxes)], sizes[0]), make_instances([], [], sizes[1])]
    return [
        {"image": torch.randint(0, 256, (3, *size), generator=rng, dtype=torch.uint8), "instances": target}
        for size, target in zip(sizes, targets)
    ]
