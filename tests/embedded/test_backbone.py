"""ResNet and FPN: seeds, keys, shapes, freezing, and the builders."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_backbone
from detectron2.modeling.backbone import FPN, BasicStem, BottleneckBlock, ResNet, build_resnet_backbone, make_stage
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, DeformBottleneckBlock


def first(module, *names):
    """First element of each weight, 5 decimals."""
    return [round(module.get_submodule(n).weight.flatten()[0].item(), 5) for n in names]


def resnet18(**kwargs):
    return ResNet(BasicStem(), ResNet.make_default_stages(18), **kwargs)


class Tiny(Backbone):
    """Maps t0, t1, ...: the input itself, subsampled by the strides."""

    def __init__(self, strides=(8, 16, 32), channels=2):
        super().__init__()
        self._out_features = [f"t{i}" for i in range(len(strides))]
        self._out_feature_strides = dict(zip(self._out_features, strides))
        self._out_feature_channels = dict.fromkeys(self._out_features, channels)

    def forward(self, x):
        return {
            name: x[:, :1, ::s, ::s].expand(-1, self._out_feature_channels[name], -1, -1)
            for name, s in self._out_feature_strides.items()
        }


@pytest.mark.parametrize(
    "build, names, expected",
    [
        (lambda: BasicStem(), ["conv1"], [0.03753]),
        (
            lambda: BottleneckBlock(64, 256, bottleneck_channels=64),
            ["shortcut", "conv1", "conv2", "conv3"],
            [0.06138, 0.20510, 0.01438, 0.06978],
        ),
        (lambda: BasicBlock(64, 128, stride=2), ["shortcut", "conv1", "conv2"], [-0.06447, 0.06866, -0.00793]),
        (
            lambda: DeformBottleneckBlock(64, 256, bottleneck_channels=64),
            ["conv2", "conv3", "shortcut"],
            [-0.03320, 0.10016, -0.02545],
        ),
        (
            lambda: FPN(
                resnet18(out_features=["res3", "res4", "res5"]),
                ["res3", "res4", "res5"],
                256,
                top_block=LastLevelP6P7(512, 256),
            ),
            ["bottom_up.res5.1.conv2", "top_block.p7", "fpn_lateral3", "fpn_output5"],
            # The top block is an argument: built before FPN's own convolutions.
            [0.01902, 0.01815, 0.04456, 0.02105],
        ),
    ],
)
def test_recorded_seeds(build, names, expected):
    torch.manual_seed(7)
    assert first(build(), *names) == expected


def test_bottleneck_equals_the_formula():
    block = BottleneckBlock(4, 8, bottleneck_channels=2, stride=2, norm="").eval()
    x = torch.randn(2, 4, 6, 8)
    f = nn.functional
    y = f.conv2d(x, block.conv1.weight).relu()
    y = f.conv2d(y, block.conv2.weight, stride=2, padding=1).relu()
    y = f.conv2d(y, block.conv3.weight) + f.conv2d(x, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), y.relu())
    assert block.conv1.stride == (1, 1) and block.conv2.stride == (2, 2)
    assert all(c.bias is None for c in (block.conv1, block.conv2, block.conv3, block.shortcut))


def test_bottleneck_options():
    block = BottleneckBlock(8, 8, bottleneck_channels=4, stride=2, num_groups=2, stride_in_1x1=True, dilation=3)
    assert block.conv1.stride == (2, 2) and block.conv2.stride == (1, 1)
    assert block.conv2.dilation == block.conv2.padding == (3, 3) and block.conv2.groups == 2
    assert block.shortcut is None  # equal channels: none, although the stride is 2
    assert (block.in_channels, block.out_channels, block.stride) == (8, 8, 2)


def test_basic_block_equals_the_formula():
    block = BasicBlock(4, 4, norm="").eval()
    x = torch.randn(2, 4, 5, 7)
    y = nn.functional.conv2d(x, block.conv1.weight, padding=1).relu()
    y = nn.functional.conv2d(y, block.conv2.weight, padding=1)
    torch.testing.assert_close(block(x), (y + x).relu())


def test_stem_halves_twice():
    stem = BasicStem(norm="")
    x = torch.randn(1, 3, 32, 48)
    y = nn.functional.conv2d(x, stem.conv1.weight, stride=2, padding=3).relu()
    torch.testing.assert_close(stem(x), nn.functional.max_pool2d(y, 3, 2, 1))
    assert stem.stride == 4


@pytest.mark.parametrize("modulated, channels", [(False, 18 * 2), (True, 27 * 2)])
def test_deform_block_structure(modulated, channels):
    block = DeformBottleneckBlock(
        8, 8, bottleneck_channels=4, stride=2, dilation=2, deform_modulated=modulated, deform_num_groups=2
    )
    offset = block.conv2_offset
    assert offset.weight.shape == (channels, 4, 3, 3) and offset.bias.shape == (channels,)
    assert not offset.weight.any() and not offset.bias.any()
    assert offset.stride == (2, 2) and offset.dilation == offset.padding == (2, 2)
    assert "conv2.weight" in block.state_dict() and "conv2.bias" not in block.state_dict()
    assert "conv2.norm.weight" in block.state_dict()


@pytest.mark.embedded_only
@pytest.mark.parametrize("modulated, scale", [(False, 1.0), (True, 0.5)])
def test_deform_block_with_zero_offsets_is_a_bottleneck(modulated, scale):
    block = DeformBottleneckBlock(4, 4, bottleneck_channels=2, norm="", deform_modulated=modulated)
    plain = BottleneckBlock(4, 4, bottleneck_channels=2, norm="")
    plain.load_state_dict(block.state_dict(), strict=False)
    with torch.no_grad():
        plain.conv2.weight.mul_(scale)  # sigmoid(0) = .5
    x = torch.randn(1, 4, 5, 6)
    torch.testing.assert_close(block(x), plain(x))


@pytest.mark.embedded_only
def test_modulated_block_splits_offsets_from_mask():
    block = DeformBottleneckBlock(4, 4, bottleneck_channels=2, norm="", deform_modulated=True)
    with torch.no_grad():
        block.conv2_offset.bias[18:] = 100.0  # last third: sigmoid -> 1
        block.conv2_offset.bias[0:18:2] = 1.0  # dy of every kernel cell: one row down
    x = torch.randn(1, 4, 5, 6)
    y = nn.functional.conv2d(x, block.conv1.weight).relu()
    shifted = nn.functional.pad(y, (1, 1, 1, 2))[:, :, 1:]  # zeros outside
    y = nn.functional.conv2d(shifted, block.conv2.weight).relu()
    y = nn.functional.conv2d(y, block.conv3.weight)
    torch.testing.assert_close(block(x), (y + x).relu())


def test_resnet_features_and_shapes():
    net = resnet18(out_features=OmegaConf.create(["stem", "res3", "res4"])).eval()
    out = net(torch.zeros(1, 3, 64, 96))
    shapes = net.output_shape()
    assert list(shapes) == ["stem", "res3", "res4"] and set(out) == set(shapes)
    for name, spec in shapes.items():
        assert out[name].shape == (1, spec.channels, 64 // spec.stride, 96 // spec.stride)
    assert [(s.channels, s.stride) for s in shapes.values()] == [(64, 4), (128, 8), (256, 16)]
    assert net.stage_names == ("res2", "res3", "res4") and not hasattr(net, "res5")
    assert len(net.stages) == 3 and "res2.0.conv1.weight" in net.state_dict()
    assert net.size_divisibility == 0 and net.padding_constraints == {}


def test_resnet_outputs_its_last_part_by_default():
    assert list(resnet18().output_shape()) == ["res5"]
    torch.manual_seed(0)
    net = resnet18(num_classes=5).eval()
    assert net(torch.zeros(2, 3, 32, 32))["linear"].shape == (2, 5)
    assert net.linear.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_resnet_refuses_wrong_use():
    with pytest.raises(AssertionError, match="res2"):
        resnet18(out_features=["res2", "res9"])
    with pytest.raises(AssertionError, match=r"\(N, C, H, W\)"):
        resnet18()(torch.zeros(3, 32, 32))


def test_freezing_converts_the_norms():
    net = resnet18(freeze_at=2)
    for part, frozen in ((net.stem, True), (net.res2, True), (net.res3, False)):
        assert all(p.requires_grad != frozen for p in part.parameters())
        norms = [m for m in part.modules() if "BatchNorm" in type(m).__name__]
        assert norms and all(isinstance(m, FrozenBatchNorm2d) == frozen for m in norms)
    # frozen norms are buffers, converted ones keep their counter in the checkpoint
    assert "stem.conv1.norm.num_batches_tracked" in net.state_dict()
    assert net.freeze(3) is net
    assert not any(p.requires_grad for p in net.res3.parameters())


def test_make_stage_distributes_per_block_arguments():
    for function in (make_stage, ResNet.make_stage):
        blocks = function(
            BottleneckBlock,
            3,
            in_channels=16,
            out_channels=32,
            bottleneck_channels=8,
            stride_per_block=[2, 1, 1],
            dilation_per_block=OmegaConf.create([1, 2, 3]),
        )
        assert [b.in_channels for b in blocks] == [16, 32, 32]
        assert [b.stride for b in blocks] == [2, 1, 1]
        assert [b.conv2.dilation[0] for b in blocks] == [1, 2, 3]
    common = {"in_channels": 4, "out_channels": 4}
    with pytest.raises(AssertionError, match="stride_per_block"):
        make_stage(BasicBlock, 2, stride_per_block=[1], **common)
    with pytest.raises(AssertionError, match="both stride"):
        make_stage(BasicBlock, 1, stride_per_block=[1], stride=2, **common)


@pytest.mark.parametrize("depth, counts", [(18, [2, 2, 2, 2]), (34, [3, 4, 6, 3]), (50, [3, 4, 6, 3])])
def test_default_stages(depth, counts):
    with torch.device("meta"):
        stages = ResNet.make_default_stages(depth)
    assert [len(s) for s in stages] == counts
    assert [s[0].stride for s in stages] == [1, 2, 2, 2]
    scale = 1 if depth < 50 else 4
    assert [s[-1].out_channels for s in stages] == [64 * scale * 2**i for i in range(4)]
    assert isinstance(stages[0][0], BasicBlock if depth < 50 else BottleneckBlock)
    if depth >= 50:
        assert [s[0].conv2.in_channels for s in stages] == [64, 128, 256, 512]


@pytest.mark.embedded_only
def test_unknown_depth_is_named():
    with pytest.raises(KeyError, match="No ResNet of depth 19"):
        ResNet.make_default_stages(19)


def test_fpn_equals_a_slow_pyramid():
    torch.manual_seed(0)
    bottom_up = Tiny()
    fpn = FPN(bottom_up, ["t0", "t1", "t2"], 4, top_block=LastLevelP6P7(2, 4, "t2"))
    x = torch.randn(2, 1, 64, 96)
    out, maps = fpn(x), bottom_up(x)
    lateral = [getattr(fpn, f"fpn_lateral{s}")(maps[f"t{s - 3}"]) for s in (3, 4, 5)]
    up = lambda y: y.repeat_interleave(2, 2).repeat_interleave(2, 3)  # noqa: E731
    p4 = lateral[1] + up(lateral[2])
    fused = {"p3": lateral[0] + up(p4), "p4": p4, "p5": lateral[2]}
    for name, y in fused.items():
        torch.testing.assert_close(out[name], getattr(fpn, f"fpn_output{name[1]}")(y))
    p6 = fpn.top_block.p6(maps["t2"])
    torch.testing.assert_close(out["p6"], p6)
    torch.testing.assert_close(out["p7"], fpn.top_block.p7(p6.relu()))
    assert list(out) == list(fpn.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]
    assert [s.stride for s in fpn.output_shape().values()] == [8, 16, 32, 64, 128]
    assert fpn.size_divisibility == 32  # not the top block's 128


def test_fpn_fuse_by_average():
    fpn = FPN(Tiny((8, 16)), ["t0", "t1"], 4, fuse_type="avg")
    x = torch.randn(1, 1, 32, 32)
    maps = fpn.bottom_up(x)
    coarse = fpn.fpn_lateral4(maps["t1"])
    up = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = fpn.fpn_output3((fpn.fpn_lateral3(maps["t0"]) + up) / 2)
    torch.testing.assert_close(fpn(x)["p3"], expected)


def test_fpn_top_block_may_read_the_fpn_itself():
    fpn = FPN(Tiny(), ["t0", "t1", "t2"], 4, top_block=LastLevelMaxPool())
    out = fpn(torch.randn(1, 1, 128, 64))
    torch.testing.assert_close(out["p6"], out["p5"][:, :, ::2, ::2])
    assert list(out) == ["p3", "p4", "p5", "p6"]


def test_fpn_keys_order_and_bias():
    fpn = FPN(Tiny((4, 8)), OmegaConf.create(["t0", "t1"]), 4, top_block=LastLevelP6P7(2, 4, "t1"))
    order = [n.rpartition(".")[0] for n, _ in fpn.named_parameters() if n.endswith("weight")]
    levels = ["fpn_lateral2", "fpn_output2", "fpn_lateral3", "fpn_output3"]
    assert order == [*levels, "top_block.p6", "top_block.p7"]
    assert list(dict(fpn.named_children()))[-2:] == ["top_block", "bottom_up"]
    assert fpn.fpn_lateral2.bias is not None and fpn.fpn_output2.bias.abs().sum() == 0
    assert [c.in_channels for c in fpn.lateral_convs] == [2, 2]
    assert fpn.lateral_convs[0] is fpn.fpn_lateral3 and fpn.output_convs[1] is fpn.fpn_output2
    normed = FPN(Tiny((4,)), ["t0"], 32, norm="GN")
    assert set(normed.state_dict()) == {
        f"fpn_{kind}2.{key}" for kind in ("lateral", "output") for key in ("weight", "norm.weight", "norm.bias")
    }


def test_fpn_padding_constraints():
    assert FPN(Tiny(), ["t2"], 4).padding_constraints == {"square_size": 0}
    assert FPN(Tiny(), ["t2"], 4, square_pad=64).padding_constraints == {"square_size": 64}


def test_fpn_strides_must_double():
    with pytest.raises(AssertionError, match="(?i)strides"):
        FPN(Tiny((8, 32)), ["t0", "t1"], 4)


@pytest.mark.embedded_only
def test_fpn_refuses_unknown_fusion_and_no_features():
    with pytest.raises(AssertionError, match="avg or sum, got 'max'"):
        FPN(Tiny(), ["t0"], 4, fuse_type="max")
    with pytest.raises(AssertionError, match="at least one"):
        FPN(Tiny(), [], 4)


def resnet_cfg(**resnets):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    for key, value in resnets.items():
        cfg.MODEL.RESNETS[key] = value
    return cfg


def small(**kwargs):
    return resnet_cfg(DEPTH=18, RES2_OUT_CHANNELS=64, **kwargs)


def test_builder_freezes_and_cuts_after_drawing():
    """All four stages draw random numbers, also those that OUT_FEATURES then drops."""
    cfg = small(OUT_FEATURES=["res2"])
    torch.manual_seed(7)
    net = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    after = torch.rand(1)
    torch.manual_seed(7)
    ResNet(BasicStem(norm="FrozenBN"), ResNet.make_default_stages(18, norm="FrozenBN"))
    assert torch.equal(after, torch.rand(1))
    assert list(net.output_shape()) == ["res2"] and net.stage_names == ("res2",)
    assert not any(p.requires_grad for p in net.parameters())  # FREEZE_AT 2


def test_builder_reads_the_bottleneck_options():
    cfg = resnet_cfg(
        NUM_GROUPS=2,
        WIDTH_PER_GROUP=16,
        RES2_OUT_CHANNELS=64,
        STEM_OUT_CHANNELS=8,
        RES5_DILATION=2,
        DEFORM_ON_PER_STAGE=[False, False, True, False],
        DEFORM_MODULATED=True,
        NORM="",
    )
    net = build_backbone(cfg)
    assert net.stem.conv1.out_channels == 8 and net.res2[0].shortcut.in_channels == 8
    assert net.res2[0].conv2.groups == 2
    assert [s[0].conv1.out_channels for s in net.stages] == [32, 64, 128, 256]
    assert [s[0].out_channels for s in net.stages] == [64, 128, 256, 512]
    assert [isinstance(s[-1], DeformBottleneckBlock) for s in net.stages] == [0, 0, 1, 0]
    assert net.res4[0].conv2_offset.out_channels == 27
    assert [b.conv2.dilation for b in net.res5] == [(2, 2)] * 3
    assert [s.stride for s in net.output_shape().values()] == [8, 16, 16]
    assert net.res3[0].conv1.stride == (2, 2)  # STRIDE_IN_1X1 is the default


@pytest.mark.parametrize(
    "change",
    [
        {"RES2_OUT_CHANNELS": 256},
        {"RES5_DILATION": 2},
        {"NUM_GROUPS": 2},
        {"DEFORM_ON_PER_STAGE": [False, True, False, False]},
    ],
)
def test_small_resnets_refuse_bottleneck_options(change):
    cfg = resnet_cfg(**{"DEPTH": 18, "RES2_OUT_CHANNELS": 64, **change})
    with pytest.raises(AssertionError):
        build_resnet_backbone(cfg, ShapeSpec(channels=3))


def test_fpn_builders():
    cfg = small()
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    fpn = build_backbone(OmegaConf.create(cfg.dump()))
    assert fpn.top_block.p6.in_channels == 512 and fpn.top_block.in_feature == "res5"
    assert list(fpn.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.PIXEL_MEAN = [0.0]  # sets the channels of the images
    x = torch.rand(1, 1, 32, 32)
    fpn = build_backbone(cfg).eval()
    cfg.MODEL.FPN.FUSE_TYPE = "avg"
    average = build_backbone(cfg).eval()
    average.load_state_dict(fpn.state_dict())
    assert torch.equal(fpn(x)["p5"], average(x)["p5"])
    assert not torch.allclose(fpn(x)["p4"], average(x)["p4"])
    assert isinstance(fpn.top_block, LastLevelMaxPool) and fpn.bottom_up.stem.conv1.in_channels == 1
    assert list(fpn(x)) == ["p3", "p4", "p5", "p6"]


def test_builder_wants_a_backbone():
    name = "backbone_that_is_none"
    if name not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY._do_register(name, lambda cfg, shape: nn.Identity())
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    with pytest.raises(AssertionError):
        build_backbone(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_swin"
    with pytest.raises(KeyError, match="build_swin"):
        build_backbone(cfg)
