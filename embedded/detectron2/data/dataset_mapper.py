"""From a dataset dict to the input of a model."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from detectron2.config import configurable

from . import detection_utils as utils
from . import transforms as T


class DatasetMapper:
    """Read the image, augment it, and turn the annotations into `Instances`.
    The result keeps the dict's other keys, `width` and `height` of the original image among them, and adds `image`:
    uint8 (C, H, W), and in training `instances`. image_format: of `detection_utils.read_image`. instance_mask_format:
    "polygon" or "bitmask". recompute_boxes: take the boxes around the transformed masks, which are tighter."""

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
    ):
        if use_keypoint or precomputed_proposal_topk is not None:
            got = f"{use_keypoint=}, {precomputed_proposal_topk=}"
            raise ValueError(f"Keypoints and precomputed proposals are not supported: got {got}.")
        assert use_instance_mask or not recompute_boxes, "recompute_boxes=True needs use_instance_mask=True."
        self.is_train, self.augmentations, self.image_format = is_train, T.AugmentationList(augmentations), image_format
        self.use_instance_mask, self.instance_mask_format = use_instance_mask, instance_mask_format
        self.recompute_boxes = recompute_boxes
        logging.getLogger(__name__).info(f"Augmentations of the mapper ({is_train=}): {self.augmentations}")

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict[str, Any]:
        augs = utils.build_augmentation(cfg, is_train)
        crop = is_train and cfg.INPUT.CROP.ENABLED
        if crop:
            augs.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        topk = cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None
        return {
            "is_train": is_train,
            "augmentations": augs,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "use_keypoint": cfg.MODEL.KEYPOINT_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "precomputed_proposal_topk": topk,
            "recompute_boxes": crop and cfg.MODEL.MASK_ON,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """dataset_dict stays as it is. Raises SizeMismatchError if the image contradicts it."""
        dataset_dict = copy.deepcopy(dataset_dict)
        image = utils.read_image(dataset_dict["file_name"], format=self.image_format)
        utils.check_image_size(dataset_dict, image)
        image, transforms = T.apply_augmentations(self.augmentations.augs, image)
        dataset_dict["image"] = torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image.shape[:2])
        return dataset_dict

    def _transform_annotations(self, dataset_dict: dict, transforms: T.Transform, image_shape: tuple[int, int]) -> None:
        """Replace "annotations" by "instances". image_shape: (h, w) after the transforms."""
        annos = [a for a in dataset_dict.pop("annotations") if a.get("iscrowd", 0) == 0]
        for anno in annos:
            if not self.use_instance_mask:
                anno.pop("segmentation", None)
            utils.transform_instance_annotations(anno, transforms, image_shape)
        instances = utils.annotations_to_instances(annos, image_shape, mask_format=self.instance_mask_format)
        if self.recompute_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)
