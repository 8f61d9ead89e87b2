"""Box head."""

import pytest
import torch
from omegaconf import OmegaConf

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, build_box_head


def first(tensor):
    return round(tensor.flatten()[0].item(), 5)


def test_box_head_initialisation_equals_the_recorded_seed():
    torch.manual_seed(7)
    shape = ShapeSpec(channels=8, height=3, width=3)
    head = FastRCNNConvFCHead(shape, conv_dims=[8, 8], fc_dims=[16, 16])
    assert [first(head.get_submodule(n).weight) for n in ("conv1", "conv2", "fc1", "fc2")] == [
        0.13432,
        -0.18229,
        0.07449,
        -0.31317,
    ]
    assert all((p == 0).all() for name, p in head.named_parameters() if name.endswith("bias"))
    assert list(head.state_dict()) == [
        f"{layer}.{kind}" for layer in ("conv1", "conv2", "fc1", "fc2") for kind in ("weight", "bias")
    ]


def test_box_head_is_convs_flatten_fcs_each_with_relu():
    shape = ShapeSpec(channels=2, height=3, width=4)
    head = FastRCNNConvFCHead(shape, conv_dims=OmegaConf.create([3]), fc_dims=OmegaConf.create([5]))
    x = torch.randn(6, 2, 3, 4)
    y = torch.nn.functional.conv2d(x, head.conv1.weight, padding=1).relu().flatten(1)
    expected = (y @ head.fc1.weight.T).relu()
    torch.testing.assert_close(head(x), expected)
    assert head.output_shape == ShapeSpec(channels=5)
    assert head(x[:0]).shape == (0, 5)


def test_box_head_of_convs_alone_puts_out_maps_and_norm_replaces_the_bias():
    shape = ShapeSpec(channels=2, height=3, width=4)
    head = FastRCNNConvFCHead(shape, conv_dims=[32], fc_dims=[], conv_norm="GN")
    assert head.output_shape == ShapeSpec(channels=32, height=3, width=4)
    assert list(head.state_dict()) == ["conv1.weight", "conv1.norm.weight", "conv1.norm.bias"]
    assert head(torch.randn(1, 2, 3, 4)).shape == (1, 32, 3, 4)


def test_box_head_needs_a_layer():
    with pytest.raises(AssertionError):
        FastRCNNConvFCHead(ShapeSpec(channels=2, height=3, width=4), conv_dims=[], fc_dims=[])


def test_box_head_from_config():
    cfg = get_cfg()
    cfg.merge_from_list(
        "MODEL.ROI_BOX_HEAD.NAME FastRCNNConvFCHead MODEL.ROI_BOX_HEAD.NUM_CONV 2 "
        "MODEL.ROI_BOX_HEAD.CONV_DIM 32 MODEL.ROI_BOX_HEAD.NUM_FC 1 MODEL.ROI_BOX_HEAD.FC_DIM 6 "
        "MODEL.ROI_BOX_HEAD.NORM GN".split()
    )
    head = build_box_head(cfg, ShapeSpec(channels=2, height=3, width=3))
    shapes = {k: tuple(v.shape) for k, v in head.state_dict().items() if "norm" not in k}
    assert shapes == {
        "conv1.weight": (32, 2, 3, 3),
        "conv2.weight": (32, 32, 3, 3),
        "fc1.weight": (6, 288),
        "fc1.bias": (6,),
    }
