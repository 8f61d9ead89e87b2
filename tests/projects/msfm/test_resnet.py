"""Blocks and stages with MSFMs: where they stand, the start, weights of a plain ResNet, refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet50

from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import DeformBottleneckBlock
from projects.MSFM import MSFM, MSFMBottleneckBlock, MSFMDeformBottleneckBlock, MSFMSpec, make_msfm_stages
from shared.classification.weights import fit_backbone
from tests.projects.msfm.nets import ALL, NARROW, NARROW_RATIOS, narrow_resnet, randomised

EVERYWHERE = {"positions": (1, 2, 3)}


def modules(net):
    return {name: m for name, m in net.named_modules() if isinstance(m, MSFM)}


def images(n=1, height=64, width=96, seed=0):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def resnet(depth, **spec):
    with torch.device("meta"):
        return ResNet(BasicStem(norm="BN"), make_msfm_stages(depth, msfm=MSFMSpec(**spec)), out_features=ALL)


@pytest.mark.parametrize("depth, number", [(50, 13), (101, 30)])
def test_one_in_every_block_of_three_stages(depth, number):
    found = modules(resnet(depth, **EVERYWHERE))
    for position, thin in ((1, 8), (2, 8), (3, 32)):
        here = {name: m for name, m in found.items() if name.endswith(f"msfm{position}")}
        assert len(here) == number
        assert {m.squeeze.out_channels for m in here.values()} == {thin}
        assert {m.squeeze.in_channels for m in here.values()} == {thin * r for r in (16, 32, 64)}
    assert len(found) == 3 * number and {name[:4] for name in found} == {"res3", "res4", "res5"}
    assert {m.unsqueeze.norm.num_groups for name, m in found.items() if name.endswith("msfm2")} == {4}


def test_stages_and_ratios():
    """Any stages, each with its ratio; the class of other blocks stays."""
    net = narrow_resnet(stages=("res5", "res2"), ratios=(16, 2), positions=(3,))
    assert {name[:4] for name in modules(net)} == {"res2", "res5"}
    assert net.res2[0].msfm3.squeeze.out_channels == net.res5[2].msfm3.squeeze.out_channels == 32
    assert type(net.res3[0]).__name__ == "BottleneckBlock"


@pytest.mark.parametrize("impl", ["folded", "plain"])
def test_starts_as_the_plain_backbone(impl):
    """Bit for bit, in training and evaluation; for a seed the plain layers start with the same weights, too."""
    ours, plain = narrow_resnet(impl=impl, **EVERYWHERE), narrow_resnet(with_msfm=False)
    x = images(2)
    for mode in (True, False):
        expected = plain.train(mode)(x)
        for name, y in ours.train(mode)(x).items():
            assert torch.equal(y, expected[name]), name
    randomised(ours)
    assert (ours(x)["res2"] != expected["res2"]).any()  # batch norms are randomised as well
    assert all((ours(x)[name] != expected[name]).any() for name in ALL)


def test_takes_the_weights_of_a_plain_resnet():
    """48 tensors a module are missing and nothing else; torchvision's names fit as well."""
    ours, plain = narrow_resnet(seed=1, **EVERYWHERE), narrow_resnet(with_msfm=False)
    left = ours.load_state_dict(plain.state_dict(), strict=False)
    assert left.unexpected_keys == []
    assert len(left.missing_keys) == 48 * 39 and all(".msfm" in key for key in left.missing_keys)
    torch.testing.assert_close(ours.res4[1].conv2.weight, plain.res4[1].conv2.weight)
    with torch.device("meta"):
        fit = fit_backbone(resnet50().state_dict(), resnet(50))
    names = set(resnet(50).state_dict())
    assert set(fit.weights) <= names and all(".msfm" in key for key in names - set(fit.weights))
    assert len(names - set(fit.weights)) == 48 * 26


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor - 1


def test_positions():
    """conv1, norm, ReLU, position 1; conv2, norm, ReLU, position 2; conv3, norm, position 3; shortcut; ReLU."""
    torch.manual_seed(0)
    spec = MSFMSpec(norm_groups=(2, 2, 2), stages=("res4",), ratios=(4,), positions=(1, 2, 3))
    block = MSFMBottleneckBlock(6, 16, bottleneck_channels=8, stride=2, norm="BN", msfm=spec, stage="res4")
    block.msfm1, block.msfm2, block.msfm3 = Times(2), Times(3), Times(5)
    x = torch.randn(2, 6, 7, 9)
    out = F.relu(block.conv1(x)) * 2 - 1
    out = F.relu(block.conv2(out)) * 3 - 1
    expected = F.relu(block.conv3(out) * 5 - 1 + block.shortcut(x))
    torch.testing.assert_close(block(x), expected)
    assert expected.shape == (2, 16, 4, 5)


