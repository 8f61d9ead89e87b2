"""DatasetMapper: from a dict to image and instances."""

import copy

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import detectron2.data.transforms as T
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BitMasks, BoxMode, PolygonMasks


@pytest.fixture
def sample(tmp_path):
    """A 20 x 30 (h x w) image; one object, one crowd, one object without width."""
    pixels = np.random.RandomState(0).randint(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")

    def anno(bbox, category_id, iscrowd=0):
        x, y, w, h = bbox
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        return {
            "bbox": bbox,
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": category_id,
            "iscrowd": iscrowd,
            "segmentation": [corners],
        }

    annos = [anno([2.0, 4, 10, 8], 3), anno([0.0, 0, 9, 9], 1, 1), anno([5.0, 5, 0, 3], 2)]
    return pixels, {
        "file_name": str(tmp_path / "a.png"),
        "height": 20,
        "width": 30,
        "image_id": 7,
        "note": "kept",
        "annotations": annos,
    }


def mapper(is_train=True, augs=(), **kwargs):
    return DatasetMapper(is_train, augmentations=list(augs), image_format="BGR", **kwargs)


def test_training(sample):
    pixels, d = sample
    before = copy.deepcopy(d)
    out = mapper(augs=[T.HFlipTransform(30)])(d)
    assert d == before
    image = out["image"]
    assert image.dtype == torch.uint8 and image.is_contiguous()
    np.testing.assert_array_equal(image, pixels[:, ::-1, ::-1].transpose(2, 0, 1))
    assert "annotations" not in out
    assert (out["height"], out["width"], out["image_id"], out["note"]) == (20, 30, 7, "kept")
    instances = out["instances"]
    assert len(instances) == 1  # neither the crowd nor the empty box
    assert instances.gt_boxes.tensor.tolist() == [[18, 4, 28, 12]]  # 30 - 12, 30 - 2
    assert instances.gt_classes.tolist() == [3] and instances.image_size == (20, 30)
    assert not instances.has("gt_masks")


def test_sizes_after_augmentation(sample):
    out = mapper(augs=[T.ResizeShortestEdge(40)])(sample[1])
    assert out["image"].shape == (3, 40, 60) and (out["height"], out["width"]) == (20, 30)
    assert out["instances"].image_size == (40, 60)
    assert out["instances"].gt_boxes.tensor.tolist() == [[4, 8, 24, 24]]


def test_grey_images_have_one_channel(sample):
    out = DatasetMapper(False, augmentations=[T.Resize((8, 9))], image_format="L")(sample[1])
    assert out["image"].shape == (1, 8, 9)
    out = DatasetMapper(False, augmentations=[], image_format="L")(sample[1])
    assert out["image"].shape == (1, 20, 30)


def test_inference(sample):
    out = mapper(is_train=False)(sample[1])
    assert "annotations" not in out and "instances" not in out
    assert out["note"] == "kept"


def test_training_without_annotations(sample):
    d = {k: v for k, v in sample[1].items() if k != "annotations"}
    assert "instances" not in mapper()(d)
    assert len(mapper(use_instance_mask=True)({**d, "annotations": []})["instances"]) == 0


def test_masks(sample):
    for mask_format, cls in (("polygon", PolygonMasks), ("bitmask", BitMasks)):
        out = mapper(use_instance_mask=True, instance_mask_format=mask_format)(sample[1])
        masks = out["instances"].gt_masks
        assert isinstance(masks, cls)
        assert masks.get_bounding_boxes().tensor.tolist() == [[2, 4, 12, 12]]


def test_recompute_boxes(sample):
    """The box of a cropped triangle is smaller than the cropped box."""
    d = sample[1]
    d["annotations"] = d["annotations"][:1]
    d["annotations"][0]["segmentation"] = [[2.0, 4.0, 12.0, 4.0, 2.0, 12.0]]
    crop = T.CropTransform(7, 0, 23, 20, 30, 20)  # its hypotenuse is at y = 8 for x = 7
    plain = mapper(augs=[crop], use_instance_mask=True)(d)["instances"]
    assert plain.gt_boxes.tensor.tolist() == [[0, 4, 5, 12]]
    tight = mapper(augs=[crop], use_instance_mask=True, recompute_boxes=True)(d)["instances"]
    assert tight.gt_boxes.tensor.tolist() == [[0, 4, 5, 8]]
    with pytest.raises(AssertionError, match="recompute_boxes"):
        mapper(recompute_boxes=True)


@pytest.mark.embedded_only
def test_recompute_boxes_of_nothing(sample):
    d = {**sample[1], "annotations": sample[1]["annotations"][1:2]}  # the crowd
    out = mapper(use_instance_mask=True, recompute_boxes=True)(d)
    assert len(out["instances"]) == 0


def test_size_mismatch(sample):
    with pytest.raises(SizeMismatchError):
        mapper()({**sample[1], "width": 31})


def test_from_config(sample):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MASK_FORMAT = (40,), "bitmask"
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [10, 12]
    cfg.MODEL.MASK_ON = True
    train = DatasetMapper(cfg)
    crop, resize, flip = train.augmentations.augs
    assert isinstance(crop, T.RandomCrop) and isinstance(flip, T.RandomFlip)
    assert train.is_train and train.use_instance_mask and train.recompute_boxes
    assert train.instance_mask_format == "bitmask" and train.image_format == "BGR"
    assert train(sample[1])["image"].shape == (3, 40, 48)  # 10 x 12, then times 4
    test = DatasetMapper(cfg, is_train=False)
    assert len(test.augmentations.augs) == 1 and not test.is_train
    cfg.MODEL.MASK_ON = False
    assert not DatasetMapper(cfg).recompute_boxes
    cfg.MODEL.MASK_ON, cfg.INPUT.CROP.ENABLED = True, False
    uncropped = DatasetMapper(cfg)
    assert not uncropped.recompute_boxes and len(uncropped.augmentations.augs) == 2
    cfg.MODEL.MASK_ON = False
    override = DatasetMapper(cfg, True, augmentations=[], image_format="RGB")
    np.testing.assert_array_equal(override(sample[1])["image"], sample[0].transpose(2, 0, 1))


def test_augmentations_from_a_lazy_config(sample):
    augs = OmegaConf.create([T.Resize((8, 9))], flags={"allow_objects": True})
    out = DatasetMapper(is_train=True, augmentations=augs, image_format="BGR")(sample[1])
    assert out["image"].shape == (3, 8, 9)


def test_transform_annotations_can_be_overridden(sample):
    class Count(DatasetMapper):
        def _transform_annotations(self, dataset_dict, transforms, image_shape):
            dataset_dict["seen"] = (len(dataset_dict.pop("annotations")), image_shape)

    out = Count(True, augmentations=[T.Resize((8, 9))], image_format="BGR")(sample[1])
    assert out["seen"] == (3, (8, 9)) and "instances" not in out


@pytest.mark.embedded_only
@pytest.mark.parametrize("kwargs", [{"use_keypoint": True}, {"precomputed_proposal_topk": 5}])
def test_what_is_left_out_is_refused(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        mapper(**kwargs)
