"""The classification configs: sizes, recipes at their epochs, weight decay."""

import pytest
import torch
from torchvision.transforms import v2

from detectron2.config import instantiate
from shared.classification import MixBatch
from shared.config import load_config
from shared.training.run import make_run
from tests.paths import ROOT

FOLDER = ROOT / "configs/classification"
NAMES = sorted(p.stem for p in FOLDER.glob("*.py"))
EPOCH = 5004


def load(name, *overrides):
    return load_config(str(FOLDER / f"{name}.py"), overrides)


def test_what_is_there():
    depths = [f"resnet{d}_imagenet_{e}e" for d in (101, 50) for e in (100, 400, 90)]
    assert NAMES == ["cifar10_resnet20", "cifar10_resnet56", "digits_resnet", "digits_resnet_bottleneck", *depths]


@pytest.mark.parametrize("name", NAMES)
def test_config_is_whole(name):
    cfg = load(name)
    assert make_run(cfg).max_iter == cfg.train.max_iter > 0
    assert set(cfg) == {"model", "dataloader", "optimizer", "lr_multiplier", "train"}
    assert cfg.dataloader.test.mapper.image_format == cfg.dataloader.train.mapper.image_format == "RGB"
    instantiate(cfg.dataloader.train.mapper)
    instantiate(cfg.dataloader.test.mapper)


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("resnet50_imagenet_90e", 25_557_032),
        ("resnet101_imagenet_90e", 44_549_160),
        ("cifar10_resnet20", 269_722),
        ("cifar10_resnet56", 853_018),
    ],
)
def test_parameters(name, parameters):
    """Those of torchvision's ResNets, and of the CIFAR ResNets of arXiv:1512.03385."""
    with torch.device("meta"):
        model = instantiate(load(name).model)
    assert sum(p.numel() for p in model.parameters()) == parameters


def rates(cfg, epochs, of):
    schedule = instantiate(cfg.lr_multiplier)
    return [cfg.optimizer.lr * schedule(epoch / of) for epoch in epochs]


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("overrides", [(), ("train.max_iter=900",)])
def test_90_epochs(depth, overrides):
    cfg = load(f"resnet{depth}_imagenet_90e", *overrides)
    assert cfg.train.max_iter == (900 if overrides else 90 * EPOCH)
    expected = [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4]
    assert rates(cfg, [0, 29.9, 30.1, 59.9, 60.1, 79.9, 80.1, 89.9], 90) == pytest.approx(expected)
    assert (cfg.optimizer.weight_decay, cfg.optimizer.momentum, cfg.model.label_smoothing) == (1e-4, 0.9, 0.0)
    assert cfg.dataloader.train.total_batch_size == 256


@pytest.mark.parametrize("depth", [50, 101])
def test_100_and_400_epochs(depth):
    cfg = load(f"resnet{depth}_imagenet_100e")
    assert cfg.train.max_iter == 100 * EPOCH and cfg.model.label_smoothing == 0.1
    assert rates(cfg, [0, 50, 100], 100) == pytest.approx([0.2, 0.1, 0.0])
    assert cfg.optimizer.weight_decay == 5e-5
    better = load(f"resnet{depth}_imagenet_400e", "train.max_iter=4000")
    # linear from 0 to the cosine at epoch 5, (1 + cos(pi / 80)) / 2 = 0.99961
    assert rates(better, [0, 2.5, 5, 200, 400], 400) == pytest.approx([0, 0.0999615, 0.199923, 0.1, 0.0], abs=1e-6)
    assert better.model.label_smoothing == 0.1 and better.optimizer.weight_decay == 5e-5
    transforms = instantiate(better.dataloader.train.mapper).transforms.transforms
    assert isinstance(transforms[2], v2.AutoAugment) and transforms[2].policy.name == "IMAGENET"
    mix = instantiate(better.dataloader.train.collate_fn)
    assert isinstance(mix, MixBatch) and mix.mix.transforms[0].num_classes == 1000
    assert mix.mix.transforms[0].alpha == 0.2
    assert load(f"resnet{depth}_imagenet_100e").dataloader.train.collate_fn is None


@pytest.mark.parametrize("depth", [20, 56])
def test_cifar_recipe(depth):
    cfg = load(f"cifar10_resnet{depth}")
    assert cfg.train.max_iter == 78_200 and cfg.dataloader.train.total_batch_size == 128
    assert rates(cfg, [0, 99, 101, 149, 151], 200) == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3])
    crop, flip = instantiate(cfg.dataloader.train.mapper).transforms.transforms[:2]
    assert (crop.size, crop.padding, flip.p) == ((32, 32), [4] * 4, 0.5)


def test_weight_decay_groups():
    """On everything in the papers' recipes; not on the norms where weight_decay_norm=0."""

    def decays(cfg):
        model = make_run(cfg).build_model()
        optimizer = make_run(cfg).build_optimizer(model)
        of = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        names = dict(model.named_parameters())
        assert len(of) == len(names)
        return {k: of[names[k]] for k in ("fc.weight", "fc.bias", "backbone.stem.conv1.norm.weight")}

    papers = load("cifar10_resnet20", "train.device=cpu")
    assert set(decays(papers).values()) == {1e-4}
    some = load("cifar10_resnet20", "train.device=cpu", "optimizer.params.weight_decay_norm=0")
    assert decays(some) == {"fc.weight": 1e-4, "fc.bias": 1e-4, "backbone.stem.conv1.norm.weight": 0}
    overrides = ["optimizer.params.weight_decay_norm=0", "optimizer.params.weight_decay_bias=0"]
    no_bias = load("cifar10_resnet20", "train.device=cpu", overrides[0], "+" + overrides[1])
    assert decays(no_bias) == {"fc.weight": 1e-4, "fc.bias": 0, "backbone.stem.conv1.norm.weight": 0}
