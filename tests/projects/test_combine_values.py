"""What a method brings to a host, value by value as in the project's own config."""

import dataclasses

import pytest
from omegaconf import OmegaConf

from detectron2.config import LazyConfig, instantiate
from projects import hosts
from projects.combine import METHODS, combine
from tests.paths import ROOT

BASE, MSFM, DEPLA = "configs/baselines/", "projects/MSFM/configs/", "projects/DEPLA/configs/"
INTERNET, LABELENC = "projects/InterNet/configs/", "projects/LabelEnc/configs/"
DETECTORS, MUSU = "projects/Detectors/configs/", "projects/MuSu/configs/"
# The project's own starts from torchvision's weights, the host from Detectron2's
PIXELS = ["input_format", "pixel_mean.0", "pixel_mean.2", "pixel_std.0", "pixel_std.1", "pixel_std.2"]
WEIGHTS = ["backbone.bottom_up.stages.stride_in_1x1", *PIXELS]
SAMPLING = [  # stays the host's
    *(f"proposal_generator.{key}" for key in ("post_nms_topk.0", "pre_nms_topk.0", "pre_nms_topk.1")),
    "roi_heads.batch_size_per_image",
    "roi_heads.positive_fraction",
]
SCHEDULE = ["label_enc.aux_loss_iters.max_iter", "label_enc.warmup_iters.max_iter"]  # the host's ${train.max_iter}
PREDICTOR = "roi_heads.box_predictor.test_nms_thresh"
FROZEN = {"lip_densenet": {"norm": "FrozenBN", "freeze_at": 2}}  # weights of its own are there
WHOLE = [  # host, methods, knobs, the project's own config, the keys that differ
    (f"{BASE}faster_rcnn_r50_fpn_1x", "dynamic", {}, f"{DETECTORS}dynamic_rcnn_r50_fpn_1x", WEIGHTS),
    (
        f"{BASE}faster_rcnn_r50_fpn_1x",
        "grid",
        {},
        f"{DETECTORS}grid_rcnn_r50_fpn_1x",
        [*WEIGHTS, "proposal_generator.post_nms_topk.0"],
    ),
    (f"{BASE}faster_rcnn_r50_fpn_1x", "reppoints", {}, f"{DETECTORS}reppoints_r50_fpn_1x", WEIGHTS[:1] + PIXELS[1:]),
    (f"{BASE}retinanet_r50_fpn_1x", "reppoints", {}, f"{DETECTORS}reppoints_r50_fpn_1x", WEIGHTS[:1] + PIXELS[1:]),
    (f"{BASE}retinanet_r50_fpn_1x", "musu", {}, f"{MUSU}musu_r50_fpn_1x", []),
    (f"{BASE}fcos_r50_fpn_1x", "musu", {}, f"{MUSU}musu_r50_fpn_1x", []),
    (f"{BASE}faster_rcnn_r50_fpn_1x", "internet", {}, f"{INTERNET}internet_r50_fpn_512", [*SAMPLING, PREDICTOR]),
    (
        f"{BASE}mask_rcnn_r50_fpn_1x",
        "internet",
        {},
        f"{INTERNET}internet_mask_rcnn_r50_fpn_512",
        [*SAMPLING, PREDICTOR],
    ),
    (f"{BASE}cascade_rcnn_r50_fpn_1x", "internet", {}, f"{INTERNET}internet_cascade_rcnn_r50_fpn_512", SAMPLING),
    (
        f"{BASE}faster_rcnn_r101_fpn_1x",
        "internet_ot",
        {},
        f"{INTERNET}internet_r101_fpn_512_d_ot",
        [*SAMPLING, PREDICTOR],
    ),
    (f"{LABELENC}retinanet_r50_fpn_1x", "labelenc", {}, f"{LABELENC}retinanet_step1_r50", SCHEDULE),
    (f"{LABELENC}faster_rcnn_r50_fpn_1x", "labelenc", {}, f"{LABELENC}faster_rcnn_step1_r50", SCHEDULE),
    (
        f"{LABELENC}fcos_r50_fpn_1x",
        "labelenc",
        {"labelenc": {"mode": "step2"}},
        f"{LABELENC}fcos_step2_r50",
        ["label_enc.step1_weights"],
    ),
    (f"{DEPLA}mask_rcnn_r50_fpn_1x", "depla_fpn", {}, f"{DEPLA}mask_rcnn_r50_depla_fpn_1x", []),
    (f"{DEPLA}mask_rcnn_r50_fpn_1x", "fishnet", {}, f"{DEPLA}mask_rcnn_fishnet150_fpn_24e", []),
    (f"{DEPLA}mask_rcnn_r50_fpn_1x", "depla_fishnet", {}, f"{DEPLA}mask_rcnn_depla_fishnet150_fpn_24e", []),
    (f"{DEPLA}mask_rcnn_r50_fpn_1x", "fishnet depla", {}, f"{DEPLA}mask_rcnn_depla_fishnet150_fpn_24e", []),
    (
        f"{BASE}faster_rcnn_r50_fpn_1x",
        "lip_densenet",
        FROZEN,
        "projects/LIP/configs/faster_rcnn_lip_densenet121_fpn_1x",
        PIXELS,
    ),
]
IN_RESNET = {  # the project's own config, where in its bottom_up the same values lie
    "msfm": (f"{MSFM}faster_rcnn_msfm_r50_fpn_1x", lambda own: instantiate(own.stages.msfm)),
    "lip": (
        "projects/LIP/configs/faster_rcnn_lip_r50_fpn_1x",
        lambda own: {key: own[key] for key in ("pooling", "sites", "kernel_after", "freeze_stem_pool")},
    ),
    "depla": (
        f"{DEPLA}mask_rcnn_depla_r50_depla_fpn_1x",
        lambda own: {**dataclasses.asdict(instantiate(own.depla)), "stage": own.stage, "blocks": own.blocks},
    ),
    "se_resnet": (
        f"{DEPLA}depla_seresnet50_imagenet_100e",
        lambda own: {"ratio": own.se_ratio, "start": 0.95},  # the own one starts at random
    ),
}


