"""Every method of the collection as a LazyConfig node small enough for a test: 3 classes, images of 64 px, narrow
ResNets of one block a stage, pyramids of 32 channels."""

from collections.abc import Callable

import torch
from omegaconf import DictConfig
from torch import nn

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from detectron2.structures import BitMasks, Boxes, Instances
from projects.DEPLA.depla import DEPLASpec
from projects.DEPLA.fpn import DEPLAFPN
from projects.DEPLA.resnet import DEPLABottleneckBlock
from projects.Detectors.dynamic_rcnn import DynamicROIHeads
from projects.InterNet import ScaleOT, StageAlignedClassifier
from projects.LabelEnc import LabelEnc, LabelEncRetinaNet
from projects.LIP.pooling import Pooling
from projects.LIP.resnet import LIPBottleneckBlock, LIPStem
from projects.MSFM import MSFMBottleneckBlock, MSFMSpec
from shared.classification import ImageClassifier, cifar_resnet
from shared.modeling.fishnet import FishNet
from tests.paths import ROOT

CLASSES, CHANNELS, SIZE = 3, 32, 64
SHAPE = ShapeSpec(channels=CHANNELS, height=7, width=7)
SMALL_DEPLA = dict(num_groups=4, mid_channels=4, maps_per_group=2, zero_init=False)


def _model(file: str) -> DictConfig:
    return LazyConfig.load(str(ROOT / file)).model


def _stages(norm: str, bottleneck: bool) -> list:
    """res2 to res5: one block each."""
    block, factor = (BottleneckBlock, 4) if bottleneck else (BasicBlock, 1)
    widths = (8, 16, 32, 64) if bottleneck else (16, 32, 64, 128)
    stages, channels = [], 16
    for width, stride in zip(widths, (1, 2, 2, 2)):
        width_of_block = dict(bottleneck_channels=width) if bottleneck else {}
        stages.append(
            L(ResNet.make_stage)(
                block_class=block,
                num_blocks=1,
                in_channels=channels,
                out_channels=width * factor,
                stride_per_block=[stride],
                norm=norm,
                **width_of_block,
            )
        )
        channels = width * factor
    return stages


def _narrow(model: DictConfig, norm: str, bottleneck: bool = False) -> DictConfig:
    model.backbone.bottom_up.stem.update(out_channels=16, norm=norm)
    model.backbone.bottom_up.stages = _stages(norm, bottleneck)
    model.backbone.bottom_up.freeze_at = 0
    model.backbone.out_channels = CHANNELS
    return model


def rcnn(norm: str, file: str = "configs/common/models/faster_rcnn_fpn.py", bottleneck: bool = False) -> DictConfig:
    model = _narrow(_model(file), norm, bottleneck)
    rpn, heads = model.proposal_generator, model.roi_heads
    rpn.head.in_channels = CHANNELS
    rpn.anchor_generator.sizes = [[8], [16], [32], [64], [128]]
    rpn.update(pre_nms_topk=(100, 100), post_nms_topk=(20, 20), batch_size_per_image=32)
    heads.update(num_classes=CLASSES, batch_size_per_image=16)
    heads.box_pooler.sampling_ratio = 1
    heads.box_head.update(input_shape=SHAPE, fc_dims=[32])
    heads.box_predictor.input_shape = ShapeSpec(channels=32)
    if "mask_head" in heads:
        heads.mask_head.update(input_shape=ShapeSpec(channels=CHANNELS, width=14, height=14), conv_dims=[16, 16])
    return model


def dense(norm: str, file: str = "configs/common/models/retinanet.py") -> DictConfig:
    """Levels 3 to 5 with one anchor a cell."""
    model = _narrow(_model(file), norm)
    model.backbone.update(top_block=None)
    model.update(num_classes=CLASSES, head_in_features=["p3", "p4", "p5"], test_score_thresh=0.0)
    if "input_shape" in model.head:
        model.head.update(input_shape=[ShapeSpec(channels=CHANNELS)] * 3, conv_dims=[CHANNELS])
    return model


def retinanet(norm: str) -> DictConfig:
    model = dense(norm)
    model.head.num_anchors = 1
    model.anchor_generator.update(sizes=[[16], [32], [64]], aspect_ratios=[1.0], strides=[8, 16, 32])
    return model


