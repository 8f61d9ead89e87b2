"""Pooling from levels that are known beforehand."""

import pytest
import torch
from torch import nn

from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from projects.InterNet import InterNetROIPooler, LevelAssigner, MakeUp

from .parts import CHANNELS, SIDES, STRIDES, make_box_head, make_maps, make_pooler, square


def mixed_boxes():
    """Levels in mixed order in both images."""
    first = [square(side, x=3.0) for side in (40, 10, 60, 20)]
    second = [square(side, y=1.5) for side in (20, 60, 10)]
    return [Boxes(torch.tensor(first)), Boxes(torch.tensor(second))]


def one_by_one(maps, boxes, levels, sampling_ratio, size):
    """Each RoI alone, by RoIAlign."""
    rois = convert_boxes_to_pooler_format(boxes)
    results = []
    for roi, level in zip(rois, levels.tolist()):
        align = ROIAlign(size, 1 / STRIDES[level], sampling_ratio, aligned=True)
        results.append(align(maps[level], roi[None]))
    return torch.cat(results)


def test_rows_keep_their_order():
    maps, boxes, pooler = make_maps(), mixed_boxes(), make_pooler()
    levels = pooler.assigner(boxes)
    assert levels.tolist() == [2, 0, 3, 1, 1, 3, 0]
    expected = one_by_one(maps, boxes, levels, 1, 14)
    torch.testing.assert_close(pooler(maps, boxes, levels), expected)
    torch.testing.assert_close(pooler(maps, boxes), expected)


def test_floor_is_detectron2s_pooler():
    maps, boxes = make_maps(), mixed_boxes()
    theirs = ROIPooler(7, [1 / s for s in STRIDES], 2, "ROIAlignV2", canonical_box_size=40)
    assert torch.equal(make_pooler(7, 2, rounding="floor")(maps, boxes), theirs(maps, boxes))
    assert not torch.equal(make_pooler(7, 2)(maps, boxes), theirs(maps, boxes))


def test_identity_makeup_gives_the_baselines_head_input():
    """14 x 14 with one sample a bin, averaged by 2, is 7 x 7 with two: the samples are the same."""
    maps, boxes, pooler = make_maps(), mixed_boxes(), make_pooler()
    makeup = MakeUp(channels=CHANNELS, norm="")
    with torch.no_grad():
        nn.init.dirac_(makeup.units[0].weight)
        makeup.units[0].activation = None
    levels = pooler.assigner(boxes)
    seen = []
    head = make_box_head("separate")
    head.flatten.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    head(makeup(pooler(maps, boxes, levels), levels))
    torch.testing.assert_close(seen[0], one_by_one(maps, boxes, levels, 2, 7), rtol=1e-5, atol=3e-6)


def test_pool_from_reads_the_map_and_the_grid_of_each_index():
    """Two maps on level 3's and level 2's cells, one RoI from each."""
    maps = make_maps()
    given = [torch.randn_like(maps[1]), torch.randn_like(maps[0])]
    boxes = [Boxes(torch.tensor([square(30), square(24)])), Boxes(torch.zeros(0, 4))]
    rois = convert_boxes_to_pooler_format(boxes)
    result = make_pooler().pool_from(given, [1, 0], rois, torch.tensor([1, 0]))
    expected = [ROIAlign(14, scale, 1)(x, roi[None]) for x, scale, roi in ((given[1], 1 / 4, rois[0]),)]
    expected.append(ROIAlign(14, 1 / 8, 1)(given[0], rois[1][None]))
    assert torch.equal(result, torch.cat(expected))


def test_no_boxes_still_give_every_map_a_gradient():
    maps = make_maps(requires_grad=True)
    result = make_pooler()(maps, [Boxes(torch.zeros(0, 4))] * 2)
    assert result.shape == (0, CHANNELS, 14, 14)
    result.sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in maps)


def test_levels_are_indices_whatever_the_strides():
    """VGG-16's maps have strides 16 to 128; a box of 224 px is still on the third."""
    pooler = InterNetROIPooler(14, [1 / 16, 1 / 32, 1 / 64, 1 / 128], 1, assigner=LevelAssigner())
    boxes = [Boxes(torch.tensor([[0.0, 0, 224, 224], [0, 0, 30, 30]]))]
    assert pooler.assigner(boxes).tolist() == [2, 0]
    assert pooler.strides == [16, 32, 64, 128]
    maps = [torch.full((1, 2, 512 // s, 512 // s), float(s)) for s in pooler.strides]
    assert pooler(maps, boxes).mean(dim=(1, 2, 3)).tolist() == [64, 16]


def test_levels_do_not_depend_on_padding():
    boxes, pooler = mixed_boxes(), make_pooler()
    padded = [torch.nn.functional.pad(x, (0, 32 // s, 0, 64 // s)) for x, s in zip(make_maps(), STRIDES)]
    torch.testing.assert_close(pooler(make_maps(), boxes)[1], pooler(padded, boxes)[1])


def test_error_for_another_number_of_levels():
    with pytest.raises(ValueError, match="3 scales and an assigner of 4 levels"):
        InterNetROIPooler(14, [1 / 4, 1 / 8, 1 / 16], 1, assigner=LevelAssigner())


def test_sides_are_one_per_level():
    assert make_pooler().assigner([Boxes(torch.tensor([square(s) for s in SIDES]))]).tolist() == [0, 1, 2, 3]
