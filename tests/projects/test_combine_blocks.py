"""Methods in one bottleneck block: each at its place, in whatever order they come."""

import copy
from dataclasses import replace
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from projects.DEPLA.combine import DEPLAInResNet, SEInResNet
from projects.DEPLA.resnet import depla_resnet
from projects.LIP.combine import LIPInResNet
from projects.LIP.pooling import Pooling
from projects.LIP.resnet import lip_resnet
from projects.MSFM.combine import MSFMInResNet
from projects.MSFM.resnet import MSFMPieces, make_msfm_stages
from projects.MSFM.spec import MSFMSpec
from shared.modeling.bottleneck import add_method
from shared.modeling.changed_resnet import changed_resnet
from shared.modeling.resnet import resnet_stages
from shared.modeling.se_resnet import SEPieces

NARROW = {"stem_channels": 16, "res2_channels": 32, "norm": "BN"}
MSFM_NARROW = {"ratios": (2, 4, 8), "norm_groups": (4, 4, 4), "zero_init": False}
OUT = ["res2", "res3", "res4", "res5"]


def changes():
    pooling = Pooling(width=4, init="random")
    return {
        "lip": LIPInResNet(pooling=pooling),
        "msfm": MSFMInResNet(positions=(1, 2, 3), **MSFM_NARROW),
        "se": SEInResNet(ratio=4),
        "depla": DEPLAInResNet(num_groups=2, mid_channels=3, maps_per_group=2, blocks=(0, 2, -1), zero_init=False),
    }


def resnet(deform=(False,) * 4, freeze_at=0, **chosen):
    stem = BasicStem(3, NARROW["stem_channels"], "BN")
    stages = resnet_stages(50, stride_in_1x1=True, width_per_group=8, deform_on_per_stage=deform, **NARROW)
    return changed_resnet(base=ResNet, stem=stem, stages=stages, out_features=OUT, freeze_at=freeze_at, **chosen)


