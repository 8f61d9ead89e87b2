"""Visualizer and the palette: what lands on which pixel, sizes, labels, random draws."""

import matplotlib.colors as mplc
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from detectron2.data import Metadata
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.colormap import colormap, random_color, random_colors
from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer

H, W = 60, 80
RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
SQUARE = [20.0, 10, 60, 10, 60, 50, 20, 50]  # x 20 ... 60, y 10 ... 50
BOX = [20.0, 10, 60, 50]
INSIDE, OUTSIDE = (30, 40), (55, 70)  # row, column


def black():
    return np.zeros((H, W, 3), dtype=np.uint8)


def square(x0=20, y0=10, x1=60, y1=50):
    mask = np.zeros((H, W), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def metadata(**kw):
    return Metadata(name="test", **kw)


def texts(output):
    return [t.get_text() for t in output.ax.texts]


def instances(n=2, masks=True):
    result = Instances((H, W))
    result.pred_boxes = Boxes(torch.tensor([[5.0, 5, 15, 15], BOX, [1, 1, 70, 55]])[:n])
    result.scores = torch.tensor([0.834, 0.5, 0.999])[:n]
    result.pred_classes = torch.tensor([0, 1, 0])[:n]
    if masks:
        all_masks = np.stack([square(5, 5, 15, 15), square(), square(1, 1, 70, 55)])
        result.pred_masks = torch.from_numpy(all_masks[:n])
    return result


# --------------------------------------------------------------------------------------- palette
def test_palette():
    colors = colormap(rgb=True, maximum=1)
    assert colors.shape == (74, 3) and colors.dtype == np.float32
    assert len(np.unique(colors, axis=0)) > 60 and colors.min() >= 0 and colors.max() <= 1
    np.testing.assert_allclose(colormap(), colors[:, ::-1] * 255, rtol=1e-6)


def test_random_color_takes_one_draw_of_numpy():
    for seed in range(50):  # some seeds reject a draw: that depends on the palette's size
        np.random.seed(seed)
        color, after = random_color(rgb=True, maximum=1), np.random.rand()
        np.random.seed(seed)
        expected = colormap(rgb=True, maximum=1)[np.random.randint(0, 74)]
        assert (color == expected).all() and np.random.rand() == after
    np.random.seed(3)
    bgr = random_color()
    np.random.seed(3)
    np.testing.assert_allclose(bgr, random_color(rgb=True, maximum=1)[::-1] * 255, rtol=1e-6)


def test_random_colors_leave_numpy_alone():
    np.random.seed(0)
    assert len(random_colors(5)) == 5 and random_colors(1, rgb=True, maximum=1)[0].max() <= 1
    after = np.random.rand()
    np.random.seed(0)
    assert np.random.rand() == after


# --------------------------------------------------------------------------------------- VisImage
@pytest.mark.parametrize("scale", [1.0, 2, 0.5, 1.2, 1.37, 0.33])
@pytest.mark.parametrize("size", [(60, 80), (29, 57), (95, 101)])
def test_output_size_is_exactly_scaled(size, scale, tmp_path):
    output = VisImage(np.zeros((*size, 3), dtype=np.uint8), scale)
    image = output.get_image()
    # the figure has 29 / 100 inches at 100 dots each: 28.999999999999996
    expected = tuple(int(side * scale + 1e-6) for side in size)
    assert image.shape == (*expected, 3) and image.dtype == np.uint8
    output.save(str(tmp_path / "x.png"))
    assert Image.open(tmp_path / "x.png").size == expected[::-1]


def test_nothing_drawn_is_the_image_itself():
    image = np.random.RandomState(0).randint(0, 256, (37, 53, 3)).astype(np.uint8)
    assert (VisImage(image).get_image() == image).all()
    assert (Visualizer(image).get_output().get_image() == image).all()
    assert (VisImage(image, 2.0).get_image() == image.repeat(2, axis=0).repeat(2, axis=1)).all()


def test_float_images_are_clipped():
    image = Visualizer(np.full((H, W, 3), 300.0)).get_output().get_image()
    assert (image == 255).all()


# ------------------------------------------------------------------------------------------ masks
def uncompressed(mask):
    """RLE of COCO's JSON: runs in column order, the first of zeros."""
    runs, value = [0], False
    for pixel in mask.flatten(order="F"):
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return {"size": [H, W], "counts": runs}


MASKS = {
    "array": lambda: [square()],
    "uint8 array": lambda: square()[None].astype(np.uint8),
    "tensor": lambda: torch.from_numpy(square())[None],
    "BitMasks": lambda: BitMasks(square()[None]),
    "PolygonMasks": lambda: PolygonMasks([[np.array(SQUARE)]]),
    "polygons": lambda: [[SQUARE]],
    "polygon arrays": lambda: [[np.array(SQUARE)]],
    "RLE": lambda: [mask_util.encode(np.asfortranarray(square().astype(np.uint8)))],
    "uncompressed RLE": lambda: [uncompressed(square())],
}


@pytest.mark.parametrize("kind", MASKS)
def test_every_kind_of_mask(kind):
    output = Visualizer(black()).overlay_instances(masks=MASKS[kind](), assigned_colors=[RED])
    image = output.get_image().astype(int)
    assert image[INSIDE] == pytest.approx([127.5, 0, 0], abs=1)  # alpha 0.5
    assert (image[OUTSIDE] == 0).all()
    red = image[:, :, 0] > 60
    assert abs(red.sum() - 1600) <= 4 * 45  # the contour's width


@pytest.mark.parametrize(
    "masks",
    [
        [np.zeros((H, W), dtype=bool)],
        torch.zeros(1, H, W),
        [{"size": [H, W], "counts": [H * W]}],
        pytest.param([[]], marks=pytest.mark.embedded_only),  # upstream raises
    ],
)
def test_empty_masks(masks):
    output = Visualizer(black()).overlay_instances(masks=masks, labels=["cat"])
    assert (output.get_image() == 0).all() and texts(output) == []


def test_mask_of_another_size():
    with pytest.raises((AssertionError, ValueError), match=r"60"):
        Visualizer(black()).overlay_instances(masks=[np.ones((H, W + 1), dtype=bool)])


def assert_hole(draw):
    mask = square()
    mask[25:35, 35:45] = False
    image = draw(Visualizer(black()), mask).get_image().astype(int)
    expected = np.where(mask[..., None], [127.5, 0, 0], 0)
    assert np.abs(image - expected).max() <= 2


def test_hole_stays_empty():
    assert_hole(lambda visualizer, mask: visualizer.draw_binary_mask(mask, RED))


@pytest.mark.embedded_only  # upstream fills the hole's contour as a polygon
def test_hole_stays_empty_in_an_overlay():
    assert_hole(lambda v, mask: v.overlay_instances(masks=[mask], assigned_colors=[RED]))


def test_contour_runs_through_pixel_centres():
    output = Visualizer(black()).draw_binary_mask(square(), RED)
    (polygon,) = output.ax.patches
    points = polygon.get_xy()
    assert points.min(axis=0).tolist() == [20.5, 10.5]
    assert points.max(axis=0).tolist() == [59.5, 49.5]
    assert len(points) == 4 * 39 + 1  # every pixel of the edge, closed


def test_small_parts_are_left_out():
    mask = square()
    mask[2:4, 2:4] = True
    assert len(Visualizer(black()).draw_binary_mask(mask, RED).ax.patches) == 1
    assert len(Visualizer(black()).draw_binary_mask(mask, RED, area_threshold=0).ax.patches) == 2
    output = Visualizer(black()).draw_binary_mask(square(2, 2, 4, 4), RED, text="small")
    assert not output.ax.patches and not texts(output)


@pytest.mark.parametrize("small", [square(2, 2, 10, 6), square(65, 52, 75, 58)])
def test_text_sits_in_the_largest_part(small):
    (text,) = Visualizer(black()).draw_binary_mask(square() | small, RED, text="cat").ax.texts
    # columns 20 ... 59, rows 10 ... 49
    assert text.get_position() == (39.5, 29.5) and text.get_text() == "cat"


def test_default_mask_color_is_one_draw():
    np.random.seed(0)
    (patch,) = Visualizer(black()).draw_binary_mask(square()).ax.patches
    np.random.seed(0)
    expected = random_color(rgb=True, maximum=1)
    np.testing.assert_allclose(patch.get_facecolor()[:3], expected, rtol=1e-6)
    assert patch.get_facecolor()[3] == 0.5


# ---------------------------------------------------------------------------------------- overlay
@pytest.mark.parametrize("boxes", [Boxes(torch.tensor([BOX])), torch.tensor([BOX]), [BOX]])
def test_boxes(boxes):
    output = Visualizer(black()).overlay_instances(boxes=boxes, assigned_colors=[RED])
    (patch,) = output.ax.patches
    assert patch.get_bbox().extents.tolist() == BOX
    image = output.get_image()
    assert image[10, 40, 0] > 50 and image[30, 20, 0] > 50 and (image[INSIDE] == 0).all()


def test_larger_instances_first():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 50, 50], [0, 0, 30, 30]], dtype=float)
    output = Visualizer(black()).overlay_instances(boxes=boxes)
    assert [p.get_width() for p in output.ax.patches] == [50, 30, 10]
    masks = [square(0, 0, 10, 10), square(0, 0, 50, 50)]
    output = Visualizer(black()).overlay_instances(masks=masks)
    assert [p.get_xy().max() for p in output.ax.patches] == [49.5, 9.5]


