"""LIP-DenseNet-121 and its plain host."""

import pytest
import torch
from torch import nn

from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from projects.LIP.densenet import STAGES, DenseNet
from projects.LIP.pooling import LIPPool2d, Pooling
from tests.projects.lip.cost import ROUNDED, cost
from tests.projects.lip.nets import images

IMAGENET = {"norm": "BN", "num_classes": 1000}


def small(**kwargs) -> DenseNet:
    """Two layers a stage, growth 4."""
    defaults = {"norm": "BN", "stem_channels": 8, "growth": 4, "blocks": [2, 2, 2, 2], "out_features": STAGES}
    return DenseNet(**{**defaults, "pooling": Pooling(width=8, init="random"), **kwargs})


@pytest.mark.parametrize(
    "kwargs, parameters, conv_and_fc, total",
    [
        ({}, 8_690_920, 4.083, 4.128),
        ({"pooling": Pooling(width=64)}, 8_243_688, 3.538, 3.580),
        ({"sites": []}, 7_978_856, 2.834, 2.866),
    ],
)
def test_parameters_and_flops(kwargs, parameters, conv_and_fc, total):
    """At 224 x 224; the official ones are 8.7 M, 4.13 G and 8.0 M, 2.88 G."""
    measured = cost(DenseNet(**kwargs, **IMAGENET))
    assert measured[0] == parameters
    assert measured[1:] == pytest.approx((conv_and_fc, total), abs=ROUNDED)


@pytest.mark.parametrize(
    "pooling, parameters",
    [
        (Pooling(width=64), 8_243_688),
        (Pooling(width=256), 10_248_936),
        (Pooling(logit="projection"), 8_328_936),
        (Pooling(kind="softpool"), 7_978_856),
    ],
)
def test_parameters_of_ablations(pooling, parameters):
    with torch.device("meta"):
        net = DenseNet(pooling=pooling, **IMAGENET)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("size", [(224, 224), (800, 1344)])
def test_strides_and_channels(size):
    with torch.device("meta"):
        lip, plain = DenseNet(out_features=STAGES), DenseNet(sites=[], out_features=STAGES)
        x = torch.zeros(1, 3, *size)
    assert lip.output_shape() == plain.output_shape()
    channels = {"dense2": 256, "dense3": 512, "dense4": 1024, "dense5": 1024}
    expected = {name: ShapeSpec(channels=c, stride=4 * 2**i) for i, (name, c) in enumerate(channels.items())}
    assert lip.output_shape() == expected
    outputs = lip(x)
    for name, spec in expected.items():
        assert outputs[name].shape == (1, spec.channels, size[0] // spec.stride, size[1] // spec.stride)


def test_sites_and_start():
    net = small(sites=["stem", "dense4"])
    assert [n for n, m in net.named_modules() if isinstance(m, LIPPool2d)] == ["stem.pool", "dense4.transition.pool"]
    assert isinstance(net.dense3.transition.pool, nn.AvgPool2d)
    # the published model starts random: no logit module is zeroed
    assert all(m.weight.abs().max() > 0 for m in small().modules() if isinstance(m, nn.Conv2d))
    zeroed = small(pooling=Pooling(width=8))
    plain = small(pooling=Pooling(kind="average"), sites=["stem"])
    plain.load_state_dict(zeroed.state_dict(), strict=False)
    x = images()
    with torch.no_grad():
        for name, y in zeroed.eval()(x).items():
            torch.testing.assert_close(y, plain.eval()(x)[name], rtol=1e-4, atol=1e-5)


def test_transition_pools_its_1x1():
    """relu(norm) of the stage below, 1x1 that halves, LIP 2/2/0 on it: by hand from the net's own parts."""
    torch.manual_seed(0)
    net = small().eval()
    x = net.stem(images())
    below = net.dense2(x)
    reduced = net.dense3.transition.conv(below)
    assert reduced.shape[1] == below.shape[1] // 2 == 8
    pool = net.dense3.transition.pool
    assert (pool.kernel_size, pool.stride, pool.padding) == (2, 2, 0)
    y = pool(reduced)
    for layer in net.dense3.layers:
        new = layer.conv2(layer.norm2(layer.conv1(layer.norm1(y).relu())).relu())
        y = torch.cat([y, new], dim=1)
    torch.testing.assert_close(net(images())["dense3"], net.dense3.norm(y).relu())


def test_freezing_and_gradients():
    net = small(freeze_at=2, num_classes=3, out_features=["linear"])
    for part, frozen in ((net.stem, True), (net.dense2, True), (net.dense3, False)):
        assert {p.requires_grad for p in part.parameters()} == {not frozen} or not list(part.parameters())
    assert isinstance(net.dense2.norm, FrozenBatchNorm2d) and isinstance(net.dense3.norm, nn.BatchNorm2d)
    assert isinstance(net.stem.pool.logit.norm, nn.InstanceNorm2d)
    nn.functional.cross_entropy(net(images())["linear"], torch.tensor([0, 2])).backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
    kept = small(freeze_at=1, freeze_stem_pool=False)
    assert all(p.requires_grad for p in kept.stem.pool.parameters())


def test_refusals():
    with pytest.raises(ValueError, match="DenseNet has no site 'dense2'"):
        small(sites=["dense2"])
    with pytest.raises(ValueError, match="4 stages, got blocks=\\[6, 12\\]"):
        small(blocks=[6, 12])
    with pytest.raises(ValueError, match="out_features must be among stem, dense2"):
        small(out_features=["res2"])
