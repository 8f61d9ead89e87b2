"""Mutual supervision: samples and weights of both heads of a dense detector (arXiv:2109.05986, abstract and Fig. 2).

Known from the paper: each head has samples of its own, those of the box head chosen mainly by classification scores,
those of the class head mostly by IoU, from a bag of candidates per object, as weights on the loss of each location.
Every formula below is our reconstruction, and every decision a field of `MuSuAssigner`. With z_i the logit of the
object's class at anchor i, s = sigmoid(z), u = IoU of the decoded box and the object:

    bag:      anchors inside the object with s u >= min(mean + k std, max) over those; an anchor has one object
    key_cls = a_c log s + (1 - a_c) log u         a_c = 0.1: the class head ranks mostly by IoU
    key_reg = (1 - a_r) log s + a_r log u         a_r = 0.3: the box head ranks mainly by score
    weight  = exp(-rank / tau),  tau = n^0.5 / kappa,  n: size of the bag

Letters of shapes as in pairs.py. Everything is in float32 or better, and nothing requires a gradient.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou

from .pairs import Scene, blocks_of_pairs

MIN_IOU = 1e-6  # floor of u in the keys
MIN_TEMPERATURE = 1e-9
CHOICES = {
    "bag_region": ("inside", "center"),
    "bag_joint": ("product", "geomean"),
    "bag_filter": ("mean_std", "topk", "none"),
    "bag_fallback": ("none", "nearest"),
    "conflict": ("joint", "iou", "min_area", "multi"),
    "weight_fn": ("rank_exp", "score_norm", "hard"),
    "temp_mode": ("adaptive", "fixed"),
}


class Assignment(NamedTuple):
    """Samples of a batch, sorted by object."""

    anchors: Tensor  # (P,) int64, index among the batch's B N anchors
    gts: Tensor  # (P,) int64, index among the batch's M objects
    w_cls: Tensor  # (P,) in [0, 1], soft label of the object's class at the anchor
    w_reg: Tensor  # (P,) in [0, 1], weight of the box loss
    tau_cls: Tensor | None = None  # (M,) temperatures; None where weights have none
    tau_reg: Tensor | None = None


class Candidates(NamedTuple):
    """Pairs of an anchor and an object, sorted by object, and what the heads say of them; all (P,)."""

    anchors: Tensor
    gts: Tensor
    log_s: Tensor  # log probability of the object's class
    u: Tensor  # IoU of the decoded box and the object's

    def take(self, rows: Tensor) -> "Candidates":
        return Candidates(*(x[rows] for x in self))


@dataclass(frozen=True)
class MuSuAssigner:
    """The decisions of the assignment; called with a `Scene` it gives an `Assignment`. All defaults are ours.

    bag_region: candidates lie strictly inside the object; "center": and within `center_radius` strides of its centre.
    bag_joint: q = s u, or its square root. bag_filter: q >= min(mean + bag_filter_k std, max); the `bag_topk` largest
        q; or all. bag_fallback: "nearest" gives an object without a candidate the location nearest to its centre.
    conflict: an anchor in several bags goes to the object with the largest q, the largest u or the smallest area; ties
        to the first; "multi": it stays in all.
    mix_own_cls, mix_own_reg: a_c, a_r; (0, 0) pure mutual, (0.5, 0.5) joint, (1, 1) self-supervision.
    weight_fn: "rank_exp" as above; "score_norm": exp(key - largest key of the bag); "hard": 1.
    temp_mode: tau = n^temp_exp / temp_div, at least tau_min; or `temp_fixed`.
    max_pairs: candidates that are scored at a time; it bounds memory and changes no result.
    """

    bag_region: str = "inside"
    center_radius: float = 1.5
    bag_joint: str = "product"
    bag_filter: str = "mean_std"
    bag_filter_k: float = 1.0
    bag_topk: int = 27
    bag_fallback: str = "none"
    conflict: str = "joint"
    mix_own_cls: float = 0.1
    mix_own_reg: float = 0.3
    weight_fn: str = "rank_exp"
    temp_mode: str = "adaptive"
    temp_exp: float = 0.5
    temp_div_cls: float = 2.0
    temp_div_reg: float = 1.0
    tau_min: float = 0.0
    temp_fixed: float = 5.0
    max_pairs: int = 2_000_000

    def __post_init__(self):
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"MuSuAssigner: {name} is {getattr(self, name)!r}, choose one of {', '.join(choices)}."
                )
        for name in ("mix_own_cls", "mix_own_reg"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"MuSuAssigner: {name} must lie in [0, 1], got {getattr(self, name)}.")
        for name in ("center_radius", "bag_topk", "temp_div_cls", "temp_div_reg", "temp_fixed", "max_pairs"):
            if getattr(self, name) <= 0:
                raise ValueError(f"MuSuAssigner: {name} must be positive, got {getattr(self, name)}.")

    def __call__(self, scene: Scene) -> Assignment:
        return musu_assign(scene, self)


@torch.no_grad()
def musu_assign(scene: Scene, rule: MuSuAssigner) -> Assignment:
    """Samples and weights of a batch. Objects without a candidate, or without one left, have none."""
    num_gts = len(scene.gt_boxes)
    radius = rule.center_radius if rule.bag_region == "center" else None
    blocks = blocks_of_pairs(scene, radius, rule.bag_fallback == "nearest", rule.max_pairs)
    bags = [filter_bags(score(scene, *pairs), num_gts, rule) for pairs in blocks]
    bags = Candidates(*map(torch.cat, zip(*bags))) if bags else score(scene, *scene.gt_images.new_zeros(2, 0))
    return weigh(resolve_conflicts(bags, scene.gt_boxes, scene.boxes[..., 0].numel(), rule), num_gts, rule)


def score(scene: Scene, anchors: Tensor, gts: Tensor) -> Candidates:
    """What the heads say of the pairs, in float32."""
    z = scene.logits.flatten(0, 1)[anchors, scene.gt_classes[gts]].float()
    decoded = scene.boxes.flatten(0, 1).index_select(0, anchors)
    u = matched_pairwise_iou(Boxes(decoded), Boxes(scene.gt_boxes.index_select(0, gts)))
    return Candidates(anchors, gts, F.logsigmoid(z), u.nan_to_num(nan=0))


def joint_score(pairs: Candidates, rule: MuSuAssigner) -> Tensor:
    """q (P,), float64: sums of it decide."""
    q = pairs.log_s.double().exp() * pairs.u
    return q.sqrt() if rule.bag_joint == "geomean" else q


def filter_bags(pairs: Candidates, num_gts: int, rule: MuSuAssigner) -> Candidates:
    """The pairs that stay in their object's bag. Each object's threshold depends on its own candidates alone."""
    if rule.bag_filter == "none":
        return pairs
    q, gts = joint_score(pairs, rule), pairs.gts
    if rule.bag_filter == "topk":
        return pairs.take(ranks(q, gts, num_gts) < rule.bag_topk)
    zeros = q.new_zeros(num_gts)
    count = gts.bincount(minlength=num_gts).clamp(min=1)
    mean = zeros.index_add(0, gts, q) / count
    std = (zeros.index_add(0, gts, (q - mean[gts]) ** 2) / count).sqrt()  # of one candidate: 0
    largest = zeros.scatter_reduce(0, gts, q, "amax")
    # mean + k std may lie above the largest, which then stays alone
    return pairs.take(q >= torch.minimum(mean + rule.bag_filter_k * std, largest)[gts])


def resolve_conflicts(bags: Candidates, gt_boxes: Tensor, num_anchors: int, rule: MuSuAssigner) -> Candidates:
    """Each anchor in one bag, unless `conflict` is "multi". num_anchors: of the whole batch."""
    if rule.conflict == "multi":
        return bags
    if rule.conflict == "min_area":
        priority = -Boxes(gt_boxes).area()[bags.gts]
    else:
        priority = bags.u if rule.conflict == "iou" else joint_score(bags, rule)
    return bags.take(owned(bags.anchors, bags.gts, priority, num_anchors))


def owned(anchors: Tensor, gts: Tensor, priority: Tensor, num_anchors: int) -> Tensor:
    """(P,) bool: the pair has the highest priority of its anchor; of equal ones, the first object's."""
    best = priority.new_full((num_anchors,), -torch.inf).scatter_reduce(0, anchors, priority, "amax")
    wins = priority == best[anchors]
    first = gts.new_full((num_anchors,), torch.iinfo(gts.dtype).max)
    first = first.scatter_reduce(0, anchors[wins], gts[wins], "amin")
    return wins & (gts == first[anchors])