def test_labels():
    output = Visualizer(black()).overlay_instances(boxes=[BOX, [1, 1, 70, 55]], labels=["a", "b"])
    assert texts(output) == ["b", "a"]  # with their boxes, the larger first
    assert output.ax.texts[1].get_position() == (20, 10)
    output = Visualizer(black()).overlay_instances(masks=[square(5, 5, 76, 56)], labels=["a"])
    assert output.ax.texts[0].get_position() == (40, 30)  # columns 5 ... 75, rows 5 ... 55


def test_nothing_to_overlay():
    image = np.full((H, W, 3), 7, dtype=np.uint8)
    output = Visualizer(image).overlay_instances()
    assert (output.get_image() == 7).all()


def test_lengths_must_agree():
    with pytest.raises((AssertionError, ValueError)):
        Visualizer(black()).overlay_instances(boxes=[BOX], labels=["a", "b"])


# ------------------------------------------------------------------------------------ predictions
@pytest.mark.parametrize("mode", ColorMode)
@pytest.mark.parametrize("masks", [True, False])
def test_empty_predictions(mode, masks):
    meta = metadata(thing_classes=["cat", "dog"], thing_colors=[(255, 0, 0), (0, 0, 255)])
    for given in (meta, None):
        visualizer = Visualizer(black(), given, instance_mode=mode)
        output = visualizer.draw_instance_predictions(instances(0, masks))
        assert (output.get_image() == 0).all()


