"""Dynamic R-CNN (arXiv:2004.06002): while proposals get better, the IoU threshold of positives rises (sec. 4.1) and
the smooth L1 loss bends nearer to zero (sec. 4.2). Detection and its parameters are those of Faster R-CNN."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from shared.distributed import sum_over_workers

MIN_ERROR = 1e-15  # a median below it leaves beta as it is


class RecordingMatcher(Matcher):
    """Foreground from one threshold on; keeps the `topk`-th best IoU of each image that it is called with."""

    def __init__(self, threshold: float, topk: int):
        super().__init__([threshold], [0, 1], allow_low_quality_matches=False)
        self.topk, self.recorded = topk, []

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """(G, P) IoU, or the worst of fewer than `topk` proposals; G or P may be 0 and then nothing is kept."""
        if match_quality_matrix.numel() > 0:
            best = match_quality_matrix.max(dim=0).values
            self.recorded.append(best.topk(min(self.topk, len(best))).values[-1])
        return super().__call__(match_quality_matrix)


class DynamicStatistics(nn.Module):
    """Threshold and beta of the current interval, and what the next ones are made of.

    After every `update_interval` iterations, in which I_t is the mean over the images of the top-k IoU and E_t the
    top-k error of the box targets:

        threshold <- max(min_iou, mean of I_t),   beta <- min(initial beta, median of E_t)

    Iterations without objects (no I_t) or positives (no E_t) do not count. Images are those of the process or, with
    `sync`, of all: every process then has the values of one with the whole batch. Everything lies in buffers, so a
    resumed run goes on as if it had not stopped; checkpoints hold the main process's. The values are read back once per
    interval.
    """

    def __init__(self, *, threshold: float, beta: float, update_interval: int, min_iou: float, sync: bool):
        """threshold, beta: of the first interval."""
        super().__init__()
        self.threshold, self.beta = threshold, beta  # of `values`, as numbers
        self.max_beta, self.update_interval, self.min_iou, self.sync = beta, update_interval, min_iou, sync
        self._step = 0
        self.held = False  # see shared.modeling.memory
        self.register_buffer("values", torch.tensor([threshold, beta], dtype=torch.float64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))  # iterations of this interval
        self.register_buffer("history", torch.full((2, update_interval), math.nan))  # I_t, E_t; nan: none

    @torch.no_grad()
    def record(self, ious: list[Tensor], error: Tensor) -> None:
        """Take in an iteration: ious, one scalar for each image of this process that has objects; error, of
        `topk_error`. With `sync` every process must call it."""
        if self.held:
            return
        if ious or self.sync:
            values = torch.stack(ious) if ious else self.history.new_zeros(0)
            total = torch.stack([values.sum(), values.new_tensor(len(ious))])
            total = sum_over_workers(total) if self.sync else total
            self.history[0, self._step] = total[0] / total[1]  # nan of no image
        self.history[1, self._step] = error
        self._step += 1
        self.step.add_(1)
        if self._step == self.update_interval:
            self._update()

    def _update(self) -> None:
        ious, errors = self.history.double()
        iou, error = torch.stack([ious.nanmean(), errors.nanquantile(0.5)]).tolist()
        if not math.isnan(iou):
            self.threshold = max(self.min_iou, iou)
        if error >= MIN_ERROR:
            self.beta = min(self.max_beta, error)
        self.values.copy_(self.values.new_tensor([self.threshold, self.beta]))
        self._restart()

    def _restart(self) -> None:
        self._step = 0
        self.step.zero_()
        self.history.fill_(math.nan)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if f"{prefix}history" not in state_dict:  # Faster R-CNN's, or of another interval
            self._restart()
        self._step = int(self.step)
        self.threshold, self.beta = self.values.tolist()


def _single_threshold(matcher: Matcher) -> float:
    """Raises DynamicROIHeads' ValueError unless the matcher has one, between labels 0 and 1."""
    thresholds, labels = list(matcher.thresholds[1:-1]), list(matcher.labels)
    if len(thresholds) != 1 or labels != [0, 1] or matcher.allow_low_quality_matches:
        raise ValueError(
            f"DynamicROIHeads moves one threshold between labels 0 and 1, got {thresholds} and {labels}: set "
            f"proposal_matcher (MODEL.ROI_HEADS.IOU_THRESHOLDS, IOU_LABELS) to [0.5] and [0, 1]."
        )
    return thresholds[0]


@torch.no_grad()
def topk_error(
    proposals: list[Instances], num_classes: int, transform: Box2BoxTransform, topk: int, sync: bool = False
) -> Tensor:
    """The min(topk * images, positives)-th smallest (|dx| + |dy|) / 2 of the positives' box targets; nan without any.

    sync: of the images of all processes, which have equally many of them. Without a wait for the device; `get_deltas`
    asks it whether all widths are positive.
    """
    workers = comm.get_world_size() if sync else 1
    rank = topk * len(proposals) * workers
    smallest = _positive_errors(proposals, num_classes, transform).sort().values[:rank]
    smallest = F.pad(smallest, (0, rank - len(smallest)), value=math.inf)
    if workers > 1:
        parts = [torch.empty_like(smallest) for _ in range(workers)]
        dist.all_gather(parts, smallest)
        smallest = torch.cat(parts).sort().values[:rank]
    last = smallest.isfinite().sum() - 1
    return smallest.index_select(0, last.clamp(min=0)[None])[0].masked_fill(last < 0, math.nan)


