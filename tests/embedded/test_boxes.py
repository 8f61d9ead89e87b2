"""Boxes, BoxMode, the pairwise functions and ImageList. Numbers are worked out in comments."""

import json

import numpy as np
import pytest
import torch

from detectron2.structures import Boxes, BoxMode, ImageList, pairwise_ioa, pairwise_iou, pairwise_point_box_distance
from detectron2.structures.boxes import matched_pairwise_iou, pairwise_intersection

XYXY, XYWH = BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
WRONG = (AssertionError, ValueError, NotImplementedError)


# ------------------------------------------------------------------------------------- BoxMode
def test_box_mode_values_and_json():
    names = ["XYXY_ABS", "XYWH_ABS", "XYXY_REL", "XYWH_REL", "XYWHA_ABS"]
    assert [BoxMode[name].value for name in names] == [0, 1, 2, 3, 4]
    assert json.dumps({"bbox_mode": XYWH}) == '{"bbox_mode": 1}'


def test_convert_sequences_keeps_type_and_ints():
    box = [1, 2, 3, 4]
    out = BoxMode.convert(box, XYXY, XYWH)  # w = 3 - 1, h = 4 - 2
    assert out == [1, 2, 2, 2] and all(type(v) is int for v in out)
    assert box == [1, 2, 3, 4]
    assert BoxMode.convert((1, 2, 2, 2), 1, 0) == (1, 2, 3, 4)  # modes as plain ints
    # a list of floats goes through float32: 0.1 + 0.3 in float32, printed in double
    out = BoxMode.convert([0.1, 0.2, 0.3, 0.4], XYWH, XYXY)
    assert out == [float(np.float32(v)) for v in (0.1, 0.2, 0.4, 0.6)]


@pytest.mark.parametrize("dtype", ["int32", "float64"])
def test_convert_arrays_keeps_kind_and_input(dtype):
    array = np.array([[1, 2, 3, 5], [0, 0, 4, 4]], dtype=dtype)
    for box in (array, torch.from_numpy(array)):
        out = BoxMode.convert(box, XYWH, XYXY)
        assert type(out) is type(box) and out.dtype == box.dtype
        assert out.tolist() == [[1, 2, 4, 7], [0, 0, 4, 4]]
        assert box.tolist() == [[1, 2, 3, 5], [0, 0, 4, 4]]
        assert BoxMode.convert(out, XYXY, XYWH).tolist() == box.tolist()
    assert BoxMode.convert(np.zeros((0, 4)), XYWH, XYXY).shape == (0, 4)


def test_convert_equal_modes_returns_the_input():
    for box in ([1, 2, 3, 4], torch.ones(1, 4)):
        assert BoxMode.convert(box, BoxMode.XYXY_REL, BoxMode.XYXY_REL) is box


@pytest.mark.parametrize("box, modes", [([[1, 2, 3, 4]], (1, 0)), ([1, 2, 3, 4], (2, 0)), ([1, 2, 3, 4], (0, 3))])
def test_convert_refuses(box, modes):
    with pytest.raises(WRONG):
        BoxMode.convert(box, *modes)


@pytest.mark.embedded_only
def test_convert_messages():
    with pytest.raises(ValueError, match="list of 4 numbers"):
        BoxMode.convert([1, 2, 3, 4, 5], XYWH, XYXY)
    with pytest.raises(ValueError, match="Expected a list of 4"):
        BoxMode.convert(torch.ones(2, 5), XYWH, XYXY)
    with pytest.raises(ValueError, match="Cannot convert boxes from"):
        BoxMode.convert([1, 2, 3, 4], BoxMode.XYWHA_ABS, XYXY)


# --------------------------------------------------------------------------------------- Boxes
def test_boxes_are_always_float32():
    for data in ([[0, 1, 2, 3]], np.array([[0, 1, 2, 3]]), torch.tensor([[0, 1, 2, 3]]).half()):
        assert Boxes(data).tensor.dtype == torch.float32
        assert Boxes(data).tensor.tolist() == [[0, 1, 2, 3]]
    assert Boxes(torch.ones(1, 4).double()).tensor.dtype == torch.float32
    tensor = torch.ones(2, 4)
    assert Boxes(tensor).tensor is tensor  # float32 is taken as it is


