"""Numbers that tell how an assignment goes; the event storage gets them as `assign/...`."""

import torch

from .assign import Assignment, Candidates, MuSuAssigner, ranks, score
from .pairs import Scene, blocks_of_pairs


@torch.no_grad()
def describe(scene: Scene, assignment: Assignment) -> dict[str, float]:
    """Means over the objects of the batch; {} without any.

    bag_size: samples of an object. empty_bags: share of objects without any. Of the others: n_eff_cls, n_eff_reg: sums
    of weights; tau_cls, tau_reg: temperatures, where weights have one; top1_agreement: share whose first sample of both
    heads is the same (1 with hard labels). top_scored_iou: IoU of the decoded box at the object's top-scored location,
    over the objects that have a location: what the method is to raise, whatever the assigner.
    """
    num = len(scene.gt_boxes)
    if num == 0:
        return {}
    gts = assignment.gts
    size = gts.bincount(minlength=num).float()
    filled = size > 0
    zeros = size.new_zeros(num)
    both = ((assignment.w_cls == 1) & (assignment.w_reg == 1)).float()
    values = {
        "bag_size": size.mean(),
        "empty_bags": 1 - filled.float().mean(),
        "n_eff_cls": zeros.index_add(0, gts, assignment.w_cls)[filled].mean(),
        "n_eff_reg": zeros.index_add(0, gts, assignment.w_reg)[filled].mean(),
        "top1_agreement": zeros.scatter_reduce(0, gts, both, "amax")[filled].mean(),
        "top_scored_iou": top_scored(scene).u.mean(),
    }
    if assignment.tau_cls is not None:
        values.update(tau_cls=assignment.tau_cls[filled].mean(), tau_reg=assignment.tau_reg[filled].mean())
    found = dict(zip(values, torch.stack(list(values.values())).tolist()))
    return {name: value for name, value in found.items() if value == value}  # nan: a mean over no object


@torch.no_grad()
def top_scored(scene: Scene) -> Candidates:
    """Of each object that has a location, the anchor strictly inside with the highest score for its class."""
    num, best = len(scene.gt_boxes), [score(scene, *scene.gt_images.new_zeros(2, 0))]
    for block in blocks_of_pairs(scene, None, False, MuSuAssigner.max_pairs):
        pairs = score(scene, *block)
        best.append(pairs.take(ranks(pairs.log_s, pairs.gts, num) == 0))
    return Candidates(*map(torch.cat, zip(*best)))