def weigh(bags: Candidates, num_gts: int, rule: MuSuAssigner) -> Assignment:
    """The weights of both heads in the final bags."""
    log_u = bags.u.clamp(min=MIN_IOU).log()
    keys = [a * bags.log_s + (1 - a) * log_u for a in (rule.mix_own_cls, 1 - rule.mix_own_reg)]
    if rule.weight_fn == "hard":
        weights = [torch.ones_like(log_u)] * 2
    elif rule.weight_fn == "score_norm":
        lowest = log_u.new_full((num_gts,), -torch.inf)
        weights = [(key - lowest.scatter_reduce(0, bags.gts, key, "amax")[bags.gts]).exp() for key in keys]
    else:
        sizes = bags.gts.bincount(minlength=num_gts)
        taus = [temperature(sizes, divisor, rule) for divisor in (rule.temp_div_cls, rule.temp_div_reg)]
        weights = [(-ranks(key, bags.gts, num_gts) / tau[bags.gts]).exp() for key, tau in zip(keys, taus)]
        return Assignment(bags.anchors, bags.gts, *weights, *taus)
    return Assignment(bags.anchors, bags.gts, *weights)


def temperature(sizes: Tensor, divisor: float, rule: MuSuAssigner) -> Tensor:
    """tau (M,) of bags of these sizes."""
    if rule.temp_mode == "fixed":
        return torch.full_like(sizes, rule.temp_fixed, dtype=torch.float32)
    return (sizes.float() ** rule.temp_exp / divisor).clamp(min=max(rule.tau_min, MIN_TEMPERATURE))


def ranks(key: Tensor, gts: Tensor, num_gts: int) -> Tensor:
    """Place (P,) of each pair in its object's bag by falling key, from 0; of equal keys, the first pair comes first."""
    order = torch.argsort(key, descending=True, stable=True)
    order = order[torch.argsort(gts[order], stable=True)]
    sizes = gts.bincount(minlength=num_gts)
    rank = torch.empty_like(gts)
    rank[order] = torch.arange(len(gts), device=gts.device) - (sizes.cumsum(0) - sizes)[gts[order]]
    return rank