def test_empty_boxes_of_any_shape():
    for data in ([], torch.zeros(0), torch.zeros(0, 7), np.zeros((0, 4))):
        assert Boxes(data).tensor.shape == (0, 4)
    base = torch.zeros(0, requires_grad=True)
    assert Boxes(base).tensor.requires_grad
    empty = Boxes([])
    assert len(empty) == 0 and empty.area().shape == (0,) and empty.get_centers().shape == (0, 2)
    assert pairwise_iou(empty, Boxes([[0, 0, 1, 1]])).shape == (0, 1)


@pytest.mark.parametrize("shape", [(4,), (2, 5), (1, 1, 4)])
def test_boxes_refuse_other_shapes(shape):
    with pytest.raises(AssertionError, match=r"5|4"):
        Boxes(torch.ones(shape))


def test_area_centers_nonempty():
    boxes = Boxes([[0, 0, 2, 3], [1, 1, 1, 5], [4, 4, 3, 9], [0, 0, 1, 1]])
    assert boxes.area().tolist() == [6, 0, -5, 1]
    assert boxes.get_centers().tolist()[0] == [1, 1.5]
    assert boxes.nonempty().tolist() == [True, False, False, True]
    assert boxes.nonempty(threshold=1.0).tolist() == [True, False, False, False]  # strictly longer


def test_clip_makes_a_new_tensor():
    tensor = torch.tensor([[-5.0, -1, 9, 9], [1, 2, 3, 4]])
    boxes = Boxes(tensor)
    boxes.clip((6, 8))  # (height, width)
    assert boxes.tensor.tolist() == [[0, 0, 8, 6], [1, 2, 3, 4]]
    assert tensor[0].tolist() == [-5, -1, 9, 9]
    for bad in (float("inf"), float("nan")):
        with pytest.raises(AssertionError, match="(?i)infinite or nan"):
            Boxes([[0, 0, bad, 1]]).clip((6, 8))


def test_scale_works_on_the_same_storage():
    tensor = torch.tensor([[1.0, 2, 3, 4]])
    boxes = Boxes(tensor)
    boxes.scale(2, 10)
    assert tensor.tolist() == [[2, 20, 6, 40]] and boxes.tensor is tensor


def test_inside_box_borders():
    size = (10, 20)  # x1 < 20, y1 < 10
    rows = [[0, 0, 19.9, 9.9], [0, 0, 20, 9], [0, 0, 19, 10], [-1, 0, 5, 5], [-2, 0, 21.9, 5]]
    boxes = Boxes(rows)
    assert boxes.inside_box(size).tolist() == [True, False, False, False, False]
    assert boxes.inside_box(size, boundary_threshold=2).tolist() == [True] * 5
    assert not Boxes([[0, 0, 22, 5]]).inside_box(size, 2).item()


def test_indexing():
    boxes = Boxes(torch.arange(12.0).view(3, 4))
    assert boxes[1].tensor.tolist() == [[4, 5, 6, 7]] and boxes[-1].tensor.tolist()[0][0] == 8
    assert len(boxes[1:]) == 2
    assert boxes[torch.tensor([2, 0])].tensor[:, 0].tolist() == [8, 0]
    assert boxes[torch.tensor([True, False, True])].tensor[:, 0].tolist() == [0, 8]
    assert [b.tolist()[0] for b in boxes] == [0, 4, 8]
    with pytest.raises(AssertionError, match="(?i)indexing"):
        boxes[torch.ones(3, 4, dtype=torch.bool)]
    with pytest.raises(IndexError):
        boxes[3]


def test_cat_and_clone_never_share_storage():
    one = Boxes([[0, 0, 1, 1]])
    for copy in (Boxes.cat([one]), one.cat([one]), one.clone(), Boxes.cat((one,))):
        copy.scale(5, 5)
        assert copy.tensor.tolist() == [[0, 0, 5, 5]]
    assert one.tensor.tolist() == [[0, 0, 1, 1]]
    assert Boxes.cat([one, Boxes([[2, 2, 3, 3]])]).tensor[:, 0].tolist() == [0, 2]
    assert Boxes.cat([]).tensor.shape == (0, 4)


def test_device_to_and_repr(device):
    boxes = Boxes([[0, 0, 1, 1]]).to(device)
    assert boxes.device.type == device
    assert repr(Boxes([[0, 0, 1, 1]])) == "Boxes(tensor([[0., 0., 1., 1.]]))"


