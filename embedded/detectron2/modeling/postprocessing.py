"""From the size of a model's input back to the size that the caller asked for."""

from detectron2.structures import Instances, ROIMasks


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Scale and clip the boxes (those of `results`, in place), drop empty ones, paste the masks: `pred_masks`
    (n, 1, M, M) or ROIMasks become (n, output_height, output_width) bool."""
    height, width = results.image_size
    results = Instances((output_height, output_width), **results.get_fields())
    name = "pred_boxes" if results.has("pred_boxes") else "proposal_boxes"
    assert results.has(name), "detector_postprocess needs pred_boxes or proposal_boxes."
    boxes = results.get(name)
    boxes.scale(output_width / width, output_height / height)
    boxes.clip(results.image_size)
    results = results[boxes.nonempty()]
    if results.has("pred_masks"):
        masks = results.pred_masks if isinstance(results.pred_masks, ROIMasks) else ROIMasks(results.pred_masks[:, 0])
        results.pred_masks = masks.to_bitmasks(results.pred_boxes, output_height, output_width, mask_threshold).tensor
    return results
