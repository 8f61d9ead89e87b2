"""Masks for the label maps, drawn where the data loader's workers are."""

from detectron2.data import DatasetMapper

from .maps import to_bitmasks


class LabelMaskMapper(DatasetMapper):
    """A DatasetMapper that adds `label_masks` (BitMasks) to the instances that have gt_masks.

    For LabelEnc's source "mask": drawing polygons takes milliseconds an object, which the training process would wait
    for. gt_masks stay as they are: the mask head crops polygons more exactly than bit masks.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        result = super().__call__(dataset_dict)
        instances = result.get("instances")
        if instances is not None and instances.has("gt_masks"):
            instances.label_masks = to_bitmasks(instances.gt_masks, instances.image_size)
        return result
