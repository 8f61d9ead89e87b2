"""Properties that hold for boxes, masks and sizes of any kind, tried on examples that hypothesis makes up.

The examples are the same in every run (`derandomize`)."""

import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from detectron2.data import transforms as T
from detectron2.data.detection_utils import (
    annotations_to_instances,
    filter_empty_instances,
    transform_instance_annotations,
)
from detectron2.structures import BitMasks, Boxes, BoxMode, ImageList, PolygonMasks, pairwise_iou
from detectron2.structures.masks import polygons_to_bitmask
from shared.data.coco_records import BadRecord, check_annotation
from shared.data.coco_records import _rle_runs as rle_runs
from tests.reliability.methods import METHODS, build

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=40, database=None)
FEW = settings(derandomize=True, deadline=None, max_examples=6, database=None)

coordinate = st.floats(-1000, 1000, width=32)
length = st.one_of(st.just(0.0), st.floats(2**-7, 500, width=32))
box = st.tuples(coordinate, coordinate, length, length)  # XYWH
boxes = st.lists(box, max_size=6)
side = st.integers(1, 64)
size = st.tuples(side, side)  # height, width


def xyxy(rows) -> torch.Tensor:
    """(N, 4), float64: corners of XYWH boxes exactly as given."""
    rows = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
    return torch.cat([rows[:, :2], rows[:, :2] + rows[:, 2:]], dim=1)


# ---------------------------------------------------------------- boxes
@EXAMPLES
@given(boxes, size)
def test_clipped_boxes_lie_in_the_image_and_shrink(rows, size):
    before = Boxes(xyxy(rows).float())
    after = before.clone()
    after.clip(size)
    h, w = size
    x, y = after.tensor[:, 0::2], after.tensor[:, 1::2]
    assert ((x >= 0) & (x <= w)).all() and ((y >= 0) & (y <= h)).all()
    assert (after.area() <= before.area() * (1 + 1e-5) + 1e-3).all() and (after.area() >= 0).all()
    again = after.clone()
    again.clip(size)
    assert torch.equal(again.tensor, after.tensor)


@EXAMPLES
@given(boxes)
def test_nonempty_boxes_have_an_area(rows):
    found = Boxes(xyxy(rows).float())
    widths, heights = (found.tensor[:, 2:] - found.tensor[:, :2]).unbind(1)
    assert torch.equal(found.nonempty(), (widths > 0) & (heights > 0))
    assert torch.equal(found.nonempty(), found.area() > 0)


@EXAMPLES
@given(boxes, boxes)
def test_iou_is_symmetric_and_bounded(a, b):
    a, b = Boxes(xyxy(a).float()), Boxes(xyxy(b).float())
    iou = pairwise_iou(a, b)
    assert iou.shape == (len(a), len(b)) and iou.isfinite().all()
    assert ((iou >= 0) & (iou <= 1 + 1e-5)).all()
    torch.testing.assert_close(iou, pairwise_iou(b, a).T)


@EXAMPLES
@given(boxes)
def test_iou_with_itself_is_one_where_there_is_an_area(rows):
    found = Boxes(xyxy(rows).float())
    ious = pairwise_iou(found, found).diagonal()
    expected = (found.area() > 0).float()
    torch.testing.assert_close(ious, expected, rtol=0, atol=1e-5)


