"""ROIPooler: levels of boxes, the pooled numbers, and empty inputs."""

import pytest
import torch
from omegaconf import OmegaConf
from torchvision.ops import roi_align, roi_pool

from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels, convert_boxes_to_pooler_format
from detectron2.structures import Boxes


def squares(*sides):
    return Boxes(torch.tensor([[0.0, 0.0, s, s] for s in sides]))


def test_levels_of_boxes():
    # 224 -> 4; 112 -> 3, 111 -> 2 (floor); 448 -> 5; 2000 clamps to 5; 0: log2(1e-8) clamps to 2
    boxes = [squares(224, 112, 111), squares(448, 2000, 10, 0)]
    levels = assign_boxes_to_levels(boxes, 2, 5, 224, 4)
    assert levels.dtype == torch.int64
    assert levels.tolist() == [2, 1, 0, 3, 3, 0, 0]


def test_pooler_format_prepends_the_image():
    rows = convert_boxes_to_pooler_format([squares(1), squares(), squares(2, 3)])
    assert rows.tolist() == [[0, 0, 0, 1, 1], [2, 0, 0, 2, 2], [2, 0, 0, 3, 3]]


def maps():
    g = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, 64 // 2**i, 48 // 2**i, generator=g).requires_grad_() for i in range(3)]


BOXES = [
    Boxes(torch.tensor([[3.0, 5, 40, 50], [10, 10, 160, 190], [0, 0, 4, 4]])),
    Boxes(torch.tensor([[1.0, 2, 190, 250], [50, 60, 90, 100]])),
]
SCALES = (1 / 4, 1 / 8, 1 / 16)


@pytest.mark.parametrize("pooler_type", ["ROIAlignV2", "ROIAlign", "ROIPool"])
def test_every_box_is_pooled_from_its_level(pooler_type):
    pooler = ROIPooler(5, SCALES, 0, pooler_type, canonical_box_size=56, canonical_level=3)
    assert (pooler.min_level, pooler.max_level) == (2, 4) and pooler.output_size == (5, 5)
    x = maps()
    out = pooler(x, BOXES)
    assert out.shape == (5, 3, 5, 5) and list(pooler.state_dict()) == []
    row, seen = 0, set()
    for image, boxes in enumerate(BOXES):
        for box in boxes.tensor:
            side = ((box[2] - box[0]) * (box[3] - box[1])).sqrt().item()
            level = 0 if side < 56 else 1 if side < 112 else 2
            seen.add(level)
            roi = torch.cat([torch.tensor([float(image)]), box])[None]
            if pooler_type == "ROIPool":
                expected = roi_pool(x[level], roi, 5, SCALES[level])
            else:
                aligned = pooler_type == "ROIAlignV2"
                expected = roi_align(x[level], roi, 5, SCALES[level], 0, aligned)
            torch.testing.assert_close(out[row], expected[0])
            row += 1
    assert row == 5 and seen == {0, 2}
    out.sum().backward()
    assert x[1].grad.abs().sum() == 0  # no box, yet a gradient: DDP needs one
    assert x[0].grad.abs().sum() > 0 and x[2].grad.abs().sum() > 0


def test_one_level_takes_any_pair_and_scale():
    x = maps()[:1]
    out = ROIPooler((2, 3), OmegaConf.create([0.25]), 2, "ROIAlignV2")(x, BOXES)
    rois = convert_boxes_to_pooler_format(BOXES)
    torch.testing.assert_close(out, roi_align(x[0], rois, (2, 3), 0.25, 2, True))


def test_config_types_as_size_and_scales():
    pooler = ROIPooler(OmegaConf.create([4, 4]), OmegaConf.create(list(SCALES)), 0, "ROIAlignV2")
    assert pooler(maps(), BOXES).shape == (5, 3, 4, 4)


@pytest.mark.parametrize("scales", [SCALES, SCALES[:1]])
def test_empty_inputs(scales):
    pooler = ROIPooler(7, scales, 0, "ROIAlignV2")
    x = maps()[: len(scales)]
    out = pooler(x, [squares(), squares()])
    assert out.shape == (0, 3, 7, 7)
    no_images = [m[:0] for m in x]
    assert pooler(no_images, []).shape == (0, 3, 7, 7)


def test_unknown_type_is_named():
    with pytest.raises(ValueError, match="ROIAlignRotated2"):
        ROIPooler(7, SCALES, 0, "ROIAlignRotated2")


@pytest.mark.embedded_only
@pytest.mark.parametrize(
    "size, scales, message",
    [
        (7, (1 / 4, 1 / 6), "powers of 2"),
        (7, (1 / 4, 1 / 16), "must halve"),
        (7, (2.0, 1.0), "at most 1"),
        ((7, 7, 7), (1 / 4,), "a side or"),
    ],
)
def test_wrong_arguments(size, scales, message):
    with pytest.raises(AssertionError, match=message):
        ROIPooler(size, scales, 0, "ROIAlignV2")


@pytest.mark.embedded_only
def test_inputs_must_fit_together():
    pooler = ROIPooler(7, SCALES, 0, "ROIAlignV2")
    with pytest.raises(AssertionError, match="list of feature maps"):
        pooler(tuple(maps()), BOXES)
    with pytest.raises(AssertionError, match="3 scales, got 2"):
        pooler(maps()[:2], BOXES)
    with pytest.raises(AssertionError, match="2 images, got boxes of 1"):
        pooler(maps(), BOXES[:1])
