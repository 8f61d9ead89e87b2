"""DEPLA in ResNet and SE-ResNet: blocks, sites, start, freezing, refusals."""

import pytest
import torch
from torch import nn

from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BottleneckBlock
from projects.DEPLA import DEPLA, DEPLABottleneckBlock, DEPLASpec, depla_resnet
from shared.modeling.se_resnet import SEBottleneckBlock, SEGate
from tests.projects.depla.nets import images

NARROW = {"stem_channels": 8, "res2_channels": 32, "width_per_group": 8, "norm": "BN"}
ALL = ["res2", "res3", "res4", "res5"]


def sites(net):
    return [name for name, m in net.named_modules() if isinstance(m, DEPLA)]


def block(cls=DEPLABottleneckBlock, channels=(12, 20), stride=1, **kwargs):
    torch.manual_seed(0)
    return cls(*channels, bottleneck_channels=6, stride=stride, norm="BN", **kwargs).eval()


@pytest.mark.parametrize("channels, stride", [((20, 20), 1), ((12, 20), 2)])
@pytest.mark.parametrize("se_ratio", [0, 4])
def test_blocks_start_as_their_hosts(channels, stride, se_ratio):
    """With keep_sum the host's output to the bit, without relu(shortcut); the host's weights load."""
    host = block(SEBottleneckBlock, channels, stride, se_ratio=se_ratio)
    x = torch.randn(2, channels[0], 10, 14)
    for keep_sum in (True, False):
        ours = block(channels=channels, stride=stride, se_ratio=se_ratio, depla=DEPLASpec(keep_sum=keep_sum))
        left = ours.load_state_dict(host.state_dict(), strict=False)
        assert left.missing_keys and all(k.startswith("depla.") for k in left.missing_keys) and not left.unexpected_keys
        assert torch.equal(ours(x), host(x) if keep_sum else host.identity(x).relu())


def test_se_block_by_hand():
    """relu(shortcut + residual * sigmoid(...)); without a gate, Detectron2's own block."""
    gated = block(SEBottleneckBlock, se_ratio=4)
    x = torch.randn(2, 12, 10, 14)
    residual = gated.conv3(gated.conv2(gated.conv1(x).relu()).relu())
    hidden = (gated.se.reduce.weight.flatten(1) @ residual.mean(dim=(2, 3)).T).T + gated.se.reduce.bias
    gate = (hidden.relu() @ gated.se.expand.weight.flatten(1).T + gated.se.expand.bias).sigmoid()
    torch.testing.assert_close(gated(x), (residual * gate[:, :, None, None] + gated.shortcut(x)).relu())
    assert gate.std() > 0.01
    plain, host = block(SEBottleneckBlock, se_ratio=0), block(BottleneckBlock)
    assert torch.equal(plain(x), host(x)) and list(plain.state_dict()) == list(host.state_dict())
    with pytest.raises(ValueError, match="ratio must divide the 20 channels, got 16"):
        SEGate(20, 16)


def test_gate_comes_before_depla():
    """Y is the residual after its gate."""
    ours = block(se_ratio=4, depla=DEPLASpec(zero_init=False))
    seen = []
    ours.depla.register_forward_hook(lambda _, inputs, __: seen.append(inputs))
    x = torch.randn(1, 12, 10, 14)
    out = ours(x)
    (identity, candidate), residual = seen[0], ours.conv3(ours.conv2(ours.conv1(x).relu()).relu())
    torch.testing.assert_close(candidate, ours.se(residual))
    torch.testing.assert_close(identity, ours.shortcut(x))
    torch.testing.assert_close(out, ours.depla(identity, candidate).relu())


@pytest.mark.parametrize("depth, last", [(50, (3, 4, 5)), (101, (20, 21, 22)), (152, (33, 34, 35))])
def test_the_last_three_blocks_of_res4(depth, last):
    with torch.device("meta"):
        net = depla_resnet(depth, **NARROW)
    assert sites(net) == [f"res4.{i}.depla" for i in last]


def test_other_sites_and_the_host():
    with torch.device("meta"):
        net = depla_resnet(stage="res3", blocks=[0, -1], se_ratio=16, out_features=ALL, **NARROW)
        host = depla_resnet(depla=None, se_ratio=16, out_features=ALL, **NARROW)
    assert sites(net) == ["res3.0.depla", "res3.3.depla"] and sites(host) == []
    assert len([m for m in host.modules() if isinstance(m, SEGate)]) == 16
    ours = [k for k in net.state_dict() if ".depla." not in k]
    assert ours == list(host.state_dict()) and net.output_shape() == host.output_shape()


def test_whole_networks_start_alike():
    """With keep_sum DEPLA-ResNet gives what the ResNet gives, to the bit."""
    torch.manual_seed(0)
    host = depla_resnet(depla=None, out_features=ALL, **NARROW).eval()
    ours = depla_resnet(depla=DEPLASpec(keep_sum=True), out_features=ALL, **NARROW).eval()
    ours.load_state_dict(host.state_dict(), strict=False)
    x = images(1)
    with torch.no_grad():
        expected, found = host(x), ours(x)
    assert all(torch.equal(found[name], expected[name]) for name in ALL)


def test_freezing_a_stage_freezes_its_depla():
    net = depla_resnet(depla=DEPLASpec(norm="BN"), freeze_at=4, **NARROW)
    assert not any(p.requires_grad for p in net.res4.parameters()) and all(
        p.requires_grad for p in net.res5.parameters()
    )
    assert isinstance(net.res4[5].depla.refine.norm, FrozenBatchNorm2d)
    assert all(p.requires_grad for p in depla_resnet(freeze_at=3, **NARROW).res4.parameters())


@pytest.mark.parametrize("spec", [{}, {"back_filling": "adaptive", "keep_sum": True, "norm": "BN"}])
def test_learns_two_images(spec):
    torch.manual_seed(0)
    blocks = [
        [block(channels=(8, 16), depla=DEPLASpec(**spec))],
        [block(channels=(16, 32), stride=2, depla=DEPLASpec(**spec))],
    ]
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), blocks[0][0], blocks[1][0], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(net, nn.Linear(32, 2)).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(net(images()), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_refusals():
    with pytest.raises(ValueError, match="depth must be 50, 101 or 152, got 34"):
        depla_resnet(34)
    with pytest.raises(ValueError, match="stage must be one of res2, res3, res4, res5, got 'stem'"):
        depla_resnet(stage="stem")
    for blocks in ([6], [-7], [5, -1]):
        with pytest.raises(ValueError, match="different indices of the stage's 6 blocks"):
            depla_resnet(blocks=blocks, **NARROW)
