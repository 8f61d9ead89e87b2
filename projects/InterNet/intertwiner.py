"""The feature intertwiner: what guides the features of small objects during training ("Feature Intertwiner for Object
Detection", ICLR 2019, arXiv:1903.11851, Sec. 3). Training only. N: images, L: levels (index 0 the finest), F:
foreground RoIs of the batch, P: pairs of a large RoI and a level that it is large for, D: width of the critic."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from shared.distributed import sum_over_workers

from .buffer import ClassBuffer
from .losses import LOSSES, REDUCTIONS, intertwiner_loss
from .pooler import InterNetROIPooler
from .transport import ScaleOT
from .units import Critic

SOURCES = ("a", "b", "c_bilinear", "c_neural", "d")
GENERATED = ("c_bilinear", "c_neural", "d")  # need a ScaleOT
LARGE_PAIRS = ("all", "nearest")


class Foreground(NamedTuple):
    """The batch's foreground RoIs, as the detector's small path sees them."""

    rois: Tensor  # (F, 5) image, x0, y0, x1, y1 in pixels
    levels: Tensor  # (F,) index
    classes: Tensor  # (F,) in [0, K)
    features: Tensor  # (F, D) the critic's of the made-up features


class FeatureIntertwiner(nn.Module):
    """Large path, class buffer and loss.

    Eq. (7): an RoI is small at its own level and large for every finer one. For each pair of a large RoI (level m) and
    such a level l its feature is critic(RoIAlign(S_{l,m})), not made up, and goes into the buffer. Sources (Table 1):

        "a"           S = P_l
        "b"           S = P_m, the RoI's own level: the same for all l, so pooled once and counted m - l_min times
        "c_bilinear"  S = P_m resized to P_l's size
        "c_neural"    S = P_{m|l}, a network's (`ScaleOT`)
        "d"           the same with a loss between P_l and P_{m|l}

    Then Eq. (3) pulls every RoI's feature towards its class's representative, `buffer.update` first.

    With `detach` the representatives are constants and the large path keeps no graph: nothing trains the network of
    "c_neural", which is then frozen, with a warning.
    """

    def __init__(
        self,
        *,
        buffer: ClassBuffer,
        loss: str = "l2",
        loss_weight: float = 1.0,
        reduction: str = "instance_mean",
        last_level_loss: bool = True,
        start_iter: int = 0,
        detach: bool = True,
        large_source: str = "b",
        large_pairs: str = "all",
        transport: ScaleOT | None = None,
        big_supervise: bool = False,
    ):
        """last_level_loss: RoIs of the coarsest level, which has no large set, take part in the loss.
        start_iter: before this iteration the loss is 0; the buffer fills meanwhile.
        large_pairs: "nearest" keeps l = m - 1 alone. big_supervise: adds `loss_big`, the cross entropy of a linear
        classifier of the large features; it trains the critic and the maps. The paper found no use in it."""
        super().__init__()
        _check("loss (LOSS)", loss, LOSSES)
        _check("reduction (REDUCTION)", reduction, REDUCTIONS)
        _check("large_source (LARGE_SOURCE)", large_source, SOURCES)
        _check("large_pairs (LARGE_PAIRS)", large_pairs, LARGE_PAIRS)
        if (transport is not None) != (large_source in GENERATED):
            raise ValueError(
                f"FeatureIntertwiner: large_source {large_source!r} needs "
                f"{'a transport (ScaleOT)' if transport is None else 'transport None: it has no generator'}."
            )
        self.buffer, self.transport = buffer, transport
        self.loss, self.loss_weight, self.reduction = loss, loss_weight, reduction
        self.last_level_loss, self.start_iter = last_level_loss, start_iter
        self.detach, self.large_source, self.large_pairs = detach, large_source, large_pairs
        self.big_classifier = nn.Linear(buffer.dim, buffer.num_classes) if big_supervise else None
        if transport is not None and detach and not big_supervise and transport.loss == "none":
            transport.freeze_generators()

    def forward(
        self,
        *,
        critic: Critic,
        pooler: InterNetROIPooler,
        maps: list[Tensor],
        image_sizes: list[tuple[int, int]],
        foreground: Foreground,
    ) -> dict[str, Tensor]:
        """maps: P_l (N, C, H_l, W_l), finest first; image_sizes: (h, w) in pixels without padding.
        Returns loss_inter and, where there are, loss_ot and loss_big: float32 scalars."""
        losses = {}
        with_graph = not self.detach or self.big_classifier is not None
        generated = {}
        if self.transport is not None:
            pairs = self.large_pairs
            generated, losses = self.transport(maps, image_sizes, pooler.strides, pairs, detach=not with_graph)
        rows, finer = self.large_set(foreground.levels)
        classes = foreground.classes[rows]
        with torch.set_grad_enabled(with_graph):
            rois, levels = foreground.rois, foreground.levels
            features = self._large_features(critic, pooler, maps, generated, rois, levels, rows, finer)
        sums, counts = self.buffer.accumulate(features.detach() if self.detach else features, classes, finer)
        means, seen = self.buffer.update(sums, counts)
        if self.big_classifier is not None:
            losses["loss_big"] = self._big_loss(features, classes)
        losses["loss_inter"] = self._inter_loss(foreground, means, seen)
        storage = get_event_storage()
        storage.put_scalar("internet/num_large", len(rows))
        storage.put_scalar("internet/num_representatives", int(seen.sum()))
        return losses

    def large_set(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Levels (F,) -> the pairs of Eq. (7): rows (P,) of the RoIs, and the finer levels l (P,) that they guide."""
        finer = torch.arange(self.buffer.num_levels - 1, device=levels.device)
        distance = levels[:, None] - finer
        return ((distance > 0) if self.large_pairs == "all" else (distance == 1)).nonzero(as_tuple=True)

    def _large_features(self, critic, pooler, maps, generated, rois, levels, rows, finer) -> Tensor:
        """The critic's features of all pairs, (P, D). rois (F, 5), levels (F,); rows, finer (P,)."""
        if self.large_source == "b":
            large, positions = rows.unique(return_inverse=True)
            pooled = pooler.pool_from(maps, range(len(maps)), rois[large], levels[large])
            return critic.with_running_statistics(pooled)[positions]
        if self.large_source == "a":
            sources, grids, index = maps, list(range(len(maps))), finer
        else:
            pairs = sorted(generated)
            sources, grids = [generated[pair] for pair in pairs], [l for l, _ in pairs]
            number = levels.new_full((len(maps), len(maps)), -1)
            for i, pair in enumerate(pairs):
                number[pair] = i
            index = number[finer, levels[rows]]
        return critic.with_running_statistics(pooler.pool_from(sources, grids, rois[rows], index))

    def _inter_loss(self, foreground: Foreground, means: Tensor, seen: Tensor) -> Tensor:
        entries = self.buffer.entries(foreground.classes, foreground.levels)
        valid = seen[entries]
        if not self.last_level_loss:
            valid = valid & (foreground.levels < self.buffer.num_levels - 1)
        features = foreground.features.float()[valid]
        loss = intertwiner_loss(features, entries[valid], means, kind=self.loss, reduction=self.reduction)
        storage = get_event_storage()
        storage.put_scalar("internet/num_small", len(features))
        return loss * (self.loss_weight if storage.iter >= self.start_iter else 0.0)

    def _big_loss(self, features: Tensor, classes: Tensor) -> Tensor:
        """Mean over the pairs of all workers."""
        logits = self.big_classifier(features).float()
        total = sum_over_workers(logits.new_tensor(len(logits))).clamp(min=1)
        return F.cross_entropy(logits, classes, reduction="sum") * comm.get_world_size() / total


def _check(name: str, value: str, known) -> None:
    if value not in known:
        raise ValueError(f"FeatureIntertwiner: {name} is {value!r}, choose one of {', '.join(known)}.")
