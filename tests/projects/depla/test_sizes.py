"""Parameters and multiply-adds of whole models: the counts that the README gives, the paper's where they agree."""

import pytest

from projects.DEPLA import DEPLA, DEPLASpec, depla_resnet
from projects.DEPLA.fpn import FPN_SPEC
from shared.modeling.fishnet import FishNet
from tests.projects.depla.cost import cost

IMAGE = (1, 3, 224, 224)
TOLERANCE = 6e-4  # of the README's three decimals
ADAPTIVE, WIDE = {"back_filling": "adaptive"}, {"mid_channels": 128}


def resnet(depth, se_ratio, spec):
    depla = None if spec is None else DEPLASpec(**spec)
    return lambda: depla_resnet(depth, depla=depla, se_ratio=se_ratio, norm="BN", num_classes=1000)


@pytest.mark.parametrize(
    "depth, se_ratio, spec, parameters, flops",
    [
        (50, 0, None, 25_557_032, 4.112),
        (101, 0, None, 44_549_160, 7.834),
        (152, 0, None, 60_192_808, 11.559),
        (50, 16, None, 28_088_024, 4.120),
        (101, 16, None, 49_326_872, 7.848),
        # every hyper-parameter as printed: + 3 (2 x 64 x 1024 + 16 x 64 + 16 x 16 + 16 x 1024) parameters
        (50, 0, {}, 25_557_032 + 446_208, 4.200),
        (50, 0, ADAPTIVE, 26_050_088, 4.209),
        (50, 16, {}, 28_088_024 + 446_208, 4.208),
        (101, 16, {}, 49_326_872 + 446_208, 7.936),
        # C' = 128
        (50, 0, WIDE, 27_771_944, 4.543),
        (50, 0, {**WIDE, **ADAPTIVE}, 28_211_240, 4.621),
        (50, 16, WIDE, 30_302_936, 4.551),
        (101, 16, WIDE, 51_541_784, 8.279),
    ],
)
def test_resnets(depth, se_ratio, spec, parameters, flops):
    measured = cost(resnet(depth, se_ratio, spec), IMAGE)
    assert measured[0] == parameters
    assert measured[1] == pytest.approx(flops, abs=TOLERANCE)


@pytest.mark.parametrize(
    "depth, spec, parameters, flops",
    [
        (99, None, 16_628_904, 4.286),
        (150, None, 24_959_400, 6.431),
        (201, None, 44_584_552, 10.558),
        (150, {}, 24_959_400 + 463_360, 6.638),
        (150, ADAPTIVE, 25_480_616, 6.661),
        (150, WIDE, 26_960_296, 7.292),
    ],
)
def test_fishnets(depth, spec, parameters, flops):
    """FishNet's own paper: 16.6 M and 4.31 G, 25.0 M and 6.45 G, 44.6 M and 10.58 G."""
    aggregation = None if spec is None else DEPLASpec(**spec)
    measured = cost(lambda: FishNet(depth, aggregation=aggregation, num_classes=1000), IMAGE)
    assert measured[0] == parameters
    assert measured[1] == pytest.approx(flops, abs=TOLERANCE)


def test_fpn_sites():
    """An image of 800 x 1333: P2 of 200 x 334, P3 of 100 x 167, P4 of 50 x 84. 3 x 41,472 parameters, 2.65 G."""
    found = [
        cost(lambda: DEPLA(256, 256, spec=FPN_SPEC), (1, 256, h, w), (1, 256, -(-h // 2), -(-w // 2)))
        for h, w in ((200, 334), (100, 167), (50, 84))
    ]
    assert [parameters for parameters, _ in found] == [41_472] * 3
    assert sum(flops for _, flops in found) == pytest.approx(2.650, abs=TOLERANCE)