def test_position_1_of_a_strided_block_has_the_finer_map():
    spec = MSFMSpec(norm_groups=(2, 2, 2), stages=("res4",), ratios=(4,), positions=(1, 2, 3))
    for in_1x1, first in ((False, (8, 12)), (True, (4, 6))):
        block = MSFMBottleneckBlock(
            6, 16, bottleneck_channels=8, stride=2, norm="BN", stride_in_1x1=in_1x1, msfm=spec, stage="res4"
        )
        seen = {}
        for module in modules(block).values():
            module.register_forward_hook(lambda m, args, out, seen=seen: seen.update({m: tuple(out.shape[1:])}))
        block(torch.randn(2, 6, 8, 12))
        assert list(seen.values()) == [(8, *first), (8, 4, 6), (16, 4, 6)]


def deform_pair(modulated):
    torch.manual_seed(0)
    kwargs = {"bottleneck_channels": 8, "stride": 2, "norm": "BN", "deform_modulated": modulated}
    spec = MSFMSpec(norm_groups=(2, 2, 2), stages=("res4",), ratios=(4,), positions=(1, 2, 3))
    plain = DeformBottleneckBlock(6, 16, **kwargs)
    ours = MSFMDeformBottleneckBlock(6, 16, msfm=spec, stage="res4", **kwargs)
    nn.init.normal_(plain.conv2_offset.weight, std=0.3)
    left = ours.load_state_dict(plain.state_dict(), strict=False)
    assert left.unexpected_keys == [] and all(key.startswith("msfm") for key in left.missing_keys)
    return ours, plain


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_block_has_the_plain_ones_layers(modulated):
    ours, plain = deform_pair(modulated)
    assert ours.conv2_offset.out_channels == (27 if modulated else 18)
    assert len(modules(ours)) == 3 and ours.stride == plain.stride == 2


@pytest.mark.embedded_only  # upstream has no deformable convolution on a CPU
@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_block_starts_as_the_plain_one(modulated):
    ours, plain = deform_pair(modulated)
    x = torch.randn(2, 6, 9, 12)
    assert torch.equal(ours(x), plain(x))
    ours.msfm2 = Times(3)
    y = plain.conv1(x).relu()
    args = [plain.conv2_offset(y)]
    if modulated:
        args = [args[0][:, :18], args[0][:, 18:].sigmoid()]
    expected = (plain.conv3(plain.conv2(y, *args).relu() * 3 - 1) + plain.shortcut(x)).relu()
    torch.testing.assert_close(ours(x), expected)


def test_deformable_stages():
    with torch.device("meta"):
        stages = make_msfm_stages(50, deform_on_per_stage=[False, True, True, False], deform_modulated=True)
    kinds = [{type(block) for block in blocks} for blocks in stages[1:]]
    assert kinds == [{MSFMDeformBottleneckBlock}, {MSFMDeformBottleneckBlock}, {MSFMBottleneckBlock}]
    assert stages[1][0].deform_modulated and len(modules(stages[3][0])) == 2


def test_every_parameter_gets_a_gradient():
    net = randomised(narrow_resnet(**EVERYWHERE))
    sum(y.square().mean() for y in net(images(2)).values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_freezing():
    """freeze_at=2 leaves every module trainable, 3 stops those of res3."""
    for freeze_at, frozen in ((2, set()), (3, {"res3"})):
        net = narrow_resnet(freeze_at=freeze_at)
        stopped = {name[:4] for name, m in modules(net).items() if not any(p.requires_grad for p in m.parameters())}
        trained = {name[:4] for name, m in modules(net).items() if all(p.requires_grad for p in m.parameters())}
        assert stopped == frozen and trained == {"res3", "res4", "res5"} - frozen
        assert isinstance(net.res2[0].conv1.norm, FrozenBatchNorm2d)


def test_refusals():
    with pytest.raises(ValueError, match="MSFM stands in bottleneck blocks: depth must be 50, 101 or 152, got 34"):
        make_msfm_stages(34)
    with pytest.raises(ValueError, match="MSFM in res3, position 2: G=5 groups must divide both t=128/16=8 and C=128"):
        make_msfm_stages(50, msfm=MSFMSpec(norm_groups=(8, 5, 32)))
    with pytest.raises(
        ValueError, match="MSFM in res4, position 3: its 256 channels cannot be squeezed by a ratio of 7"
    ):
        make_msfm_stages(50, msfm=MSFMSpec(ratios=(4, 7, 16), positions=(3,)), **NARROW)
    with pytest.raises(ValueError, match="a block of stage 'res2' needs a ratio"):
        MSFMBottleneckBlock(64, 256, bottleneck_channels=64, msfm=MSFMSpec(ratios=NARROW_RATIOS), stage="res2")