def internet(norm: str, transport: bool = False) -> DictConfig:
    model = rcnn(norm)
    heads = _model("projects/InterNet/configs/common/model.py").roi_heads
    unit_norm = {"LN": ""}.get(norm, norm)
    heads.makeup.update(channels=CHANNELS, norm=unit_norm)
    heads.critic.update(channels=CHANNELS, hidden=16, dim=32)
    heads.box_pooler.update(assigner=dict(heads.box_pooler.assigner, base=40), sampling_ratio=1)
    heads.box_head.update(input_shape=ShapeSpec(channels=CHANNELS, height=14, width=14), fc_dims=[32])
    for key in ("num_classes", "batch_size_per_image", "box_predictor"):
        heads[key] = model.roi_heads[key]
    if transport:
        node = L(ScaleOT)(channels=CHANNELS, loss="ot", iters=5, norm=unit_norm)
        heads.intertwiner.update(large_source="d", transport=node)
    model.roi_heads = heads
    return model


def lip(norm: str) -> DictConfig:
    model = rcnn(norm, bottleneck=True)
    resnet = model.backbone.bottom_up
    resnet.stem = L(LIPStem)(in_channels=3, out_channels=16, norm=norm, pooling=L(Pooling)(width=8, init="random"))
    for stage in resnet.stages[1:]:
        stage.update(block_class=LIPBottleneckBlock, pooling="${...stem.pooling}")
    return model


def depla(norm: str, fpn: bool = False) -> DictConfig:
    model = rcnn(norm, bottleneck=True)
    if fpn:
        spec = L(DEPLASpec)(back_filling="adaptive", temperature=0.5, keep_sum=True, **SMALL_DEPLA)
        model.backbone.update(_target_=DEPLAFPN, depla=spec)
    else:
        spec = L(DEPLASpec)(**SMALL_DEPLA)
        model.backbone.bottom_up.stages[2].update(block_class=DEPLABottleneckBlock, depla=spec)
    return model


def fishnet(norm: str) -> DictConfig:
    model = rcnn(norm)
    features = ["fish2", "fish3", "fish4", "fish5"]
    spec = L(DEPLASpec)(**SMALL_DEPLA)
    model.backbone.bottom_up = L(FishNet)(depth=99, width=8, norm=norm, out_features=features, aggregation=spec)
    return model


def msfm(norm: str, impl: str) -> DictConfig:
    model = rcnn(norm, bottleneck=True)
    spec = L(MSFMSpec)(ratios=[2, 4, 8], impl=impl, zero_init=False)
    for stage, name in zip(model.backbone.bottom_up.stages[1:], ("res3", "res4", "res5")):
        stage.update(block_class=MSFMBottleneckBlock, msfm=spec, stage=name)
    return model


def label_enc(norm: str, mode: str) -> DictConfig:
    """Step 1 with the distance from the second step on; the last steps of step 2 and kd have none."""
    model = retinanet(norm)
    phases = dict(warmup_iters=1, aux_loss_iters=40)
    enc = L(LabelEnc)(mode=mode, stem_out=8, res2_out=16, blocks=[1, 1, 1, 1], **phases)
    model.update(_target_=LabelEncRetinaNet, label_enc=enc)
    return model


def musu(norm: str) -> DictConfig:
    """Three shapes a location."""
    model = dense(norm, "projects/MuSu/configs/common/model.py")
    model.anchor_generator.update(strides=[8, 16, 32], scale=3.0, aspect_ratios=[0.5, 1.0, 2.0])
    model.head.num_anchors = 3
    return model


def grid_rcnn(norm: str) -> DictConfig:
    model = rcnn(norm)
    heads = _model("projects/Detectors/configs/common/grid_rcnn.py").roi_heads
    heads.grid_pooler.sampling_ratio = 1
    shape = ShapeSpec(channels=CHANNELS, height=14, width=14)
    heads.grid_head.update(input_shape=shape, num_convs=2, point_channels=4, norm_groups=9)
    heads.box_predictor.input_shape = ShapeSpec(channels=32)
    for key in ("num_classes", "batch_size_per_image", "box_pooler", "box_head"):
        heads[key] = model.roi_heads[key]
    model.roi_heads = heads
    return model


def dynamic_rcnn(norm: str) -> DictConfig:
    model = rcnn(norm)
    options = dict(iou_topk=10, beta_topk=3, update_interval=2, min_iou=0.1)
    model.roi_heads.update(_target_=DynamicROIHeads, **options)
    return model


