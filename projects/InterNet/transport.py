"""Alignment of neighbouring levels by optimal transport ("Feature Intertwiner for Object Detection", ICLR 2019,
arXiv:1903.11851, Sec. 3.3, Eq. (4), Algorithm 1). N: images, C_l x H_l x W_l: map of level l, index 0 the finest.

Serves an FPN's levels and, with channels per level, the stages of any backbone (the paper's Sec. 6.3, CIFAR-10).
"""

import logging
import math
from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.utils.events import get_event_storage, has_event_storage
from shared.ops import sinkhorn_divergence
from shared.precision import no_autocast

from .generators import GENERATORS, Bilinear

LOSSES = ("none", "l2", "kl", "ot", "ot_debiased")
PAIRS = ("adjacent", "all")
LARGE_PAIRS = ("all", "nearest", "none")
CRITIC_MODES = ("trained", "frozen", "avgpool")
COLLAPSED = 0.9  # mean |cos| between channels from which on the critic has made them all the same
NORM_FLOOR = 1e-6  # of a channel's vector, where cosines are taken

logger = logging.getLogger(__name__)

Pair = tuple[int, int]  # (l, m), l < m


class ScaleOT(nn.Module):
    """Generators F_l, critics H_l, and a loss between P_l and P_{m|l} = F_l(...F_{m-1}(P_m)).

        loss = weight * sum over l of mean over m, images of D(H_l(P_l), H_l(P_{m|l}))

    H_l halves the size and keeps the channels; each channel, a vector over the cells, is a sample. D by `loss`:
        "ot"           Sinkhorn's transport cost of Algorithm 1: cost 1 - cosine, plan of total mass 1
        "ot_debiased"  2 W(p, p') - W(p', p') - W(p, p), the paper's "biased" version
        "l2"           mean squared difference, channel with the same channel
        "kl"           KL of the softmaxes over a channel's cells, H_l(P_l) first, mean over channels
        "none"         no loss and no critics: F alone

    The paper leaves open: the layers of F (`generators`) and H (3x3, stride 2, no bias), the pairs (its code:
    adjacent ones, one F and one H per level), what "l2" and "KL" compare, and padding (here all is 0 outside an image's
    own cells, so that its loss does not depend on the batch's other images). Minimised over H as well, as the paper
    has it, the loss has a trivial optimum: all channels of H alike. `ot/abs_cos_level{l}` shows that.

    Not seen by "ot": which channel is which. It is invariant to permutations of either side's channels.
    """

    def __init__(
        self,
        *,
        channels: int | Sequence[int],
        num_levels: int = 4,
        loss: str = "ot",
        weight: float = 1.0,
        eps: float = 0.1,
        iters: int = 10,
        pairs: str = "adjacent",
        generator: str = "conv_up_conv",
        critic_mode: str = "trained",
        backprop_plan: bool = False,
        log_domain: bool = False,
        norm: str = "BN",
        first_level: int = 2,
    ):
        """channels: of all levels, or one number each. weight: 0 freezes F and H, and the loss is a constant 0.
        eps, iters, log_domain: of Sinkhorn's iteration; the plain domain needs eps above 0.02.
        pairs: "adjacent" (l, l + 1) or "all" (l, m > l) for the loss. generator: see `generators`.
        critic_mode: "frozen" leaves H as initialised; "avgpool" has no parameters.
        backprop_plan: differentiate the iteration; False takes the plan as a constant, as the authors' code does.
        norm: of F. first_level: the number of level 0 in names of logged values."""
        super().__init__()
        _check("loss", loss, LOSSES)
        _check("pairs", pairs, PAIRS)
        _check("generator", generator, GENERATORS)
        _check("critic_mode", critic_mode, CRITIC_MODES)
        channels = [channels] * num_levels if isinstance(channels, int) else [int(c) for c in channels]
        if num_levels < 2 or len(channels) != num_levels:
            raise ValueError(
                f"ScaleOT needs channels of at least 2 levels: got {len(channels)} for num_levels {num_levels}."
            )
        if eps <= 0 or iters < 1:
            raise ValueError(f"ScaleOT needs eps above 0 and at least one iteration, got eps {eps}, iters {iters}.")
        self.num_levels, self.first_level = num_levels, first_level
        self.loss, self.weight, self.pairs = loss, weight, pairs
        self.eps, self.iters, self.log_domain = eps, iters, log_domain
        self.backprop_plan = backprop_plan
        layers = zip(channels[1:], channels[:-1])  # coarser, finer
        self.generators = nn.ModuleList(GENERATORS[generator](coarse, fine, norm) for coarse, fine in layers)
        with_critics = loss != "none"
        self.critics = nn.ModuleList(_make_critic(c, critic_mode) for c in channels[:-1] if with_critics)
        if with_critics and weight == 0:
            self.requires_grad_(False)
        self._warned = False

    def freeze_generators(self) -> None:
        """For sources without a loss whose features are detached: nothing would train F, and DDP would wait for it."""
        if any(p.requires_grad for p in self.generators.parameters()):
            self.generators.requires_grad_(False)
            logger.warning(
                "The generators keep their initial weights: there is no OT loss and the large-object features are "
                "detached. Set the OT loss, or detach=False, to train them."
            )

    def forward(
        self,
        maps: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        strides: Sequence[int],
        large_pairs: str = "all",
        detach: bool = False,
    ) -> tuple[dict[Pair, Tensor], dict[str, Tensor]]:
        """maps: (N, C_l, H_l, W_l) per level, finest first. image_sizes: (h, w) of each image without padding, in
        pixels. strides: pixels per cell of each level.
        large_pairs: which P_{m|l} to return: "all", "nearest" (m = l + 1) or "none".
        detach: return them without a graph, which saves memory where only the loss is trained.

        Returns {(l, m): P_{m|l}, (N, C_l, H_l, W_l), 0 outside the image} and {"loss_ot": scalar}, {} for "none".
        """
        _check("large_pairs", large_pairs, LARGE_PAIRS)
        if not len(maps) == len(strides) == self.num_levels:
            raise ValueError(
                f"ScaleOT was built for num_levels {self.num_levels}, got {len(maps)} maps and {len(strides)} strides."
            )
        masks = _cell_masks(maps, image_sizes, strides)
        if masks is not None:
            maps = [x * mask for x, mask in zip(maps, masks)]
        with_loss = self.loss != "none" and self.weight != 0
        trained = self._pairs(self.pairs) if with_loss else []
        large = self._pairs(large_pairs)
        generated = self._generate(maps, masks, trained, large, detach)
        losses = {}
        if with_loss:
            losses = {"loss_ot": self.weight * self._loss(maps, generated, image_sizes, strides)}
        elif self.loss != "none":
            losses = {"loss_ot": maps[0].new_zeros((), dtype=torch.float32)}
        return {pair: generated[pair].detach() if detach else generated[pair] for pair in large}, losses

    def _pairs(self, kind: str) -> list[Pair]:
        """The pairs of a name in PAIRS or LARGE_PAIRS."""
        reach = {"none": 0, "nearest": 1, "adjacent": 1, "all": self.num_levels}[kind]
        levels = range(self.num_levels)
        return [(l, m) for l in levels for m in levels if l < m <= l + reach]

    def _generate(self, maps, masks, trained: list[Pair], large: list[Pair], detach: bool) -> dict[Pair, Tensor]:
        """P_{m|l} of both lists and what leads to them. Without a graph: with `detach`, what no loss needs.

        A generator that has a loss runs with a graph first: autocast keeps the weights that it casts, and those cast
        without a graph would be used again, without one.
        """
        needed, generated = {*trained, *large}, {}
        for m in range(1, self.num_levels):
            below = [l for l in range(m) if (l, m) in needed]
            learns = [l for l in range(m) if (l, m) in trained]
            x = maps[m]
            for l in range(m - 1, min(below, default=m) - 1, -1):
                direct = isinstance(self.generators[l], Bilinear)  # resized once, straight from P_m
                source, level = (maps[m], m) if direct else (x, l + 1)
                valid = None if masks is None else (masks[level], masks[l])
                with_graph = torch.is_grad_enabled() and not (detach and l < min(learns, default=m))
                with torch.set_grad_enabled(with_graph):
                    x = generated[l, m] = self.generators[l](source, maps[l].shape[-2:], valid)
        return generated

    def _loss(self, maps, generated: dict[Pair, Tensor], image_sizes, strides) -> Tensor:
        """Sum over l of the mean over m and images, in float32."""
        pairs = self._pairs(self.pairs)
        own = [critic(maps[l]) for l, critic in enumerate(self.critics)]  # each used by all pairs of its level
        other = {(l, m): self.critics[l](generated[l, m]) for l, m in pairs}
        masks = _cell_masks(own, image_sizes, [2 * stride for stride in strides])
        if masks is not None:
            own = [x * mask for x, mask in zip(own, masks)]
            other = {(l, m): x * masks[l] for (l, m), x in other.items()}
        self._watch(own)
        count = defaultdict(int)
        for l, _ in pairs:
            count[l] += 1
        with no_autocast(own[0]):
            x = {(l, m): own[l].float().flatten(2) for l, m in pairs}
            y = {pair: other[pair].float().flatten(2) for pair in pairs}
            cells = masks and {(l, m): masks[l].float().flatten(1) for l, m in pairs}
            values = self._distances(x, y, cells)
        return sum(values[l, m].mean() / count[l] for l, m in pairs)

    def _distances(
        self, x: dict[Pair, Tensor], y: dict[Pair, Tensor], masks: dict[Pair, Tensor] | None
    ) -> dict[Pair, Tensor]:
        """D of each pair, (N,). x, y: (N, C, k), 0 where the pair's mask (N, k) is; None: no image is padded."""
        if self.loss in ("l2", "kl"):
            distance = _l2 if self.loss == "l2" else _kl
            return {pair: distance(x[pair], y[pair], masks and masks[pair]) for pair in x}
        groups = defaultdict(list)  # one call for all pairs with the same number of channels
        for pair in x:
            groups[x[pair].shape[1]].append(pair)
        values = {}
        for group in groups.values():
            w = sinkhorn_divergence(
                [x[pair] for pair in group],
                [y[pair] for pair in group],
                self.eps,
                self.iters,
                debiased=self.loss == "ot_debiased",
                mask=masks and [masks[pair] for pair in group],
                log_domain=self.log_domain,
                grad="unroll" if self.backprop_plan else "envelope",
            )
            values.update(zip(group, w))
        return values

    @torch.no_grad()
    def _watch(self, own: list[Tensor]) -> None:
        """Put the mean |cos| between different channels of H_l(P_l), of the first image, into the storage."""
        if not has_event_storage():
            return
        values = torch.stack([_mean_abs_cos(x[0].float().flatten(1)) for x in own]).tolist()
        names = [f"ot/abs_cos_level{level}" for level in range(self.first_level, self.first_level + len(values))]
        for name, value in zip(names, values):
            get_event_storage().put_scalar(name, value)
        worst = max(range(len(values)), key=values.__getitem__)
        if values[worst] > COLLAPSED and not self._warned:
            self._warned = True
            logger.warning(
                "%s is %.2f: the OT critic maps all channels to the same direction, so loss_ot teaches nothing. "
                "Choose critic_mode 'frozen' or 'avgpool'.",
                names[worst],
                values[worst],
            )


