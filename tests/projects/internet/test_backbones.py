"""Backbones of four levels without a top-down path."""

import pytest
import torch
import torch.nn.functional as F
import torchvision

from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BasicStem
from projects.InterNet.backbones import VGG16SSD, ReducedLevels, convert_torchvision_vgg16
from shared.checkpoint import WeightsCheckpointer
from shared.config import get_collection_cfg
from shared.modeling.resnet import resnet_stages


def cfg_of(name, **changes):
    cfg = get_collection_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.merge_from_list([part for pair in changes.items() for part in pair])
    return cfg


def lazy_resnet(norm=""):
    bottom_up = L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
        stages=L(resnet_stages)(depth=50),
        out_features=["res2", "res3", "res4", "res5"],
        freeze_at=2,
    )
    return L(ReducedLevels)(bottom_up=bottom_up, in_features="${.bottom_up.out_features}", out_channels=256, norm=norm)


def lazy_vgg():
    return L(ReducedLevels)(
        bottom_up=L(VGG16SSD)(out_features=["conv7", "conv8_2", "conv9_2", "conv10_2"], freeze_at=2),
        in_features="${.bottom_up.out_features}",
        out_channels=256,
        norm="",
    )


def tree(module):
    return {name: (tuple(p.shape), p.requires_grad) for name, p in module.named_parameters()}


@pytest.mark.parametrize(
    "lazy, name", [(lazy_resnet, "build_resnet_levels_backbone"), (lazy_vgg, "build_vgg16_ssd_levels_backbone")]
)
def test_both_kinds_of_config_build_the_same(lazy, name):
    one, other = instantiate(lazy()), build_backbone(cfg_of(name))
    assert tree(one) == tree(other) and list(one.state_dict()) == list(other.state_dict())
    assert one.output_shape() == other.output_shape()