def images(n=2):
    return torch.randn(n, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_all_four_in_one_block_by_hand():
    """res4's first block: both branches pooled, three MSFMs, the gate on the whole branch, DEPLA as the sum."""
    torch.manual_seed(0)
    block = resnet(**changes()).res4[0].eval()
    x = torch.randn(2, block.in_channels, 8, 10)
    trunk = block.logit_trunk(x)
    y = block.msfm1(F.relu(block.conv1(x)))
    y = block.msfm2(F.relu(block.conv2(block.main_pool(y, trunk))))
    y = block.se(block.msfm3(block.conv3(y)))
    expected = F.relu(block.depla(block.shortcut(block.shortcut_pool(x, trunk)), y))
    torch.testing.assert_close(block(x), expected)
    assert expected.shape == (2, block.out_channels, 4, 5)
    for name in ("msfm1", "msfm2", "msfm3", "se", "depla"):  # each of them matters
        kept = getattr(block, name)
        setattr(block, name, None if name in ("se", "depla") else nn.Identity())
        assert not torch.allclose(block(x), expected), name
        setattr(block, name, kept)


def test_the_order_in_which_methods_come_changes_nothing():
    torch.manual_seed(0)
    stages = [
        [BottleneckBlock(ins, outs, bottleneck_channels=outs // 4, stride=2)]
        for ins, outs in ((16, 32), (32, 64), (64, 128))
    ]
    plain = ResNet(
        BasicStem(3, 16, "BN"), [[BottleneckBlock(16, 16, bottleneck_channels=4)], *stages], out_features=OUT
    )
    options = {"lip": {"sites": ["stem", "res3", "res4"]}, "msfm": {"stages": ("res4",), "ratios": (2,)}}
    options["depla"] = {"blocks": (0,)}
    found, weights = [], None
    for order in permutations(changes()):
        net = copy.deepcopy(plain)
        for name in order:
            replace(changes()[name], **options.get(name, {})).change(net)
        weights = weights or net.state_dict()
        net.load_state_dict(weights)
        found.append(net.eval()(images())["res4"])
    assert len(found) == 24
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_msfm_alone_is_its_projects_own_for_a_seed():
    torch.manual_seed(3)
    ours = resnet(msfm=MSFMInResNet(**MSFM_NARROW))
    torch.manual_seed(3)
    stem = BasicStem(3, NARROW["stem_channels"], "BN")
    stages = make_msfm_stages(50, msfm=MSFMSpec(**MSFM_NARROW), width_per_group=8, stride_in_1x1=True, **NARROW)
    assert_same_state(ours, ResNet(stem, stages, out_features=OUT), values=True)
    x = torch.randn(2, ours.res3[0].in_channels, 6, 8)
    torch.testing.assert_close(ours.res3[0].eval()(x), stages[1][0].eval()(x))


def assert_same_state(a, b, values):
    a, b = a.state_dict(), b.state_dict()
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    assert not values or all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("kernel_after", [1, 3])
@pytest.mark.parametrize("sites", [["stem", "res3", "res4", "res5"], ["res3.main", "res4.shortcut"]])
def test_lip_in_a_built_resnet_is_lip_resnet(kernel_after, sites):
    options = {"pooling": Pooling(width=4, init="random"), "sites": sites, "kernel_after": kernel_after}
    stages = resnet_stages(50, stride_in_1x1=False, width_per_group=8, **NARROW)
    stem = BasicStem(3, 16, "BN")
    ours = changed_resnet(base=ResNet, stem=stem, stages=stages, out_features=OUT, lip=LIPInResNet(**options))
    own = lip_resnet(50, out_features=OUT, **NARROW, **options)
    assert_same_state(ours, own, values=False)
    own.load_state_dict(ours.state_dict())
    for name, y in own(images()).items():
        torch.testing.assert_close(ours(images())[name], y)


def test_depla_and_gates_in_a_built_resnet_are_depla_resnets():
    options = {"num_groups": 2, "mid_channels": 3, "maps_per_group": 2, "zero_init": False}
    stages = resnet_stages(50, stride_in_1x1=False, width_per_group=8, **NARROW)
    chosen = {"depla": DEPLAInResNet(**options), "se": SEInResNet(ratio=4)}
    ours = changed_resnet(base=ResNet, stem=BasicStem(3, 16, "BN"), stages=stages, out_features=OUT, **chosen)
    spec = chosen["depla"]
    own = depla_resnet(50, depla=spec, se_ratio=4, width_per_group=8, out_features=OUT, **NARROW)
    assert_same_state(ours, own, values=False)
    own.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(images())["res5"], own(images())["res5"])


def test_a_stride_in_the_first_convolution_gives_way_to_pooling():
    """The host's 1x1 convolutions have the stride: pooled branches keep none, so maps have the plain sizes."""
    net, plain = resnet(lip=changes()["lip"]), resnet()
    assert [tuple(b[0].conv1.stride) for b in (plain.res3, net.res3)] == [(2, 2), (1, 1)]
    assert {k: v.shape for k, v in net(images()).items()} == {k: v.shape for k, v in plain(images()).items()}


def test_lip_on_deformable_stages_replaces_the_strided_blocks_convolution_alone():
    net = resnet(deform=(False, False, False, True), lip=changes()["lip"])
    assert net.res5[0].conv2_offset is None and net.res5[0].conv2.kernel_size == (1, 1)
    assert net.res5[1].conv2_offset is not None
    del net.res5[1:]  # upstream has no deformable convolution on a CPU
    assert net(images())["res5"].shape[2:] == (2, 3)


@pytest.mark.embedded_only  # upstream has no deformable convolution on a CPU
@pytest.mark.parametrize("modulated", [False, True])
def test_gates_on_deformable_blocks(modulated):
    stages = resnet_stages(
        50, width_per_group=8, deform_on_per_stage=(False, False, False, True), deform_modulated=modulated, **NARROW
    )
    plain = ResNet(BasicStem(3, 16, "BN"), stages, out_features=OUT).eval()
    nn.init.normal_(plain.res5[0].conv2_offset.weight, std=0.3)
    x = torch.randn(2, plain.res5[0].in_channels, 4, 6)
    expected = plain.res5[0](x)
    add_method(plain.res5[0], SEPieces)
    plain.res5[0].se = None
    torch.testing.assert_close(plain.res5[0](x), expected)


@pytest.mark.parametrize("freeze_stem_pool", [True, False])
def test_what_methods_add_trains_in_frozen_stages(freeze_stem_pool):
    """What the host has there stays frozen. The stem's pool is LIP's to say."""
    chosen = changes()
    chosen["depla"] = replace(chosen["depla"], stage="res3", norm="BN")
    chosen["lip"] = replace(chosen["lip"], freeze_stem_pool=freeze_stem_pool)
    net = resnet(freeze_at=3, **chosen)
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    kept = {name for name, p in resnet(freeze_at=3).named_parameters() if not p.requires_grad}
    pool = {f"stem.pool.{name}" for name, _ in net.stem.pool.named_parameters()}
    new = {"res3.0.conv2.weight"}  # a 1x1 convolution in the place of the host's
    assert pool and new < kept
    assert frozen == kept - new | (pool if freeze_stem_pool else set())
    block = net.res3[0]
    assert all(isinstance(conv.norm, FrozenBatchNorm2d) for conv in (block.conv1, block.conv2, block.conv3))
    assert type(block.depla.refine.norm) is nn.BatchNorm2d


def test_gates_start_near_one():
    """Whatever the features are: pretrained ones stay."""
    torch.manual_seed(0)
    for start, net in ((0.95, resnet(se=SEInResNet(ratio=4))), (0.7, resnet(se=SEInResNet(ratio=4, start=0.7)))):
        gates = [block.se for stage in net.stages for block in stage]
        assert len(gates) == 16
        for gate in gates:
            x = 10 * torch.randn(2, gate.expand.out_channels, 3, 4)
            torch.testing.assert_close(gate(x), start * x)


def test_refusals():
    block = BottleneckBlock(8, 8, bottleneck_channels=4)
    add_method(block, MSFMPieces)
    with pytest.raises(ValueError, match="the block has MSFMPieces already"):
        add_method(block, MSFMPieces)
    with pytest.raises(ValueError, match="BasicBlock is no bottleneck block: take a ResNet of depth 50 or more"):
        add_method(BasicBlock(8, 8), MSFMPieces)
    with pytest.raises(ValueError, match="kernel_after must be 1 or 3, got 2"):
        resnet(lip=LIPInResNet(pooling=Pooling(), kernel_after=2))
    with pytest.raises(ValueError, match="stage must be one of res2, res3, res4, res5, got 'res6'"):
        resnet(depla=DEPLAInResNet(stage="res6"))
    net = resnet(**changes())
    for name, message in (
        ("lip", "BasicStem, got LIPStem"),
        ("se", "has a gate already"),
        ("depla", "has DEPLA already"),
    ):
        with pytest.raises(ValueError, match=message):
            changes()[name].change(net)
