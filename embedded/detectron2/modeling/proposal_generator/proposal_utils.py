"""Selection of RPN proposals, and ground truth as additional proposals."""

import math

import torch
from torch import Tensor

from detectron2.layers import batched_nms, cat
from detectron2.structures import Boxes, Instances

# The logit of a box that is certainly an object: log(p / (1 - p)), p = 1 - 1e-10.
GT_LOGIT = math.log((1.0 - 1e-10) / (1 - (1.0 - 1e-10)))


def find_top_rpn_proposals(
    proposals: list[Tensor],
    pred_objectness_logits: list[Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """The best boxes of every image after NMS within each level, sorted by score.

    Args:
        proposals: per level (N, A_l, 4), xyxy in pixels.
        pred_objectness_logits: per level (N, A_l).
        image_sizes: (h, w) of the images to process, at most N.
        pre_nms_topk: candidates per level and image.
        min_box_size: boxes with a side of at most this many pixels are dropped.
        training: whether a box or score that is not finite raises FloatingPointError; else it is dropped.
    Returns:
        per image `proposal_boxes` and `objectness_logits` of at most post_nms_topk boxes.
    """
    num_images = len(image_sizes)
    boxes, scores, levels = [], [], []
    for level, (level_boxes, logits) in enumerate(zip(proposals, pred_objectness_logits)):
        count = min(level_boxes.shape[1], pre_nms_topk)
        top_scores, index = logits[:num_images].topk(count, dim=1)
        index = index[..., None].expand(-1, -1, level_boxes.shape[2])
        boxes.append(level_boxes[:num_images].gather(1, index))
        scores.append(top_scores)
        levels.append(torch.full((count,), level, dtype=torch.int64, device=logits.device))
    boxes, scores, levels = cat(boxes, dim=1), cat(scores, dim=1), cat(levels)
    results = []
    for image_boxes, image_scores, size in zip(boxes, scores, image_sizes):
        valid = _valid_candidates(image_boxes, image_scores, levels, size, min_box_size, training)
        image_boxes, image_scores, image_levels = valid
        keep = batched_nms(image_boxes.tensor, image_scores, image_levels, nms_thresh)[:post_nms_topk]
        results.append(Instances(size, proposal_boxes=image_boxes[keep], objectness_logits=image_scores[keep]))
    return results


def _valid_candidates(boxes, scores, levels, image_size, min_box_size, training):
    """One image's finite candidates, clipped to the image, without those that are too small."""
    valid = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores)
    if not valid.all():
        if training:
            raise FloatingPointError(
                f"{int((~valid).sum())} of {len(valid)} predicted boxes or scores of the RPN are "
                "inf or nan: training has diverged; lower the learning rate or clip gradients."
            )
        boxes, scores, levels = boxes[valid], scores[valid], levels[valid]
    boxes = Boxes(boxes)
    boxes.clip(image_size)
    large = boxes.nonempty(threshold=min_box_size)
    if not large.all():
        boxes, scores, levels = boxes[large], scores[large], levels[large]
    return boxes, scores, levels


def add_ground_truth_to_proposals(gt: list[Instances] | list[Boxes], proposals: list[Instances]) -> list[Instances]:
    """Append each image's ground truth boxes to its proposals. Raises ValueError if the lists differ in length."""
    if len(gt) != len(proposals):
        raise ValueError(f"Got {len(gt)} ground truths for {len(proposals)} proposals: both need the same length.")
    return [add_ground_truth_to_proposals_single_image(*pair) for pair in zip(gt, proposals)]


def add_ground_truth_to_proposals_single_image(gt: Instances | Boxes, proposals: Instances) -> Instances:
    """The proposals followed by gt as proposals of logit 23.03. gt must have every field that
    the proposals have (AssertionError); its other fields are dropped."""
    boxes = gt if isinstance(gt, Boxes) else gt.gt_boxes
    given = {} if isinstance(gt, Boxes) else gt.get_fields()
    logits = torch.full((len(boxes),), GT_LOGIT, device=boxes.device)
    fields = {**given, "proposal_boxes": boxes, "objectness_logits": logits}
    addition = Instances(proposals.image_size)
    for name in proposals.get_fields():
        assert name in fields, f"The ground truth lacks the proposals' field '{name}'."
        addition.set(name, fields[name])
    return Instances.cat([proposals, addition])