def _check(name: str, value: str, known) -> None:
    if value not in known:
        raise ValueError(f"ScaleOT: {name} is {value!r}, choose one of {', '.join(known)}.")


def _make_critic(channels: int, mode: str) -> nn.Module:
    """H: (N, C, h, w) -> (N, C, ceil(h / 2), ceil(w / 2)). "avgpool" covers the same 3x3 windows."""
    if mode == "avgpool":
        return nn.AvgPool2d(3, stride=2, padding=1)
    critic = nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False)
    weight_init.c2_xavier_fill(critic)
    return critic.requires_grad_(mode == "trained")


def _cell_masks(maps: Sequence[Tensor], image_sizes, strides: Sequence[int]) -> list[Tensor] | None:
    """1 on an image's own cells, the first ceil(side / stride) of each side: (N, 1, H, W) per map; None if all are."""
    cells = [[(math.ceil(int(h) / stride), math.ceil(int(w) / stride)) for h, w in image_sizes] for stride in strides]
    if all(h >= x.shape[-2] and w >= x.shape[-1] for x, level in zip(maps, cells) for h, w in level):
        return None
    masks = [x.new_zeros(len(x), 1, *x.shape[-2:]) for x in maps]
    for mask, level in zip(masks, cells):
        for image, (h, w) in zip(mask, level):
            image[:, :h, :w] = 1
    return masks


def _l2(x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    cells = x.shape[2] if mask is None else mask.sum(dim=1)
    return (x - y).square().sum(dim=(1, 2)) / (x.shape[1] * cells)


def _kl(x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:  # exp(-1e4) is 0 in float32, and finite before
        x, y = (t.masked_fill(mask[:, None] == 0, -1e4) for t in (x, y))
    each = F.kl_div(F.log_softmax(y, dim=2), F.log_softmax(x, dim=2), reduction="none", log_target=True)
    return each.sum(dim=2).mean(dim=1)


def _mean_abs_cos(x: Tensor) -> Tensor:
    """x: (C, k). Mean over the C (C - 1) pairs of different rows; 0 for a single row."""
    unit = F.normalize(x, dim=1, eps=NORM_FLOOR)
    with no_autocast(x):  # the sum over 256 x 256 equal channels is infinite in float16
        cos = (unit @ unit.T).abs()
    return (cos.sum() - cos.diagonal().sum()) / max(len(x) * (len(x) - 1), 1)
