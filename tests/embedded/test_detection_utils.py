"""Reading images, and annotations to instances."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

import detectron2.data.detection_utils as utils
import detectron2.data.transforms as T
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, BoxMode, PolygonMasks

XYWH, XYXY = BoxMode.XYWH_ABS, BoxMode.XYXY_ABS
TRIANGLE = [1.0, 1.0, 4.0, 1.0, 4.0, 4.0]


def anno(**kwargs):
    return {"bbox": [1.0, 1.0, 3.0, 3.0], "bbox_mode": XYWH, "category_id": 1, **kwargs}


def rectangle_mask():
    mask = np.zeros((10, 12), np.uint8, order="F")
    mask[2:5, 3:8] = 1
    return mask


# ------------------------------------------------------------------------------------ images
@pytest.fixture
def pixels():
    return np.random.RandomState(0).randint(0, 256, (4, 6, 3), dtype=np.uint8)


def test_read_image_formats(tmp_path, pixels):
    path = str(tmp_path / "a.png")
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(utils.read_image(path), pixels)
    np.testing.assert_array_equal(utils.read_image(path, "RGB"), pixels)
    np.testing.assert_array_equal(utils.read_image(path, "BGR"), pixels[:, :, ::-1])
    grey = utils.read_image(path, "L")
    assert grey.shape == (4, 6, 1)
    np.testing.assert_array_equal(grey[:, :, 0], np.asarray(Image.fromarray(pixels).convert("L")))
    Image.fromarray(pixels[:, :, 0].copy()).save(path)
    assert utils.read_image(path).shape == (4, 6)
    assert utils.read_image(path, "L").shape == (4, 6, 1)
    assert utils.read_image(path, "BGR").shape == (4, 6, 3)


@pytest.mark.parametrize(
    "orientation,upright",
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),  # 90 degrees clockwise
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_read_image_applies_exif_orientation(tmp_path, pixels, orientation, upright):
    path = str(tmp_path / "a.png")
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    np.testing.assert_array_equal(utils.read_image(path, "RGB"), upright(pixels))


def test_read_image_survives_a_corrupt_exif_block(tmp_path, pixels):
    path = str(tmp_path / "a.png")
    Image.fromarray(pixels).save(path, exif=b"Exif\x00\x00XX*\x00\x08\x00")
    with Image.open(path) as image, pytest.raises(SyntaxError):
        image.getexif()
    np.testing.assert_array_equal(utils.read_image(path, "RGB"), pixels)


def test_convert_image_to_rgb(pixels):
    for image in (pixels, torch.tensor(pixels), pixels.astype(np.float32)):
        out = utils.convert_image_to_rgb(image, "BGR")
        np.testing.assert_array_equal(out, pixels[:, :, ::-1])
        rgb = utils.convert_image_to_rgb(image, "RGB")
        assert rgb.dtype == np.uint8
        np.testing.assert_array_equal(rgb, pixels)
    grey = utils.convert_image_to_rgb(pixels[:, :, :1], "L")
    np.testing.assert_array_equal(grey, pixels[:, :, :1].repeat(3, 2))


def test_check_image_size(pixels):
    d = {"file_name": "f.jpg"}
    utils.check_image_size(d, pixels)
    assert (d["width"], d["height"]) == (6, 4)
    utils.check_image_size(d, pixels)
    with pytest.raises(utils.SizeMismatchError, match="f.jpg.*(4|6)"):
        utils.check_image_size({**d, "width": 7}, pixels)
    with pytest.raises(ValueError):
        utils.check_image_size({**d, "height": 3}, pixels)


# ------------------------------------------------------------------------------- annotations
def test_transform_box_and_polygons():
    a = anno(segmentation=[TRIANGLE, np.array(TRIANGLE) + 1])
    out = utils.transform_instance_annotations(a, T.ResizeTransform(10, 10, 15, 25), (15, 25))
    assert out is a and out["bbox_mode"] == XYXY
    np.testing.assert_allclose(out["bbox"], [2.5, 1.5, 10, 6])  # x * 2.5, y * 1.5
    np.testing.assert_allclose(out["segmentation"][0], [2.5, 1.5, 10, 1.5, 10, 6])
    np.testing.assert_allclose(out["segmentation"][1], [5, 3, 12.5, 3, 12.5, 7.5])


def test_transform_accepts_a_list():
    out = utils.transform_instance_annotations(
        anno(), [T.HFlipTransform(10), T.ResizeTransform(10, 10, 20, 10)], (20, 10)
    )
    np.testing.assert_allclose(out["bbox"], [6, 2, 9, 8])  # [10-4, 1, 10-1, 4], then y * 2


def test_box_is_clipped_on_all_sides():
    a = anno(bbox=[-3.0, -2.0, 90.0, 80.0], bbox_mode=XYXY)
    out = utils.transform_instance_annotations(a, T.NoOpTransform(), (10, 12))
    np.testing.assert_allclose(out["bbox"], [0, 0, 12, 10])


def test_integer_boxes_stay_integer():
    """As in Detectron2: a resize truncates a box of ints (from JSON or Python), not of floats."""
    a = anno(bbox=[1, 1, 3, 3])
    out = utils.transform_instance_annotations(a, T.ResizeTransform(10, 10, 15, 25), (15, 25))
    assert out["bbox"].tolist() == [2, 1, 10, 6]


def test_transform_rle():
    a = anno(segmentation=mask_util.encode(rectangle_mask()))
    t = T.ResizeTransform(10, 12, 20, 24)
    out = utils.transform_instance_annotations(dict(a), t, (20, 24))["segmentation"]
    np.testing.assert_array_equal(out, rectangle_mask().repeat(2, 0).repeat(2, 1))
    with pytest.raises(AssertionError):
        utils.transform_instance_annotations(dict(a), t, (20, 25))


def test_transform_refuses_other_segmentations():
    with pytest.raises(ValueError, match="int.*polygons"):
        utils.transform_instance_annotations(anno(segmentation=3), T.NoOpTransform(), (10, 10))


def test_instances_without_annotations():
    out = utils.annotations_to_instances([], (4, 5))
    assert out.image_size == (4, 5) and not out.has("gt_masks")
    assert out.gt_boxes.tensor.shape == (0, 4)
    assert out.gt_classes.shape == (0,) and out.gt_classes.dtype == torch.int64


def test_instances_boxes_classes_polygons():
    annos = [anno(segmentation=[TRIANGLE]), anno(bbox=[0, 1, 2, 3], category_id=4, bbox_mode=XYXY)]
    annos[1]["segmentation"] = [TRIANGLE, TRIANGLE]
    out = utils.annotations_to_instances(annos, (10, 12))
    assert out.gt_boxes.tensor.tolist() == [[1, 1, 4, 4], [0, 1, 2, 3]]
    assert out.gt_classes.tolist() == [1, 4] and out.gt_classes.dtype == torch.int64
    assert isinstance(out.gt_masks, PolygonMasks)
    np.testing.assert_allclose(out.gt_masks.area(), [4.5, 9])


def test_instances_bitmasks_of_every_kind():
    mask = rectangle_mask()
    square = [3.0, 2.0, 8.0, 2.0, 8.0, 5.0, 3.0, 5.0]
    annos = [anno(segmentation=s) for s in ([square], mask_util.encode(mask), mask)]
    out = utils.annotations_to_instances(annos, (10, 12), "bitmask").gt_masks
    assert isinstance(out, BitMasks) and out.tensor.dtype == torch.bool
    for got in out.tensor.numpy():
        np.testing.assert_array_equal(got, mask.astype(bool))


def test_only_the_first_annotation_decides_about_masks():
    out = utils.annotations_to_instances([anno(), anno(segmentation=[TRIANGLE])], (10, 12))
    assert not out.has("gt_masks")


@pytest.mark.parametrize(
    "segmentation,mask_format,error,match",
    [
        (rectangle_mask(), "polygon", ValueError, "mask_format|bitmask"),
        ([[1.0, 2.0, 3.0, 4.0]], "polygon", ValueError, "mask_format|bitmask"),
        (rectangle_mask()[None], "bitmask", AssertionError, "1, 10, 12|2 dimensions"),
        ("x", "bitmask", ValueError, "str"),
        ([TRIANGLE], "foo", AssertionError, "foo"),
    ],
)
def test_instances_of_wrong_masks(segmentation, mask_format, error, match):
    with pytest.raises(error, match=match):
        utils.annotations_to_instances([anno(segmentation=segmentation)], (10, 12), mask_format)


def test_filter_empty_instances():
    annos = [
        anno(segmentation=[TRIANGLE]),
        anno(segmentation=[TRIANGLE], bbox=[1.0, 1.0, 0.0, 3.0]),  # no width
        anno(segmentation=[]),  # no polygon
    ]
    instances = utils.annotations_to_instances(annos, (10, 12))
    kept, mask = utils.filter_empty_instances(instances, return_mask=True)
    assert len(kept) == 1 and mask.tolist() == [True, False, False]
    assert len(utils.filter_empty_instances(instances, by_box=False)) == 2
    assert len(utils.filter_empty_instances(instances, by_mask=False)) == 2
    assert len(utils.filter_empty_instances(instances, box_threshold=3.0)) == 0
    with pytest.raises(AssertionError):
        utils.filter_empty_instances(instances, by_box=False, by_mask=False)


# ------------------------------------------------------------------------- config, metadata
def test_check_metadata_consistency():
    for name, classes in (("t_du_a", ["x"]), ("t_du_b", ["y"]), ("t_du_c", ["x"])):
        MetadataCatalog.get(name).thing_classes = classes
    utils.check_metadata_consistency("thing_classes", ["t_du_a", "t_du_c"])
    with pytest.raises(ValueError, match="thing_classes"):
        utils.check_metadata_consistency("thing_classes", ["t_du_a", "t_du_b"])


def test_build_augmentation():
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (10, 20), 30
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 15, 40
    resize, flip = utils.build_augmentation(cfg, True)
    assert (resize.short_edge_length, resize.max_size) == ((10, 20), 30)
    assert resize.sample_style == "choice" and flip.horizontal and not flip.vertical
    (resize,) = utils.build_augmentation(cfg, False)
    assert (resize.short_edge_length, resize.max_size) == ((15, 15), 40)
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "vertical", "range"
    resize, flip = utils.build_augmentation(cfg, True)
    assert resize.sample_style == "range" and flip.vertical and not flip.horizontal
    cfg.INPUT.RANDOM_FLIP = "none"
    assert len(utils.build_transform_gen(cfg, True)) == 1
