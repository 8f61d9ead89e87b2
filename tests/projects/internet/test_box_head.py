"""Mixing the critic's feature into the box head."""

import pytest
import torch

from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from projects.InterNet import InterNetConvFCHead

from .parts import CHANNELS, DIM, make_box_head


def layers(head, x):
    """fc1's output after ReLU."""
    return head.fc1(torch.nn.functional.avg_pool2d(x, 2).flatten(1)).relu()


@pytest.mark.parametrize("rows", [3, 0])
@pytest.mark.parametrize("fusion", ["linear", "separate", "add"])
def test_fusion_by_its_formula(fusion, rows):
    head = make_box_head(fusion, fusion_weight=0.25)
    x, f = torch.randn(rows, CHANNELS, 14, 14), torch.rand(rows, DIM)
    first = layers(head, x)
    mixed = {"linear": 0.75 * first + 0.25 * f, "separate": first, "add": first + f}[fusion]
    torch.testing.assert_close(head(x, f), head.fc2(mixed).relu())
    assert head(x, f).shape == (rows, 12) and head.output_shape.channels == 12


def test_default_weight_is_one_half():
    head, x, f = make_box_head(), torch.randn(2, CHANNELS, 14, 14), torch.rand(2, DIM)
    torch.testing.assert_close(head(x, f), head.fc2((layers(head, x) + f) / 2).relu())


def test_parameters_are_the_baselines():
    """So that a baseline's checkpoint fits; on 7 x 7 they are the same function."""
    shape = ShapeSpec(channels=CHANNELS, height=7, width=7)
    theirs = FastRCNNConvFCHead(shape, conv_dims=[4], fc_dims=[DIM, 12])
    ours = InterNetConvFCHead(shape, conv_dims=[4], fc_dims=[DIM, 12], fusion="separate", pool=1)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, CHANNELS, 7, 7)
    assert torch.equal(ours(x), theirs(x))
    pooled = InterNetConvFCHead(
        ShapeSpec(channels=CHANNELS, height=14, width=14), conv_dims=[4], fc_dims=[DIM, 12], fusion="separate"
    )
    pooled.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(pooled(x.repeat_interleave(2, 2).repeat_interleave(2, 3)), theirs(x))


@pytest.mark.parametrize(
    "arguments, message",
    [({"fusion": "mean"}, "FUSION"), ({"pool": 3}, "POOLER_RESOLUTION"), ({"pool": 0}, "POOLER_RESOLUTION")],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_box_head(**arguments)
