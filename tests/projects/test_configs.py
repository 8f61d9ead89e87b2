"""Every config of the collection builds; its model's size is what it should be."""

import pytest

from detectron2.config import CfgNode, LazyConfig, instantiate
from shared.config import load_config
from shared.training.run import make_run
from tests.paths import ROOT

FOLDERS = (
    "configs/baselines/*",
    "configs/classification/*",
    "configs/combined/*",
    "configs/*.py",
    "projects/*/configs/*",
)
CONFIGS = sorted(
    str(p.relative_to(ROOT))
    for pattern in FOLDERS
    for p in ROOT.glob(pattern)
    if p.suffix in (".py", ".yaml") and not p.name.startswith("_")
)

# R-101 has 17 more blocks in res4 than R-50: 1x1, 3x3 and 1x1 convolutions without bias
R101_EXTRA = 17 * (1024 * 256 + 9 * 256 * 256 + 256 * 1024)
# one offset convolution per bottleneck: 3 x 3 x width x 18 weights and 18 biases
DCN_EXTRA = sum(n * (9 * w * 18 + 18) for n, w in ((4, 128), (23, 256), (3, 512)))


@pytest.mark.parametrize("config", CONFIGS)
def test_config_loads_and_its_data_and_schedule_are_whole(config):
    cfg = load_config(str(ROOT / config))
    run = make_run(cfg)
    assert run.max_iter > 0
    if not isinstance(cfg, CfgNode):
        schedule = instantiate(cfg.lr_multiplier)
        assert 0 <= schedule(0.0) <= 1 and 0 < schedule(0.5) <= 1 and 0 <= schedule(0.999) <= 1
        assert set(cfg) <= {"model", "dataloader", "optimizer", "lr_multiplier", "train"}
        if "use_instance_mask" in cfg.dataloader.train.mapper:
            assert cfg.dataloader.train.mapper.use_instance_mask == ("mask_rcnn" in config)


def parameters(config):
    cfg = load_config(str(ROOT / f"configs/baselines/{config}.py"))
    return sum(p.numel() for p in instantiate(cfg.model).parameters())


@pytest.mark.parametrize("name, r50", [("faster_rcnn", 41_699_936), ("retinanet", 37_915_572), ("fcos", 32_244_245)])
def test_parameters(name, r50):
    """With 80 classes; R-50 as measured on upstream Detectron2, FrozenBN's constants not counted."""
    assert parameters(f"{name}_r50_fpn_1x") == r50
    assert parameters(f"{name}_r101_fpn_1x") == r50 + R101_EXTRA
    assert parameters(f"{name}_r101_dcn_fpn_2x") == r50 + R101_EXTRA + DCN_EXTRA


def test_cascade_and_mask_parameters():
    faster, mask = parameters("faster_rcnn_r50_fpn_1x"), parameters("mask_rcnn_r50_fpn_1x")
    # 4 convs, a 2x2 transposed one, 80 1x1 outputs
    assert mask - faster == 4 * (9 * 256 * 256 + 256) + 4 * 256 * 256 + 256 + 80 * 257
    head = 256 * 49 * 1024 + 1024 + 1024 * 1024 + 1024
    # three heads, boxes of one class each, in place of one head with 80
    cascade = parameters("cascade_rcnn_r50_fpn_1x")
    assert cascade - faster == 2 * (head + 1025 * 81) + 3 * 1025 * 4 - 1025 * 320
    assert parameters("cascade_mask_rcnn_r50_fpn_1x") - cascade == mask - faster


def test_voc_block():
    """Detectron2's usual setting: both trainvals, tested on 2007, short sides 480 to 800 by 32."""
    data = LazyConfig.load(str(ROOT / "configs/common/data/voc.py")).dataloader
    assert list(data.train.dataset.names) == ["voc_2007_trainval", "voc_2012_trainval"]
    assert list(data.train.mapper.augmentations[0].short_edge_length) == list(range(480, 801, 32))
    assert data.evaluator.dataset_name == data.test.dataset.names == "voc_2007_test"
