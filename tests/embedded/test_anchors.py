"""Anchors: geometry, order, broadcasting over levels, and the two defaults of the offset."""

import pytest
import torch
from omegaconf import OmegaConf

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, build_anchor_generator
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator


def make(sizes=((32,),), aspect_ratios=((1.0,),), strides=(16,), **kwargs):
    return DefaultAnchorGenerator(
        sizes=[list(s) for s in sizes], aspect_ratios=[list(a) for a in aspect_ratios], strides=list(strides), **kwargs
    )


def test_hand_computed_anchors():
    generator = make(aspect_ratios=[[0.5, 1, 2]], offset=0.5)
    (anchors,) = generator([torch.zeros(1, 1, 1, 2)])
    # ratio .5: w = sqrt(1024 / .5) = 45.2548, h = w / 2 = 22.6274, centre (8, 8)
    expected = torch.tensor([-14.6274, -3.3137, 30.6274, 19.3137])
    torch.testing.assert_close(anchors.tensor[0], expected, atol=1e-4, rtol=0)
    # ratio 1 of the second cell: centre (24, 8), half a side 16
    torch.testing.assert_close(anchors.tensor[4], torch.tensor([8.0, -8.0, 40.0, 24.0]))
    # ratio 2: height / width, so w = 22.6274, h = 45.2548
    torch.testing.assert_close(anchors.tensor[2, 2] - anchors.tensor[2, 0], torch.tensor(22.627417))


def test_order_is_row_column_size_ratio():
    generator = make(sizes=[[4, 8]], aspect_ratios=[[1.0, 4.0]], strides=[10], offset=0.0)
    (anchors,) = generator([torch.zeros(2, 5, 2, 3)])
    assert anchors.tensor.dtype == torch.float32 and len(anchors) == 2 * 3 * 4
    centers = anchors.get_centers().reshape(2, 3, 4, 2)
    rows, cols = torch.meshgrid(torch.arange(2) * 10.0, torch.arange(3) * 10.0, indexing="ij")
    torch.testing.assert_close(centers[..., 0], cols[..., None].expand(2, 3, 4))
    torch.testing.assert_close(centers[..., 1], rows[..., None].expand(2, 3, 4))
    widths = (anchors.tensor[:4, 2] - anchors.tensor[:4, 0]).tolist()
    assert widths == [4, 2, 8, 4]  # sqrt(size^2 / ratio)


@pytest.mark.parametrize("sizes", [[16, 32], [[16, 32]], [[16, 32], [16, 32]]])
def test_one_list_serves_all_levels(sizes):
    generator = DefaultAnchorGenerator(sizes=sizes, aspect_ratios=[1.0], strides=[8, 16])
    assert generator.num_anchors == generator.num_cell_anchors == [2, 2]
    assert generator.num_features == 2 and generator.box_dim == 4
    fine, coarse = generator([torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 1)])
    assert (len(fine), len(coarse)) == (8, 2)
    assert fine.tensor[0].tolist() == [-4, -4, 12, 12]  # class default of the offset: 0.5
    assert coarse.tensor[0].tolist() == [0, 0, 16, 16]


def test_levels_may_have_different_sizes():
    generator = make(sizes=[[8], [16, 32]], strides=(8, 16))
    assert generator.num_anchors == [1, 2]


def test_config_types_are_accepted():
    c = OmegaConf.create({"s": [[8], [16]], "a": [0.5, 1.0], "t": [8, 16]})
    generator = DefaultAnchorGenerator(sizes=c.s, aspect_ratios=c.a, strides=c.t)
    assert generator.num_anchors == [2, 2]
    assert len(generator([torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 1)])[0]) == 8


def test_buffers_follow_the_module_but_not_the_checkpoint():
    generator = make()
    assert generator.state_dict() == {}
    assert [name for name, _ in generator.named_buffers()] == ["cell_anchors.0"]


def test_cell_anchors_are_centred_on_zero():
    cell = make().generate_cell_anchors([2.0, 4.0], [1.0])
    assert cell.tolist() == [[-1, -1, 1, 1], [-2, -2, 2, 2]]


def test_builder_reads_the_config_whose_offset_is_zero():
    cfg = get_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[4]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    for config in (cfg, OmegaConf.create(cfg.dump())):
        generator = build_anchor_generator(config, [ShapeSpec(stride=4), ShapeSpec(stride=8)])
        assert generator.strides == [4, 8] and generator.offset == 0.0
        anchors = generator([torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 1)])[0]
        assert anchors.tensor.tolist() == [[-2, -2, 2, 2], [2, -2, 6, 2]]
    assert "DefaultAnchorGenerator" in ANCHOR_GENERATOR_REGISTRY


@pytest.mark.parametrize("offset", [-0.1, 1.0])
def test_offset_outside_the_cell_is_refused(offset):
    with pytest.raises(AssertionError, match=str(offset)):
        make(offset=offset)


@pytest.mark.embedded_only
def test_lengths_must_fit_the_levels():
    with pytest.raises(AssertionError, match="sizes .* has 2 lists for 3 feature levels"):
        make(sizes=[[8], [16]], strides=(8, 16, 32))
    with pytest.raises(AssertionError, match="aspect_ratios .* is empty"):
        DefaultAnchorGenerator(sizes=[8], aspect_ratios=[], strides=[8])
