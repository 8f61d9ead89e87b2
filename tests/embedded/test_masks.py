"""BitMasks, PolygonMasks, ROIMasks."""

import numpy as np
import pytest
import torch

from detectron2.structures import BitMasks, Boxes, PolygonMasks, ROIMasks, polygons_to_bitmask
from detectron2.structures.masks import polygon_area, rasterize_polygons_within_box

WRONG = (AssertionError, ValueError)


def rectangle(x0, y0, x1, y1):
    return np.array([x0, y0, x1, y0, x1, y1, x0, y1], dtype=np.float64)


# ------------------------------------------------------------------------------------ functions
def test_polygon_area_by_hand():
    assert polygon_area(np.array([0.0, 4, 0]), np.array([0.0, 0, 3])) == 6  # 3-4-5 triangle
    box = rectangle(1, 2, 4, 6)
    assert polygon_area(box[0::2], box[1::2]) == polygon_area(box[::-2], box[-2::-2]) == 12


def test_polygons_to_bitmask():
    mask = polygons_to_bitmask([rectangle(1, 0, 3, 2), rectangle(2, 1, 5, 3)], 4, 6)
    expected = np.zeros((4, 6), dtype=bool)
    expected[0:2, 1:3] = expected[1:3, 2:5] = True  # the union
    assert mask.dtype == bool and (mask == expected).all()
    empty = polygons_to_bitmask([], 4, 6)
    assert empty.shape == (4, 6) and empty.dtype == bool and not empty.any()


# ------------------------------------------------------------------------------------- BitMasks
def make_bitmasks():
    masks = torch.zeros(3, 6, 8)
    masks[0, 1:4, 2:7] = 1
    masks[2, 5, 7] = 0.3  # anything but 0 is true
    return BitMasks(masks)


def test_bitmasks_container(device):
    masks = make_bitmasks().to(device)
    assert masks.tensor.dtype == torch.bool and masks.device.type == device
    assert masks.image_size == (6, 8) and len(masks) == 3
    assert masks.nonempty().tolist() == [True, False, True]
    assert masks[0].tensor.shape == (1, 6, 8) and masks[1:].nonempty().tolist() == [False, True]
    assert masks[torch.tensor([2, 0], device=device)].tensor.flatten(1).sum(1).tolist() == [1, 15]
    assert masks[masks.nonempty()].tensor.shape[0] == 2
    assert [m.shape for m in masks] == [(6, 8)] * 3
    assert BitMasks.cat([masks, masks[0]]).tensor.shape == (4, 6, 8)
    assert repr(masks) == "BitMasks(num_instances=3)"
    assert BitMasks(np.ones((2, 3, 4), dtype=np.uint8)).tensor.all()


def test_bitmasks_refuse():
    with pytest.raises(WRONG):
        BitMasks(torch.zeros(3, 4))
    with pytest.raises(WRONG):
        make_bitmasks()[torch.zeros(3, 6, 8, dtype=torch.bool)]
    with pytest.raises(AssertionError, match="1.*3"):
        make_bitmasks().crop_and_resize(torch.zeros(1, 4), 3)


@pytest.mark.embedded_only
@pytest.mark.parametrize("cls", [BitMasks, ROIMasks])
def test_shape_message(cls):
    with pytest.raises(ValueError, match=rf"{cls.__name__} takes a tensor of 3 dimensions"):
        cls(torch.zeros(3, 4))


def test_bitmasks_bounding_boxes_are_exclusive():
    boxes = make_bitmasks().get_bounding_boxes()
    assert boxes.tensor.tolist() == [[2, 1, 7, 4], [0, 0, 0, 0], [7, 5, 8, 6]]
    assert len(BitMasks(torch.zeros(0, 6, 8)).get_bounding_boxes()) == 0


def test_bitmasks_from_polygons():
    polygons = [[rectangle(1, 0, 3, 2)], []]
    expected = torch.zeros(2, 4, 6, dtype=torch.bool)
    expected[0, 0:2, 1:3] = True
    for source in (polygons, PolygonMasks(polygons)):
        assert torch.equal(BitMasks.from_polygon_masks(source, 4, 6).tensor, expected)
    assert BitMasks.from_polygon_masks([], 4, 6).tensor.shape == (0, 4, 6)


def test_bitmasks_crop_and_resize(device):
    # columns 2 and 3 of 8; the box [0, 4] has bins of one pixel, so the crop is the mask itself
    mask = torch.zeros(2, 4, 8, device=device)
    mask[:, :, 2:4] = 1
    boxes = torch.tensor([[0.0, 0, 4, 4], [0.0, 0, 8, 4]], device=device)
    out = BitMasks(mask).crop_and_resize(boxes, 4)
    assert out.dtype == torch.bool and out.device.type == device
    assert out[0].int().tolist() == [[0, 0, 1, 1]] * 4
    # 8 pixels in 4 bins: bin 1 is pixels 2 and 3; without `aligned` it would be 2.5 and 3.5
    assert out[1].int().tolist() == [[0, 1, 0, 0]] * 4


@pytest.mark.parametrize(
    "row, expected",
    [
        ([1, 0, 0, 0], False),  # 1 / 4
        ([1, 1, 0, 0], True),  # 2 / 4: from one half on
        ([1, 0, 0, 1, 1, 0, 0, 1], True),  # 4 / 8; two samples per bin would meet zeros only
    ],
)
def test_bitmasks_crop_samples_every_pixel(row, expected):
    # One bin as wide as the row: sampling_ratio 0 takes a sample per pixel, at its centre.
    box = torch.tensor([[0.0, 0, len(row), 1]])
    assert BitMasks(torch.tensor([[row]])).crop_and_resize(box, 1).item() is expected


