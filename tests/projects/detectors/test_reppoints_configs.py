"""RepPoints' configs: both kinds build the same model, with the paper's sizes and mmdetection's schedule."""

import inspect

import pytest
import torch

from detectron2.config import instantiate
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from projects.Detectors.reppoints import RepPoints
from projects.Detectors.reppoints_head import RepPointsHead
from shared.config import get_collection_cfg, load_config
from tests.paths import ROOT

FOLDER = ROOT / "projects/Detectors/configs"
BASELINE = "reppoints_r50_fpn_1x"


def load(name, *overrides):
    return load_config(str(FOLDER / name), overrides)


def trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def tree(model):
    """Parameters, buffers, and every plain value of the detector, its head and its matcher."""
    parts, matcher = (model, model.head, model.head.points_to_box), model.box_matcher
    plain = [{k: v for k, v in vars(p).items() if isinstance(v, (int, float, str, list))} for p in parts]
    plain += [list(matcher.thresholds), list(matcher.labels), matcher.allow_low_quality_matches]
    parameters = {k: (tuple(p.shape), p.requires_grad) for k, p in model.named_parameters()}
    return parameters, {k: tuple(b.shape) for k, b in model.named_buffers()}, plain, str(model)


def build(cfg):
    with torch.device("meta"):
        return build_model(cfg) if "MODEL" in cfg else instantiate(cfg.model)


# the baseline; group norm: 6 convolutions of the pyramid and 6 of the towers lose a bias and gain two values a channel
@pytest.mark.parametrize(
    "name, expected", [(BASELINE, 36_620_150), ("reppoints_r50_fpn_gn_1x", 36_620_150 + (6 + 6) * 256)]
)
def test_parameters(name, expected):
    """Trainable ones with batch norm, as the paper of MSFM counts: 36.6 M."""
    cfg = load(f"{name}.py")
    cfg.model.backbone.bottom_up.stem.norm = cfg.model.backbone.bottom_up.stages.norm = "BN"
    assert trainable(build(cfg)) == expected
    cfg.model.backbone.bottom_up.stem.norm = cfg.model.backbone.bottom_up.stages.norm = "FrozenBN"
    assert trainable(build(cfg)) == expected - 50_176


def test_r101_is_deeper_and_twice_as_long():
    cfg, base = load("reppoints_r101_fpn_gn_2x.py"), load("reppoints_r50_fpn_gn_1x.py")
    blocks = 17 * (1024 * 256 + 9 * 256 * 256 + 256 * 1024)  # of res4
    assert trainable(build(cfg)) - trainable(build(base)) == blocks
    assert cfg.train.max_iter == 2 * base.train.max_iter
    assert cfg.lr_multiplier.drops == base.lr_multiplier.drops == [16 / 24, 22 / 24]
    assert "101" in cfg.train.init_checkpoint


def test_both_kinds_build_the_same_model():
    yaml, lazy = load(f"{BASELINE}.yaml", "MODEL.DEVICE=meta"), load(f"{BASELINE}.py")
    ours, theirs = build(yaml), build(lazy)
    assert type(ours) is type(theirs) is META_ARCH_REGISTRY.get("RepPoints") is RepPoints
    assert tree(ours) == tree(theirs)
    assert not ours.backbone.bottom_up.stem.conv1.weight.requires_grad
    assert ours.backbone.bottom_up.res3[0].conv1.weight.requires_grad
    # torchvision's ResNet
    assert yaml.INPUT.FORMAT == lazy.dataloader.train.mapper.image_format == "RGB"
    assert yaml.MODEL.PIXEL_MEAN == list(lazy.model.pixel_mean) == [123.675, 116.28, 103.53]
    assert yaml.MODEL.PIXEL_STD == list(lazy.model.pixel_std) == [58.395, 57.12, 57.375]
    assert yaml.MODEL.WEIGHTS == lazy.train.init_checkpoint
    assert ours.backbone.bottom_up.res3[0].conv2.stride == (2, 2)
    # 12 epochs, learning rate 0.01
    assert yaml.SOLVER.BASE_LR == lazy.optimizer.lr == 0.01
    assert yaml.SOLVER.MAX_ITER == lazy.train.max_iter == 87960
    assert yaml.SOLVER.STEPS == tuple(round(d * 87960) for d in lazy.lr_multiplier.drops) == (58640, 80630)