def test_labels_of_predictions():
    meta = metadata(thing_classes=["cat", "dog"])
    draw = lambda p, m=meta: texts(Visualizer(black(), m).draw_instance_predictions(p))  # noqa: E731
    assert draw(instances()) == ["dog 50%", "cat 83%"]
    assert draw(instances(), None) == ["1 50%", "0 83%"]
    without = instances(1)
    without.remove("scores")
    assert draw(without) == ["cat"]
    without = instances(1)
    without.remove("pred_classes")
    assert draw(without) == ["83%"]
    without.remove("scores")
    assert draw(without) == []


def test_predictions_with_raw_boxes_or_masks_alone():
    raw = Instances((H, W), pred_boxes=torch.tensor([BOX]))
    (patch,) = Visualizer(black()).draw_instance_predictions(raw).ax.patches
    assert patch.get_bbox().extents.tolist() == BOX
    only_masks = Instances((H, W), pred_masks=torch.from_numpy(square())[None])
    output = Visualizer(black()).draw_instance_predictions(only_masks)
    assert output.get_image()[INSIDE].any()


@pytest.mark.parametrize("mode", [ColorMode.IMAGE, ColorMode.IMAGE_BW])
def test_one_palette_draw_per_instance(mode):
    np.random.seed(0)
    Visualizer(black(), instance_mode=mode).draw_instance_predictions(instances(3))
    after = np.random.rand()
    np.random.seed(0)
    np.random.randint(0, 74, 3)
    assert np.random.rand() == after


def test_class_colors():
    meta = metadata(thing_classes=["cat", "dog"], thing_colors=[(255, 51, 0), (0, 0, 255)])

    def colors(predictions, **kw):
        visualizer = Visualizer(black(), meta, instance_mode=ColorMode.SEGMENTATION)
        patches = visualizer.draw_instance_predictions(predictions, **kw).ax.patches
        return [p.get_facecolor() for p in patches if p.get_fill()]

    plain = colors(instances(2), jittering=False)
    assert plain == [(0, 0, 1, 0.8), (1, 0.2, 0, 0.8)]  # the dog is larger
    np.random.seed(0)
    jittered, after = colors(instances(2)), np.random.rand()
    np.random.seed(0)
    for color, (r, g, b, alpha) in zip([[1, 0.2, 0], [0, 0, 1]], reversed(jittered)):
        step = np.random.rand(3)  # 3 draws per instance
        expected = np.clip(color + 0.5 * step / np.linalg.norm(step), 0, 1)
        np.testing.assert_allclose([r, g, b], expected)
        assert alpha == 0.8
    assert np.random.rand() == after


