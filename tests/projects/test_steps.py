"""Every detector config of the projects trains a step and detects, also on an image without objects; so do the digits'
classifiers.

Backbones become a ResNet-18 (or the config's own small one) and images 96 px: everything else is the config's.
"""

import copy

import pytest
import torch

from detectron2.config import CfgNode, instantiate
from detectron2.config import LazyCall as L
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from shared.config import load_config
from shared.modeling.resnet import resnet_stages
from tests.paths import ROOT
from tests.projects.test_configs import CONFIGS

CLASSIFIERS = ("imagenet", "cifar10", "digits")
DIGITS = [c for c in CONFIGS if "digits" in c]
METHODS = ("projects/", "configs/combined/")
DETECTORS = [c for c in CONFIGS if c.startswith(METHODS) and not any(name in c for name in CLASSIFIERS)]
# at another size the same model
TWICE = [c for c in DETECTORS if "_800" in c and c.replace("_800", "_512") in DETECTORS]
# with another depth, which `shrink` takes away, or another schedule
TWICE += [c for c in DETECTORS if "/LabelEnc/" in c and any(word in c for word in ("r101", "_2x", "_original"))]


def shrink(cfg):
    """The config's model, with a backbone and a number of RoIs that a test can afford."""
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
        cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 16
        if cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone":
            cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
        return build_model(cfg)
    if "roi_heads" in cfg.model:
        cfg.model.roi_heads.batch_size_per_image = 16
        cfg.model.proposal_generator.post_nms_topk = (100, 16)
    backbone = cfg.model.backbone.get("bottom_up", cfg.model.backbone)
    stages = backbone.get("stages")
    if stages is not None and "depth" in stages and cfg.model.backbone.get("out_channels", 0) == 256:
        if "msfm" in stages:  # stands in bottlenecks
            stages.update(res2_channels=64, width_per_group=16)
            stages.deform_on_per_stage = [False] * 4  # upstream's have no CPU form
            stages.msfm.ratios = [r // 4 for r in stages.msfm.ratios]
        elif "msfm" in backbone:  # the same, combined
            backbone.stages = L(resnet_stages)(depth=50, res2_channels=64, width_per_group=16, norm="FrozenBN")
            backbone.msfm.ratios = [r // 4 for r in backbone.msfm.ratios]
        else:
            backbone.stages = L(resnet_stages)(depth=18, res2_channels=64, norm="FrozenBN")
        top = cfg.model.backbone.get("top_block") or {}
        if top.get("in_channels") == 2048:  # of res5
            top.in_channels = 512
    return instantiate(cfg.model)


def make_batch(num_classes, masks):
    size = (96, 128)
    boxes = torch.tensor([[8.0, 8.0, 40.0, 60.0], [20.0, 4.0, 120.0, 90.0], [70.0, 50.0, 86.0, 66.0]])
    batch = []
    for num in (3, 0):
        target = Instances(size, gt_boxes=Boxes(boxes[:num]), gt_classes=torch.arange(num) % num_classes)
        if masks and num:
            target.gt_masks = BitMasks(torch.ones(num, *size, dtype=torch.bool))
        image = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(num), dtype=torch.uint8)
        batch.append({"image": image, "instances": target, "height": size[0], "width": size[1]})
    return batch


@pytest.mark.parametrize(
    "config", [c if c not in TWICE else pytest.param(c, marks=pytest.mark.slow) for c in DETECTORS]
)
def test_trains_a_step_and_detects(config):
    torch.manual_seed(0)
    cfg = load_config(str(ROOT / config))
    model = shrink(cfg)
    label_enc = getattr(model, "label_enc", None)
    if label_enc is not None and label_enc.mode == "kd":  # the config's own is a trained detector
        label_enc.teacher.model = copy.deepcopy(model).eval().requires_grad_(False)
    yaml = isinstance(cfg, CfgNode)
    heads = getattr(model, "roi_heads", model)
    masks = cfg.MODEL.MASK_ON if yaml else cfg.dataloader.train.mapper.use_instance_mask
    batch = make_batch(heads.num_classes, masks)
    with EventStorage():
        losses = model(batch)
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    sum(losses.values()).backward()
    # DDP waits for every one of them
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    model.eval()
    with torch.no_grad():
        outputs = model([{"image": x["image"], "height": 50, "width": 70} for x in batch])
    for output in outputs:
        found = output["instances"]
        assert found.image_size == (50, 70) and torch.isfinite(found.pred_boxes.tensor).all()


@pytest.mark.parametrize("config", DIGITS)
def test_classifier_of_digits_trains_a_step_and_classifies(config):
    torch.manual_seed(0)
    cfg = load_config(str(ROOT / config))
    (size,) = {t.size for t in cfg.dataloader.test.mapper.transforms if "size" in t}
    images = torch.randint(0, 256, (4, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    batch = [{"image": image, "label": i} for i, image in enumerate(images)]
    model = instantiate(cfg.model)
    with EventStorage():
        losses = model(batch)
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    model.eval()
    with torch.no_grad():
        assert [output["scores"].shape for output in model(batch)] == [(10,)] * 4