def test_bitmasks_crop_of_nothing():
    out = BitMasks(torch.zeros(0, 4, 8)).crop_and_resize(torch.zeros(0, 4), 7)
    assert out.shape == (0, 7, 7) and out.dtype == torch.bool


# --------------------------------------------------------------------------------- PolygonMasks
def make_polygons():
    nested = [rectangle(0, 0, 4, 4), rectangle(1, 1, 3, 3)]  # areas 16 and 4
    return PolygonMasks([nested, [torch.tensor([2.0, 2, 6, 2, 2, 5])], []])


def test_polygons_container():
    masks = make_polygons()
    assert len(masks) == 3 and masks.polygons[1][0].dtype == np.float64
    assert masks.to("meta") is masks and masks.device.type == "cpu"
    assert masks.nonempty().tolist() == [True, True, False]
    assert masks.area().tolist() == [20, 6, 0]  # 16 + 4, 4 * 3 / 2
    assert masks.area().dtype == torch.float64
    assert masks[:2].get_bounding_boxes().tensor.tolist() == [[0, 0, 4, 4], [2, 2, 6, 5]]
    assert [len(p) for p in masks] == [2, 1, 0]
    assert repr(masks) == "PolygonMasks(num_instances=3)"
    assert PolygonMasks.cat([masks, masks[0]]).area().tolist() == [20, 6, 0, 20]


@pytest.mark.embedded_only
def test_polygon_bounding_box_of_nothing_and_left_of_zero():
    masks = PolygonMasks([[], [rectangle(-4, -3, -2, -1)]])
    assert masks.get_bounding_boxes().tensor.tolist() == [[0, 0, 0, 0], [-4, -3, -2, -1]]


@pytest.mark.parametrize(
    "item, areas",
    [
        (1, [6]),
        (-3, [20]),
        (slice(0, 2), [20, 6]),
        ([2, 0], [0, 20]),
        (torch.tensor([1, 1]), [6, 6]),
        (torch.tensor([True, False, True]), [20, 0]),
        (torch.tensor([False] * 3), []),
    ],
)
def test_polygons_indexing(item, areas):
    picked = make_polygons()[item]
    assert isinstance(picked, PolygonMasks) and picked.area().tolist() == areas


@pytest.mark.parametrize("polygons", [np.ones(6), [np.ones(6)], [[np.ones(4)]], [[np.ones(7)]], [(np.ones(6),)]])
def test_polygons_refuse(polygons):
    with pytest.raises(ValueError):
        PolygonMasks(polygons)


@pytest.mark.embedded_only
def test_polygons_messages():
    with pytest.raises(ValueError, match="list of instances"):
        PolygonMasks(np.ones(6))
    with pytest.raises(ValueError, match="list of polygons"):
        PolygonMasks([np.ones(6)])
    with pytest.raises(ValueError, match="got 7 numbers"):
        PolygonMasks([[np.ones(7)]])
    with pytest.raises(AssertionError, match="1 boxes for 3 masks"):
        make_polygons().crop_and_resize(torch.zeros(1, 4), 3)


def test_polygons_crop_and_resize(device):
    polygon = rectangle(10, 20, 14, 24)
    before = polygon.copy()
    masks = PolygonMasks([[polygon], []])
    # box (8, 20, 16, 28): 8 pixels on 4 cells; the polygon is x 2..6 -> 1..3, y 0..4 -> 0..2
    boxes = torch.tensor([[8.0, 20, 16, 28], [0, 0, 1, 1]], device=device)
    out = masks.crop_and_resize(boxes, 4)
    assert out.dtype == torch.bool and out.device.type == device
    assert out[0].int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0] * 4, [0] * 4]
    assert not out[1].any()
    assert (polygon == before).all()
    assert PolygonMasks([]).crop_and_resize(torch.zeros(0, 4), 4).shape == (0, 4, 4)


def test_polygons_crop_by_a_flat_box():
    # height 0 counts as 0.1: scale 4 / 0.1 = 40, so y 0..0.05 -> 0..2; x scale 4 / 4 = 1
    box = np.array([0, 0, 4, 0], dtype=np.float32)
    out = rasterize_polygons_within_box([rectangle(0, 0, 4, 0.05)], box, 4)
    assert out.int().tolist() == [[1] * 4, [1] * 4, [0] * 4, [0] * 4]


# ------------------------------------------------------------------------------------- ROIMasks
def test_roi_masks(device):
    masks = ROIMasks(torch.stack([torch.full((3, 3), 0.4), torch.ones(3, 3)])).to(device)
    assert len(masks) == 2 and masks.device.type == device
    assert len(masks[torch.tensor([False, True], device=device)]) == 1
    boxes = Boxes([[0.0, 0, 2, 2], [1, 1, 4, 3]]).to(device)
    out = masks.to_bitmasks(boxes, 4, 5)
    assert isinstance(out, BitMasks) and out.tensor.shape == (2, 4, 5)
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[1:3, 1:4] = True
    assert not out.tensor[0].any() and torch.equal(out.tensor[1].cpu(), expected)
    assert masks.to_bitmasks(boxes, 4, 5, threshold=0.4).tensor[0, :2, :2].all()
    empty = masks[:0].to_bitmasks(boxes[:0], 4, 5)
    assert empty.tensor.shape == (0, 4, 5) and empty.tensor.dtype == torch.bool
    with pytest.raises(ValueError):
        ROIMasks(torch.zeros(2, 1, 3, 3))