def test_black_and_white_but_for_the_masks():
    image = np.zeros((H, W, 3), dtype=np.uint8)
    image[..., 0], image[..., 1] = 90, 30  # mean 40
    for predictions, inside in ((instances(2), None), (instances(2, masks=False), 40)):
        visualizer = Visualizer(image, instance_mode=ColorMode.IMAGE_BW)
        output = visualizer.draw_instance_predictions(predictions)
        drawn = output.get_image()
        assert (drawn[OUTSIDE] == 40).all()
        if inside is None:  # the image's colour under a mask of alpha 0.3
            color = np.array(output.ax.patches[1].get_facecolor())
            assert color[3] == 0.3
            mixed = 0.7 * image[0, 0] + 0.3 * 255 * color[:3]
            assert drawn[INSIDE] == pytest.approx(mixed, abs=1.5)
        else:
            assert (drawn[INSIDE] == inside).all()


# -------------------------------------------------------------------------------------- dataset
def test_draw_dataset_dict():
    annotations = [
        {"bbox": [20, 10, 40, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1} | {"segmentation": [SQUARE]},
        {"bbox": [5, 5, 15, 15], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 1}
        | {"segmentation": uncompressed(square(5, 5, 15, 15))},
    ]
    visualizer = Visualizer(black(), metadata(thing_classes=["cat", "dog"]))
    output = visualizer.draw_dataset_dict({"annotations": annotations})
    assert texts(output) == ["dog", "cat|crowd"]
    image = output.get_image()
    assert output.ax.patches[0].get_bbox().extents.tolist() == BOX
    assert image[INSIDE].any() and image[10, 10].any() and not image[OUTSIDE].any()
    for a in annotations:
        del a["segmentation"]
    output = Visualizer(black()).draw_dataset_dict({"annotations": annotations})
    assert texts(output) == ["1", "0|crowd"] and not output.get_image()[INSIDE].any()
    for empty in ({}, {"annotations": []}):
        assert not Visualizer(black()).draw_dataset_dict(empty).get_image().any()


# --------------------------------------------------------------------------------------- single
def test_default_font_size():
    draw = lambda *a: Visualizer(*a).draw_text("x", (1, 1)).ax.texts[0].get_size()  # noqa: E731
    assert draw(black()) == 10  # sqrt(60 * 80) // 90 = 0 < 10
    assert draw(np.zeros((800, 1333, 3))) == 11  # sqrt(800 * 1333) = 1032.7, // 90
    assert draw(black(), None, 3.0) == 9  # (10 // 3) of the text on an image three times as large
    assert draw(black(), None, 1.0, ColorMode.IMAGE, 1.5) == 15


def test_draw_text():
    visualizer = Visualizer(black())
    output = visualizer.draw_text("cat", (30, 20), color="r", horizontal_alignment="left")
    (text,) = output.ax.texts
    assert text.get_position() == (30, 20) and text.get_ha() == "left" and text.get_va() == "top"
    assert text.get_color()[0] == 1 and output is visualizer.output
    visualizer.draw_text("b", (1, 2), font_size=7, rotation=30)
    assert output.ax.texts[1].get_size() == 7 and output.ax.texts[1].get_rotation() == 30


def test_draw_polygon_line_circle():
    output = Visualizer(black()).draw_polygon(np.reshape(SQUARE, (-1, 2)), RED, BLUE, alpha=0.4)
    (patch,) = output.ax.patches
    assert patch.get_facecolor() == (*RED, 0.4) and patch.get_edgecolor() == (*BLUE, 1)
    output = Visualizer(black()).draw_polygon(np.reshape(SQUARE, (-1, 2)), RED, alpha=1)
    assert max(output.ax.patches[0].get_edgecolor()[:3]) < 1  # else the edge is not seen
    image = Visualizer(black()).draw_line([10, 70], [30, 30], "r", linewidth=4).get_image()
    assert image[30, 40].tolist() == [255, 0, 0] and not image[40, 40].any()
    image = Visualizer(black()).draw_circle((40, 30), "b", radius=5).get_image()
    assert image[30, 40].tolist() == [0, 0, 255] and image[30, 43, 2] == 255
    assert not image[30, 47].any()


def test_draw_box_style():
    visualizer = Visualizer(black(), scale=2.0)
    (patch,) = visualizer.draw_box(BOX, alpha=0.3, edge_color="b", line_style="--").ax.patches
    assert patch.get_edgecolor() == (*mplc.to_rgb("b"), 0.3) and patch.get_linestyle() == "--"