# ------------------------------------------------------------------------------ pairwise numbers
def test_pairwise_overlaps_by_hand():
    # areas 4 and 6, overlap [1, 2] x [1, 2] = 1; the third is far away, the fourth has no area
    a = Boxes([[0, 0, 2, 2]])
    b = Boxes([[1, 1, 3, 4], [10, 10, 11, 11], [1, 1, 1, 1]])
    assert pairwise_intersection(a, b).tolist() == [[1, 0, 0]]
    torch.testing.assert_close(pairwise_iou(a, b), torch.tensor([[1 / 9, 0, 0]]))
    torch.testing.assert_close(pairwise_ioa(a, b), torch.tensor([[1 / 6, 0, 0]]))
    torch.testing.assert_close(pairwise_ioa(b, a), torch.tensor([[1 / 4], [0], [0]]))
    point = Boxes([[1, 1, 1, 1]])
    assert pairwise_iou(point, point).tolist() == [[0]]  # 0 / 0 gives 0 here


def test_matched_iou_has_no_guard():
    a, b = Boxes([[0, 0, 2, 2], [0, 0, 0, 0]]), Boxes([[1, 1, 3, 4], [0, 0, 0, 0]])
    iou = matched_pairwise_iou(a, b)
    assert iou[0].item() == pytest.approx(1 / 9) and iou[1].isnan()
    with pytest.raises(AssertionError, match="2.*1"):
        matched_pairwise_iou(a, Boxes([[0, 0, 1, 1]]))


def test_point_box_distance():
    points = torch.tensor([[1.0, 2.0], [6.0, 0.0]])
    out = pairwise_point_box_distance(points, Boxes([[0, 0, 5, 9], [1, 1, 2, 2]]))
    assert out.shape == (2, 2, 4)
    assert out[0, 0].tolist() == [1, 2, 4, 7]  # left, top, right, bottom
    assert out[1, 1].tolist() == [5, -1, -4, 2]


# ----------------------------------------------------------------------------------- ImageList
def test_image_list_pads_right_and_below():
    images = [torch.ones(3, 5, 6), torch.full((3, 7, 4), 2.0)]
    out = ImageList.from_tensors(images, size_divisibility=4, pad_value=9.0)
    assert out.tensor.shape == (2, 3, 8, 8)  # max (7, 6), rounded up to multiples of 4
    assert out.tensor.is_contiguous() and out.image_sizes == [(5, 6), (7, 4)]
    assert type(out.image_sizes[0][0]) is int and len(out) == 2
    assert torch.equal(out[1], images[1])
    padded = out.tensor[0].clone()
    padded[:, :5, :6] = 9.0
    assert (padded == 9.0).all()


def test_image_list_without_divisibility_and_of_maps():
    assert ImageList.from_tensors([torch.ones(3, 5, 6)]).tensor.shape == (1, 3, 5, 6)
    maps = ImageList.from_tensors([torch.ones(5, 6, dtype=torch.uint8), torch.ones(2, 7).byte()])
    assert maps.tensor.shape == (2, 5, 7) and maps.tensor.dtype == torch.uint8
    assert maps[1].shape == (2, 7)


@pytest.mark.parametrize(
    "constraints, side",
    [
        ({"square_size": 10}, (12, 12)),  # both sides 10, rounded up by the argument 4
        ({"square_size": 0}, (8, 8)),
        ({"size_divisibility": 5}, (5, 10)),  # replaces the argument
        ({"square_size": 7, "size_divisibility": 0}, (7, 7)),
    ],
)
def test_image_list_padding_constraints(constraints, side):
    out = ImageList.from_tensors([torch.ones(3, 5, 6)], 4, padding_constraints=constraints)
    assert tuple(out.tensor.shape[-2:]) == side and out.image_sizes == [(5, 6)]


def test_image_list_keeps_the_graph():
    image = torch.ones(1, 2, 3, requires_grad=True)
    ImageList.from_tensors([image, torch.ones(1, 4, 4)]).tensor.sum().backward()
    assert image.grad.tolist() == torch.ones(1, 2, 3).tolist()


def test_image_list_refuses():
    with pytest.raises(AssertionError):
        ImageList.from_tensors([])
    with pytest.raises(AssertionError, match="1, 5, 6"):
        ImageList.from_tensors([torch.ones(3, 5, 6), torch.ones(1, 5, 6)])


@pytest.mark.embedded_only
def test_image_list_does_not_cut_images():
    with pytest.raises(AssertionError, match="square_size 3 is below"):
        ImageList.from_tensors([torch.ones(3, 5, 6)], padding_constraints={"square_size": 3})


def test_image_list_to(device):
    images = ImageList.from_tensors([torch.ones(3, 5, 6)]).to(device)
    assert images.device.type == device and images.image_sizes == [(5, 6)]
    assert images.to(torch.float64).tensor.dtype == torch.float64