def _positive_errors(proposals: list[Instances], num_classes: int, transform: Box2BoxTransform) -> Tensor:
    """(|dx| + |dy|) / 2 of the box targets of all proposals (R,); inf of those that are not positive."""
    classes = cat([p.gt_classes for p in proposals])
    boxes = cat([p.proposal_boxes.tensor for p in proposals])
    gt_boxes = cat([(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals])
    centres, gt_centres = Boxes(boxes).get_centers(), Boxes(gt_boxes).get_centers()
    moves = ((gt_centres - centres) / (boxes[:, 2:] - boxes[:, :2])).abs()
    errors = sum(weight * move for weight, move in zip(transform.weights, moves.unbind(1))) / 2
    return errors.masked_fill((classes < 0) | (classes >= num_classes), math.inf)


@ROI_HEADS_REGISTRY.register()
class DynamicROIHeads(StandardROIHeads):
    """StandardROIHeads with a threshold of positives and a beta that follow the training, see DynamicStatistics.

    Weights of Faster R-CNN and of this are exchangeable: the state dict has the statistics besides.
    """

    training_only = ("statistics",)

    @configurable
    def __init__(
        self,
        *,
        proposal_matcher: Matcher,
        iou_topk: int = 75,
        beta_topk: int = 10,
        update_interval: int = 100,
        min_iou: float = 0.4,
        initial_beta: float = 1.0,
        sync: bool = False,
        **kwargs,
    ):
        """
        Args:
            proposal_matcher: foreground from one threshold on; that of the first interval.
            iou_topk: K_I, rank of an image's proposals by IoU.
            beta_topk: K_beta, rank of the errors, times the number of images.
            update_interval: iterations.
            min_iou: lower bound of the threshold after the first interval.
            initial_beta: of the first interval, and the upper bound; the predictor's own is not used.
            sync: one threshold and beta for all processes, those of one with the whole batch.
            kwargs: StandardROIHeads' arguments.
        Raises:
            ValueError: another matcher; a box loss that is not smooth L1; a number out of range.
        """
        threshold = _single_threshold(proposal_matcher)
        if min(iou_topk, beta_topk, update_interval) < 1 or not 0 < min_iou <= 1 or not initial_beta > 0:
            raise ValueError(
                f"DynamicROIHeads: iou_topk, beta_topk, update_interval must be at least 1, min_iou in (0, 1], "
                f"initial_beta positive, got {iou_topk}, {beta_topk}, {update_interval}, {min_iou}, {initial_beta}."
            )
        super().__init__(proposal_matcher=RecordingMatcher(threshold, iou_topk), **kwargs)
        if self.box_predictor.box_reg_loss_type != "smooth_l1":
            raise ValueError(
                f"DynamicROIHeads needs a smooth L1 loss, got {self.box_predictor.box_reg_loss_type!r}: set "
                f'box_predictor.box_reg_loss_type (MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE) to "smooth_l1".'
            )
        self.iou_topk, self.beta_topk = iou_topk, beta_topk
        self.statistics = DynamicStatistics(
            threshold=threshold, beta=initial_beta, update_interval=update_interval, min_iou=min_iou, sync=sync
        )

    @classmethod
    def from_config(cls, cfg, input_shape):
        node = cfg.MODEL.DYNAMIC_RCNN
        return {**super().from_config(cfg, input_shape), **{key.lower(): value for key, value in node.items()}}

    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """As StandardROIHeads', at the interval's threshold."""
        self.proposal_matcher = RecordingMatcher(self.statistics.threshold, self.iou_topk)
        return super().label_and_sample_proposals(proposals, targets)

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]):
        """Returns losses in training, else detections."""
        if not self.training:
            return super()._forward_box(features, proposals)
        self._log()
        self.box_predictor.smooth_l1_beta = self.statistics.beta
        # before: the base class may put predicted boxes in the proposals' place
        transform, sync = self.box_predictor.box2box_transform, self.statistics.sync
        error = topk_error(proposals, self.num_classes, transform, self.beta_topk, sync)
        losses = super()._forward_box(features, proposals)
        self.statistics.record(self.proposal_matcher.recorded, error)
        return losses

    def _log(self) -> None:
        storage, statistics = get_event_storage(), self.statistics
        for name, value in (("iou_threshold", statistics.threshold), ("beta", statistics.beta)):
            storage.put_scalar(f"dynamic_rcnn/{name}", value, smoothing_hint=False)
