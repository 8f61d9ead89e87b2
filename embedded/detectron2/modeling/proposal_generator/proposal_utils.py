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
    """Per image the best `proposal_boxes` and `objectness_logits` after NMS within each level, sorted by score.
    proposals: per level (N, A_l, 4), xyxy in pixels. pred_objectness_logits: per level (N, A_l).
    image_sizes: (h, w) of the images to process, at most N.
    pre_nms_topk: candidates per level and image. post_nms_topk: results per image.
    min_box_size: boxes with a side of at most this many pixels are dropped.
    training: whether a box or score that is not finite raises FloatingPointError; else it is dropped."""
    num_images = len(image_sizes)
    boxes, scores, levels = [], [], []
    for level, (level_boxes, logits) in enumerate(zip(proposals, pred_objectness_logits)):
        top_scores, index = logits[:num_images].topk(min(logits.shape[1], pre_nms_topk), dim=1)
        scores.append(top_scores)
        boxes.append(level_boxes[:num_images].gather(1, index[..., None].expand(-1, -1, level_boxes.shape[2])))
        levels.append(torch.full((index.shape[1],), level, device=logits.device))
    boxes, scores, levels = cat(boxes, dim=1), cat(scores, dim=1), cat(levels)
    results = []
    for image_boxes, image_scores, size in zip(boxes, scores, image_sizes):
        finite = torch.isfinite(image_boxes).all(dim=1) & torch.isfinite(image_scores)
        if training and not finite.all():
            raise FloatingPointError(
                f"{int((~finite).sum())} of {len(finite)} predicted boxes or scores of the RPN are inf or nan: "
                "training has diverged; lower the learning rate or clip gradients."
            )
        found = Instances(size, proposal_boxes=Boxes(image_boxes), objectness_logits=image_scores, level=levels)[finite]
        found.proposal_boxes.clip(size)
        found = found[found.proposal_boxes.nonempty(threshold=min_box_size)]
        keep = batched_nms(found.proposal_boxes.tensor, found.objectness_logits, found.level, nms_thresh)
        found.remove("level")
        results.append(found[keep[:post_nms_topk]])
    return results


def add_ground_truth_to_proposals(gt: list[Instances] | list[Boxes], proposals: list[Instances]) -> list[Instances]:
    """Append each image's ground truth boxes to its proposals. Raises ValueError if the lists differ in length."""
    if len(gt) != len(proposals):
        raise ValueError(f"Got {len(gt)} ground truths for {len(proposals)} proposals: both need the same length.")
    return [add_ground_truth_to_proposals_single_image(*pair) for pair in zip(gt, proposals)]


def add_ground_truth_to_proposals_single_image(gt: Instances | Boxes, proposals: Instances) -> Instances:
    """The proposals followed by gt as proposals of logit 23.03. gt must have every field that the proposals have
    (AssertionError); its other fields are dropped."""
    boxes, given = (gt, {}) if isinstance(gt, Boxes) else (gt.gt_boxes, gt.get_fields())
    logits = torch.full((len(boxes),), GT_LOGIT, device=boxes.device)
    fields = {**given, "proposal_boxes": boxes, "objectness_logits": logits}
    addition = Instances(proposals.image_size)
    for name in proposals.get_fields():
        assert name in fields, f"The ground truth lacks the proposals' field '{name}'."
        addition.set(name, fields[name])
    return Instances.cat([proposals, addition])