def reppoints(norm: str) -> DictConfig:
    model = dense(norm, "projects/Detectors/configs/common/reppoints.py")
    model.head.num_convs = 1
    return model


def classifier(norm: str, transport: bool = False) -> DictConfig:
    backbone = L(cifar_resnet)(depth=8, norm=norm, out_features=["res2", "res3", "res4"])
    pixels = dict(pixel_mean=[120.0] * 3, pixel_std=[60.0] * 3)
    if not transport:
        return L(ImageClassifier)(backbone=backbone, num_classes=CLASSES, in_feature="res4", **pixels)
    ot = _model("projects/InterNet/configs/digits_resnet_ot.py").transport
    ot.norm = {"LN": ""}.get(norm, norm)
    return L(StageAlignedClassifier)(backbone=backbone, num_classes=CLASSES, transport=ot, **pixels)


METHODS: dict[str, Callable[[str], DictConfig]] = {
    "faster_rcnn": rcnn,
    "mask_rcnn": lambda norm: rcnn(norm, "configs/common/models/mask_rcnn_fpn.py"),
    "retinanet": retinanet,
    "fcos": lambda norm: dense(norm, "configs/common/models/fcos.py"),
    "internet": internet,
    "internet_ot": lambda norm: internet(norm, transport=True),
    "lip": lip,
    "depla": depla,
    "depla_fpn": lambda norm: depla(norm, fpn=True),
    "fishnet": fishnet,
    "msfm": lambda norm: msfm(norm, "plain"),
    "msfm_folded": lambda norm: msfm(norm, "folded"),
    "labelenc_step1": lambda norm: label_enc(norm, "step1"),
    "labelenc_step2": lambda norm: label_enc(norm, "step2"),
    "labelenc_kd": lambda norm: label_enc(norm, "kd"),
    "musu": musu,
    "grid_rcnn": grid_rcnn,
    "dynamic_rcnn": dynamic_rcnn,
    "reppoints": reppoints,
    "classifier": classifier,
    "classifier_ot": lambda norm: classifier(norm, transport=True),
}


def without_chance(model: DictConfig) -> DictConfig:
    """The same without a choice that rounding could turn: every anchor is sampled and a proposal, and ground truth
    alone is a positive RoI. Losses are then means over images that have equally many objects. No jitter, no random
    label maps."""
    if "roi_heads" in model:
        rpn, heads = model.proposal_generator, model.roi_heads
        rpn.head.num_anchors, rpn.anchor_generator.aspect_ratios = 1, [1.0]
        rpn.update(pre_nms_topk=(2000, 20), post_nms_topk=(2000, 20), nms_thresh=1.0)
        rpn.update(batch_size_per_image=2000, positive_fraction=1.0)
        heads.update(batch_size_per_image=2000, positive_fraction=1.0)
        heads.proposal_matcher.thresholds = [0.99]
        if "jitter" in heads:
            heads.jitter = 0.0
    if "label_enc" in model:
        model.label_enc.aug_step1 = False
    return model


def build(name: str, model: DictConfig, seed: int = 0) -> nn.Module:
    """In training mode, on the CPU. LabelEnc's teacher is another detector like its own."""
    torch.manual_seed(seed)
    built = instantiate(model)
    if name == "labelenc_kd":
        built.label_enc.teacher.model = instantiate(retinanet("LN")).eval().requires_grad_(False)
    return built


def make_batch(name: str, step: int, images: int = 2) -> list[dict]:
    """Noise, and three random objects in each image of a detector."""
    rng = torch.Generator().manual_seed(step)
    batch = []
    for _ in range(images):
        image = torch.randint(0, 256, (3, SIZE, SIZE), generator=rng, dtype=torch.uint8)
        if name.startswith("classifier"):
            label = int(torch.randint(0, CLASSES, (), generator=rng))
            batch.append({"image": image[:, ::2, ::2], "label": label})
            continue
        corner = torch.rand(3, 2, generator=rng) * 40
        boxes = torch.cat([corner, corner + 8 + torch.rand(3, 2, generator=rng) * 14], dim=1)
        masks = torch.zeros(3, SIZE, SIZE, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist()):
            mask[y0:y1, x0:x1] = True
        classes = torch.randint(0, CLASSES, (3,), generator=rng)
        target = Instances((SIZE, SIZE), gt_boxes=Boxes(boxes), gt_classes=classes, gt_masks=BitMasks(masks))
        batch.append({"image": image, "instances": target, "height": SIZE, "width": SIZE})
    return batch