def test_resnet_levels():
    model = instantiate(lazy_resnet()).eval()
    strides = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
    assert model.output_shape() == {k: ShapeSpec(channels=256, stride=s) for k, s in strides.items()}
    assert model.size_divisibility == 32
    reductions = sum(p.numel() for n, p in model.named_parameters() if n.startswith("reduce_"))
    assert reductions == (256 + 512 + 1024 + 2048) * 256 + 4 * 256
    x = torch.randn(1, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps, stages = model(x), model.bottom_up(x)
    for i, (name, stride) in enumerate(strides.items(), start=2):
        conv = model.get_submodule(f"reduce_{name}")
        torch.testing.assert_close(maps[name], F.conv2d(stages[f"res{i}"], conv.weight, conv.bias))  # and nothing else
        assert maps[name].shape == (1, 256, 64 // stride, 32 // stride)


def test_norm_replaces_the_bias():
    model = instantiate(lazy_resnet(norm="FrozenBN"))
    assert model.reduce_p2.bias is None and isinstance(model.reduce_p2.norm, FrozenBatchNorm2d)


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(0)
    return instantiate(lazy_vgg()).eval()


def test_vgg_levels(vgg):
    strides = {"p2": 16, "p3": 32, "p4": 64, "p5": 128}
    assert vgg.output_shape() == {k: ShapeSpec(channels=256, stride=s) for k, s in strides.items()}
    assert vgg.size_divisibility == 128
    with torch.no_grad():
        maps = vgg(torch.randn(1, 3, 128, 128))
    assert {k: tuple(x.shape) for k, x in maps.items()} == {k: (1, 256, 128 // s, 128 // s) for k, s in strides.items()}
    shapes = vgg.bottom_up.output_shape()
    assert [s.channels for s in shapes.values()] == [1024, 512, 256, 256]


def test_vgg_parameters(vgg):
    """torchvision's 14,714,688 of the convolutions; conv6 and conv7; SSD's conv8 to conv10."""
    fc = 9 * 512 * 1024 + 1024 + 1024 * 1024 + 1024
    extra = 1024 * 256 + 256 + 9 * 256 * 512 + 512
    extra += 512 * 128 + 128 + 9 * 128 * 256 + 256
    extra += 256 * 128 + 128 + 9 * 128 * 256 + 256
    assert sum(p.numel() for p in vgg.bottom_up.parameters()) == 14_714_688 + fc + extra
    frozen = [name for name, p in vgg.bottom_up.named_parameters() if not p.requires_grad]
    assert frozen == [f"features.{i}.{kind}" for i in (0, 2, 5, 7) for kind in ("weight", "bias")]
    assert all(p.requires_grad for p in VGG16SSD(freeze_at=0).parameters())


@pytest.fixture(scope="module")
def torchvision_weights():
    """The keys and shapes of torchvision's vgg16; rows of fc6 and fc7 tell their number."""
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in torchvision.models.vgg16(init_weights=False).state_dict().items()}
    rng = torch.Generator().manual_seed(1)
    weights = {k: torch.randn(s, generator=rng) for k, s in shapes.items() if k.startswith("features.")}
    numbers = torch.arange(4096.0)
    weights["classifier.0.weight"] = numbers[:, None].expand(shapes["classifier.0.weight"])
    weights["classifier.3.weight"] = numbers[:, None] * 10_000 + numbers
    weights["classifier.0.bias"] = weights["classifier.3.bias"] = numbers
    return weights


def test_torchvision_weights_load(vgg, torchvision_weights, tmp_path):
    converted = convert_torchvision_vgg16(torchvision_weights)
    torch.save({"model": converted}, tmp_path / "vgg.pth")
    checkpointer = WeightsCheckpointer(vgg)
    checkpointer.load(f"{tmp_path}/vgg.pth?matching_heuristics=True")
    matched, missing, unexpected, wrong = checkpointer.report
    assert (matched, unexpected, wrong) == (2 * 15, [], [])
    assert {name.split(".")[-2].split("_")[0] for name in missing} == {"conv8", "conv9", "conv10", "reduce"}
    bottom_up = vgg.bottom_up
    torch.testing.assert_close(bottom_up.features[28].weight, torchvision_weights["features.28.weight"])
    torch.testing.assert_close(bottom_up.conv6.weight[7], torch.full((512, 3, 3), 28.0))
    torch.testing.assert_close(bottom_up.conv7.weight[2, 3], torch.full((1, 1), 8.0 * 10_000 + 12))
    torch.testing.assert_close(bottom_up.conv7.bias[:3], torch.tensor([0.0, 4.0, 8.0]))


def test_fc6_keeps_every_third_cell():
    weights = {"features.0.weight": torch.zeros(1), "classifier.0.bias": torch.zeros(8)}
    cells = torch.arange(49.0).repeat(8, 2)  # 8 outputs, 2 channels, 7 x 7 cells
    converted = convert_torchvision_vgg16({**weights, "classifier.0.weight": cells})
    wanted = [[0, 3, 6], [21, 24, 27], [42, 45, 48]]
    torch.testing.assert_close(converted["conv6.weight"], torch.tensor(wanted).float().expand(2, 2, 3, 3))


def test_features_compute_what_torchvision_computes(torchvision_weights):
    weights = {k.removeprefix("features."): v for k, v in torchvision_weights.items() if k.startswith("features.")}
    ours = VGG16SSD().features
    ours.load_state_dict({k: v * 0.05 for k, v in weights.items()})
    theirs = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=False)
    theirs.load_state_dict({k: v * 0.05 for k, v in weights.items()})
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(ours[:30](x), theirs[:30](x))  # all but pool5


def test_gradients_reach_every_trained_parameter(vgg):
    sum(x.sum() for x in vgg(torch.randn(1, 3, 128, 128)).values()).backward()
    trained = {name for name, p in vgg.named_parameters() if p.requires_grad}
    assert {name for name, p in vgg.named_parameters() if p.grad is not None} == trained
    vgg.zero_grad()


@pytest.mark.parametrize(
    "build, sentence",
    [
        (lambda: ReducedLevels(VGG16SSD(freeze_at=0)), r"in_features \['res2'.*not among bottom_up's conv7"),
        (lambda: VGG16SSD(out_features=["conv4_3"]), r"out_features \['conv4_3'\] are not among conv7"),
        (lambda: VGG16SSD(freeze_at=6), "freeze_at is 6, but VGG-16 has 5 blocks"),
        (lambda: convert_torchvision_vgg16({"conv1.weight": 0}), "no key begins with 'features.'"),
    ],
)
def test_bad_arguments(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