def load(name):
    return LazyConfig.load(str(ROOT / f"{name}.py"))


def values(node, key=""):
    """Every value by its dotted key, what is called as a value of its node."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        node = dataclasses.asdict(node)
    if OmegaConf.is_dict(node) or isinstance(node, dict):
        parts = [(k, hosts.target_of(node) if k == "_target_" else node[k]) for k in node]
    elif OmegaConf.is_list(node) or isinstance(node, list | tuple):
        parts = enumerate(node)
    else:
        return {key: node}
    return {k: v for name, part in parts for k, v in values(part, f"{key}.{name}".lstrip(".")).items()}


@pytest.mark.parametrize(
    "host, names, knobs, own, differing", WHOLE, ids=[f"{n}-{o.rpartition('/')[2]}" for _, n, _, o, _ in WHOLE]
)
def test_the_whole_model(host, names, knobs, own, differing):
    cfg, wanted = load(host), load(own)
    cfg.model = combine(cfg.model, *names.split(), **knobs)
    ours, theirs = values(cfg.model), values(wanted.model)
    assert len(theirs) > 50
    assert sorted(k for k in {**ours, **theirs} if ours.get(k, "none") != theirs.get(k, "none")) == sorted(differing)


@pytest.mark.parametrize("name", IN_RESNET)
def test_changes_of_a_resnet(name):
    file, part = IN_RESNET[name]
    model = combine(load(f"{BASE}faster_rcnn_r50_fpn_1x").model, name)
    own = load(file).model.backbone
    change = instantiate(model.backbone.bottom_up["se" if name == "se_resnet" else name])
    theirs = values(part(own.get("bottom_up", own)))
    assert theirs and values(change) == {k: v for k, v in theirs.items() if not k.endswith("_target_")}


def test_every_method_is_here():
    assert {name for case in WHOLE for name in case[1].split()} | set(IN_RESNET) == set(METHODS)