@EXAMPLES
@given(boxes)
def test_box_modes_there_and_back(rows):
    given_boxes = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
    there = BoxMode.convert(given_boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    back = BoxMode.convert(there, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    torch.testing.assert_close(back, given_boxes, rtol=0, atol=1e-9)
    for row in rows:  # also of lists and tuples, whose kind stays
        assert type(BoxMode.convert(list(row), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)) is list


transform = st.one_of(
    st.builds(T.HFlipTransform, st.just(100)),
    st.builds(T.VFlipTransform, st.just(80)),
    st.builds(lambda h, w: T.ResizeTransform(80, 100, h, w), st.integers(8, 300), st.integers(8, 300)),
    st.builds(T.NoOpTransform),
)


@EXAMPLES
@given(st.lists(transform, max_size=4), boxes)
def test_transformed_boxes_come_back(parts, rows):
    chain = T.TransformList([t for t in parts if not isinstance(t, T.ResizeTransform)])
    before = xyxy(rows).numpy()
    back = chain.inverse().apply_box(chain.apply_box(before))
    np.testing.assert_allclose(back, before, rtol=0, atol=1e-6)
    for resize in (t for t in parts if isinstance(t, T.ResizeTransform)):
        after = resize.apply_box(before)
        scale = np.array([resize.new_w / resize.w, resize.new_h / resize.h] * 2)
        np.testing.assert_allclose(after, before * scale, rtol=1e-6, atol=1e-4)
        assert (after[:, 2:] >= after[:, :2]).all()


# ---------------------------------------------------------------- masks
@st.composite
def masks(draw, most: int = 4) -> np.ndarray:
    """(N, H, W) bool: rectangles and noise, N may be 0."""
    h, w = draw(size)
    n = draw(st.integers(0, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    found = rng.random((n, h, w)) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    for mask in found:
        y, x = rng.integers(0, h), rng.integers(0, w)
        mask[y : rng.integers(y, h + 1), x : rng.integers(x, w + 1)] = True
    return found


@EXAMPLES
@given(masks())
def test_bit_masks_boxes_and_areas(found):
    bits = BitMasks(torch.from_numpy(found))
    nonempty = bits.nonempty()
    assert nonempty.tolist() == found.any(axis=(1, 2)).tolist()
    for mask, (x0, y0, x1, y1) in zip(found, bits.get_bounding_boxes().tensor.tolist()):
        ys, xs = np.nonzero(mask)
        assert (x0, y0, x1, y1) == ((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else (0, 0, 0, 0))


@EXAMPLES
@given(masks())
def test_run_lengths_there_and_back(found):
    """Also through our own reader of pycocotools' strings, which must take every one that it writes."""
    for mask in found:
        rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert (mask_util.decode(rle) == mask).all() and mask_util.area(rle) == mask.sum()
        runs = rle_runs(rle["counts"].decode())
        assert sum(runs) == mask.size and sum(runs[1::2]) == mask.sum()
        plain = mask_util.frPyObjects({"size": list(mask.shape), "counts": runs}, *mask.shape)
        assert plain["counts"] == rle["counts"]


@EXAMPLES
@given(st.text([chr(i) for i in range(44, 130)], max_size=12))
def test_any_text_as_run_lengths_is_refused_or_whole(text):
    """Of an image of 5 x 7: no text gets as far as pycocotools unless it has that many pixels."""
    row = dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 5, 7], segmentation=dict(size=[7, 5], counts=text))
    try:
        check_annotation(row, {1: (5, 7)}, {1}, "here")
    except BadRecord:
        return
    assert mask_util.decode(row["segmentation"]).shape == (7, 5)


rectangle = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 30), st.integers(1, 30))


@EXAMPLES
@given(st.lists(rectangle, min_size=1, max_size=4))
def test_polygons_bit_masks_and_areas(rows):
    """Rectangles on whole pixels: the polygon's area, its raster's and its box agree exactly."""
    polygons = [[np.array([x, y, x + w, y, x + w, y + h, x, y + h], dtype=np.float64)] for x, y, w, h in rows]
    found = PolygonMasks(polygons)
    assert found.area().tolist() == [w * h for _, _, w, h in rows]
    assert found.get_bounding_boxes().tensor.tolist() == xyxy(rows).tolist()
    for polygon, (x, y, w, h) in zip(polygons, rows):
        expected = np.zeros((64, 64), dtype=bool)
        expected[y : y + h, x : x + w] = True
        assert (polygons_to_bitmask(polygon, 64, 64) == expected).all()


@EXAMPLES
@given(st.lists(rectangle, min_size=1, max_size=4), st.integers(1, 28))
def test_crop_and_resize_around_a_mask_and_beside_it(rows, resolution):
    """Interpolation and pycocotools' rounding take something off at the edges."""
    bits = torch.zeros(len(rows), 64, 64, dtype=torch.bool)
    for mask, (x, y, w, h) in zip(bits, rows):
        mask[y : y + h, x : x + w] = True
    polygons = [[np.array([x, y, x + w, y, x + w, y + h, x, y + h], dtype=np.float64)] for x, y, w, h in rows]
    around, beside = xyxy(rows).float(), torch.tensor([[62.0, 62.0, 64.0, 64.0]] * len(rows))
    for found in (BitMasks(bits), PolygonMasks(polygons)):
        cropped = found.crop_and_resize(around, resolution)
        assert cropped.shape == (len(rows), resolution, resolution)
        assert cropped[:, resolution // 2, resolution // 2].all() and (cropped.float().mean(dim=(1, 2)) > 0.6).all()
        assert not found.crop_and_resize(beside, resolution).any()
    for found in (BitMasks(bits)[[]], PolygonMasks(polygons)[[]]):
        assert found.crop_and_resize(around[:0], resolution).shape == (0, resolution, resolution)


# ---------------------------------------------------------------- sizes
@EXAMPLES
@given(size, st.integers(8, 200), st.integers(8, 400))
def test_shortest_edge_keeps_limits_and_aspect(size, short, longest):
    h, w = (8 * s for s in size)
    assume(min(h, w) * min(short / min(h, w), longest / max(h, w)) >= 0.5)  # else it is too thin, see NamedErrors
    image = np.zeros((h, w, 3), dtype=np.uint8)
    new_h, new_w = T.ResizeShortestEdge(short, longest).get_transform(image).apply_image(image).shape[:2]
    assert max(new_h, new_w) <= max(longest, 1) and min(new_h, new_w) <= short
    reached = min(new_h, new_w) == short or max(new_h, new_w) == longest
    assert reached, (h, w, new_h, new_w)
    scale = min(short / min(h, w), longest / max(h, w))
    assert abs(new_h - h * scale) <= 1 and abs(new_w - w * scale) <= 1  # rounding alone


@EXAMPLES
@given(st.lists(size, min_size=1, max_size=4), st.sampled_from([0, 1, 32, 128]))
def test_image_list_pads_to_the_largest_and_to_the_divisor(sizes, divisor):
    images = [torch.full((3, h, w), float(i + 1)) for i, (h, w) in enumerate(sizes)]
    batch = ImageList.from_tensors(images, divisor)
    largest = [max(s[i] for s in sizes) for i in (0, 1)]
    expected = [math.ceil(s / divisor) * divisor if divisor > 1 else s for s in largest]
    assert list(batch.tensor.shape) == [len(sizes), 3, *expected]
    assert [tuple(s) for s in batch.image_sizes] == sizes
    for i, (image, whole) in enumerate(zip(images, batch.tensor)):
        assert torch.equal(batch[i], image)
        assert whole.sum() == image.sum()  # what is added is zero


extent = st.tuples(st.integers(0, 200), st.integers(0, 10), st.integers(1, 2000), st.integers(1, 3))


@EXAMPLES
@given(st.lists(extent, min_size=1, max_size=4), st.integers(10, 400), st.booleans())
def test_annotations_of_extreme_aspect(rows, new_h, flip):
    """Boxes of up to 2000 x 1 pixels in an image of 2200 x 13: all boxes lie in the image, none is NaN."""
    h, w = 13, 2200
    new_w = max(1, round(w * new_h / h))
    chain = T.TransformList([T.ResizeTransform(h, w, new_h, new_w), *([T.HFlipTransform(new_w)] if flip else [])])
    annotations = []
    for x, y, bw, bh in rows:
        polygon = [x, y, x + bw, y, x + bw, y + bh, x, y + bh]
        row = dict(bbox=[float(v) for v in (x, y, bw, bh)], segmentation=[[float(v) for v in polygon]], category_id=0)
        annotations.append(
            transform_instance_annotations({**row, "bbox_mode": BoxMode.XYWH_ABS}, chain, (new_h, new_w))
        )
    found = annotations_to_instances(annotations, (new_h, new_w))
    corners = found.gt_boxes.tensor
    assert corners.isfinite().all() and (corners >= 0).all()
    assert (corners[:, 0::2] <= new_w).all() and (corners[:, 1::2] <= new_h).all()
    assert len(filter_empty_instances(found)) == len(rows)


@pytest.fixture(scope="module")
def detectors():
    return {name: build(name, METHODS[name]("BN")).eval() for name in ("faster_rcnn", "retinanet")}


@FEW
@given(sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=2))
def test_detectors_take_images_of_any_size(detectors, sizes):
    """Also of one pixel: detections lie in the image."""
    batch = [{"image": torch.full((3, h, w), 90, dtype=torch.uint8), "height": h, "width": w} for h, w in sizes]
    for name, model in detectors.items():
        with torch.no_grad():
            outputs = model(batch)
        for (h, w), output in zip(sizes, outputs):
            found = output["instances"]
            assert found.image_size == (h, w), name
            corners = found.pred_boxes.tensor
            assert corners.isfinite().all() and (corners >= 0).all()
            assert (corners[:, 0::2] <= w).all() and (corners[:, 1::2] <= h).all()