def test_both_kinds_start_from_the_same_weights():
    heads = []
    for make in (
        lambda: build_model(load(f"{BASELINE}.yaml", "MODEL.DEVICE=cpu", "MODEL.RESNETS.DEPTH=50")).head,
        lambda: instantiate(load(f"{BASELINE}.py").model).head,
    ):
        torch.manual_seed(5)
        heads.append(make().state_dict())
    assert list(heads[0]) == list(heads[1])
    for key, value in heads[0].items():
        assert torch.equal(value, heads[1][key]), key


PAIRS = {
    "MODEL.RETINANET.NUM_CLASSES": ("5", "num_classes=5"),
    "MODEL.RETINANET.IN_FEATURES": ("['p3','p4']", "head_in_features=[p3,p4]"),
    "NUM_POINTS": ("25", "head.num_points=25"),
    "NUM_CONVS": ("2", "head.num_convs=2"),
    "NORM": ("GN", "head.norm=GN"),
    "PRIOR_PROB": ("0.02", "head.prior_prob=0.02"),
    "INIT_GRAD": ("0.3", "head.init_grad=0.3"),
    "POINTS_TO_BOX": ("partial_minmax", "head.points_to_box=partial_minmax"),
    "MOMENT_GRAD": ("0.5", "head.moment_grad=0.5"),
    "POINT_SCALE": ("8.0", "point_scale=8.0"),
    "IOU_THRESHOLDS": ("[0.3, 0.6]", "box_matcher.thresholds=[0.3,0.6]"),
    "IOU_LABELS": ("[0, 0, 1]", "box_matcher.labels=[0,0,1]"),
    "FOCAL_LOSS_ALPHA": ("0.3", "focal_loss_alpha=0.3"),
    "FOCAL_LOSS_GAMMA": ("1.5", "focal_loss_gamma=1.5"),
    "SMOOTH_L1_BETA": ("0.2", "smooth_l1_beta=0.2"),
    "INIT_LOSS_WEIGHT": ("0.7", "init_loss_weight=0.7"),
    "REFINE_LOSS_WEIGHT": ("1.5", "refine_loss_weight=1.5"),
    "SCORE_THRESH_TEST": ("0.1", "test_score_thresh=0.1"),
    "NMS_THRESH_TEST": ("0.6", "test_nms_thresh=0.6"),
    "TOPK_CANDIDATES_TEST": ("500", "test_topk_candidates=500"),
    "TEST.DETECTIONS_PER_IMAGE": ("50", "max_detections_per_image=50"),
}


@pytest.mark.parametrize("key", sorted({*get_collection_cfg().MODEL.REPPOINTS, *PAIRS}))
def test_every_key_in_both_kinds(key):
    value, lazy_key = PAIRS[key]
    dotted = key if "." in key else f"MODEL.REPPOINTS.{key}"
    yaml = load(f"{BASELINE}.yaml", f"{dotted}={value}", "MODEL.DEVICE=meta", "MODEL.RESNETS.DEPTH=50")
    lazy = load(f"{BASELINE}.py", f"model.{lazy_key}")
    ours = tree(build(yaml))
    assert ours == tree(build(lazy))
    if key != "PRIOR_PROB":  # a value of a bias
        assert ours != tree(build(load(f"{BASELINE}.py")))


def test_defaults_stand_for_the_same_everywhere():
    """Those of the constructors, of MODEL.REPPOINTS (by the test above) and of the block for LazyConfigs."""
    model = load(f"{BASELINE}.py").model
    for cls, node in ((RepPoints, model), (RepPointsHead, model.head)):
        defaults = {
            k: p.default for k, p in inspect.signature(cls.__init__).parameters.items() if p.default is not p.empty
        }
        assert defaults and {k: node[k] for k in defaults} == defaults


def test_quick_config_is_small():
    cfg = load("reppoints_quick.py")
    model = build(cfg)
    assert trainable(model) < 2_000_000
    assert model.strides == [8, 16, 32, 64, 128] and model.num_classes == 10
    assert "quickstart" not in cfg.train.output_dir
