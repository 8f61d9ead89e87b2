"""The class buffer: one representative per class ("Feature Intertwiner for Object Detection", ICLR 2019,
arXiv:1903.11851, Sec. 3.2, Eq. (2), Table 2d). K: foreground classes, L: levels, D: width of the critic's output,
G: entries of the buffer, K or (L - 1) K; P: large samples."""

from collections import deque

import torch
from torch import Tensor, nn

from shared.distributed import sum_over_workers

MODES = ("all", "decay", "partial")


class ClassBuffer(nn.Module):
    """Mean critic feature of the large objects of each class, and how many went into it.

    mode        an iteration with sum S_c of q_c samples
    "all"       n <- n + q,  b <- b + (S - q b) / n: the mean of all samples ever seen
    "decay"     the same after n <- decay n: a sample counts decay^age
    "partial"   the mean of the samples of the last `window` iterations

    Every worker applies the same update, of the sums over all workers; DDP need not broadcast the buffer. Counts are
    float64: those of "person" pass float32's last exact integer, 2^24, within 200k iterations.

    The paper gives no decay rate, and windows in iterations or epochs; an epoch of COCO at batch 8 is 14,658.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int = 1024,
        mode: str = "all",
        window: int = 2000,
        decay: float = 0.999,
        per_level: bool = False,
        num_levels: int = 4,
        save_window: bool = True,
    ):
        """per_level: a buffer for each level that has larger ones; the last level reads the first one's.
        save_window: whether the state dict holds the samples of a window; without them it starts anew on resuming."""
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"ClassBuffer: mode (BUFFER.MODE) is {mode!r}, choose one of {', '.join(MODES)}.")
        if window < 1 or not 0 < decay <= 1:
            raise ValueError(
                f"ClassBuffer: window must be at least 1 and decay in (0, 1], got {window} and {decay}; "
                f"see BUFFER.WINDOW and BUFFER.DECAY."
            )
        self.num_classes, self.num_levels, self.dim = num_classes, num_levels, dim
        self.mode, self.window, self.decay = mode, window, decay
        self.per_level, self.save_window = per_level, save_window
        self.held = False  # see shared.modeling.memory
        shape = (num_levels - 1, num_classes) if per_level else (num_classes,)
        self.register_buffer("mean", torch.zeros(*shape, dim))
        self.register_buffer("count", torch.zeros(shape, dtype=torch.float64))
        if mode == "partial":
            # Per iteration (entries, sums, counts) on the CPU, present classes only: all of them would be 0.7 GB
            self._ring: deque[tuple[Tensor, Tensor, Tensor]] = deque()
            groups = self.count.numel()
            self.register_buffer("window_sum", torch.zeros(groups, dim, dtype=torch.float64), persistent=False)
            self.register_buffer("window_count", torch.zeros(groups, dtype=torch.float64), persistent=False)
            # sums without the samples that they are of would never fall again, see shared.training.state
            self.not_resumed = () if save_window else ("window_sum", "window_count")

    def entries(self, classes: Tensor, levels: Tensor) -> Tensor:
        """Flat index (N,) of the entry that samples of these classes and levels (N,) read or write."""
        if not self.per_level:
            return classes
        levels = torch.where(levels == self.num_levels - 1, 0, levels)
        return levels * self.num_classes + classes

    def accumulate(self, features: Tensor, classes: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Sums (G, D), float32, and counts (G,), float64, of features (P, D) per entry; P may be 0."""
        entries = self.entries(classes, levels)
        groups = self.count.numel()
        sums = features.new_zeros(groups, self.dim, dtype=torch.float32)
        return sums.index_add(0, entries, features.float()), torch.bincount(entries, minlength=groups).double()

    def update(self, sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Take in this worker's sums (G, D) and counts (G,) of one iteration; in training every worker must call it.

        Returns representatives (G, D) and whether each has samples (G,). If sums require a gradient, the
        representatives carry it: db/dS = 1/n. In eval mode, and while held, nothing changes.
        """
        learns = self.training and not self.held
        if learns:
            sums, counts = sum_over_workers(sums), sum_over_workers(counts)
            with torch.no_grad():
                self._apply_update(sums.detach(), counts)
        count = self.count.flatten()
        means = self.mean.flatten(0, -2).clone()  # the next update is in place
        if learns and sums.requires_grad:
            means = means + (sums - sums.detach()) / count.clamp(min=1e-6).float()[:, None]
        return means, count > 0

    def _apply_update(self, sums: Tensor, counts: Tensor) -> None:
        mean, count = self.mean.view(-1, self.dim), self.count.view(-1)
        if self.mode == "partial":
            self._slide_window(sums, counts)
            count.copy_(self.window_count)
            mean.copy_(self.window_sum / count.clamp(min=1)[:, None])
            return
        if self.mode == "decay":
            count.mul_(self.decay)
        count.add_(counts)
        step = (sums - counts[:, None] * mean.double()) / torch.where(counts > 0, count, 1.0)[:, None]
        mean.copy_(mean.double() + step)

    def _slide_window(self, sums: Tensor, counts: Tensor) -> None:
        present = counts.nonzero()[:, 0]
        self._push(present.cpu(), sums[present].cpu(), counts[present].cpu())
        while len(self._ring) > self.window:
            entries, old_sums, old_counts = (x.to(sums.device) for x in self._ring.popleft())
            self.window_sum.index_add_(0, entries, -old_sums.double())
            self.window_count.index_add_(0, entries, -old_counts)
        self.window_sum[self.window_count == 0] = 0  # and not what rounding left

    def _push(self, entries: Tensor, sums: Tensor, counts: Tensor) -> None:
        self._ring.append((entries, sums, counts))
        device = self.window_sum.device
        self.window_sum.index_add_(0, entries.to(device), sums.to(device).double())
        self.window_count.index_add_(0, entries.to(device), counts.to(device))

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.mode == "partial" and self.save_window and self._ring:
            columns = list(zip(*self._ring))
            destination[f"{prefix}ring_lengths"] = torch.tensor([len(entries) for entries in columns[0]])
            for name, parts in zip(("entries", "sums", "counts"), columns):
                destination[f"{prefix}ring_{name}"] = torch.cat(parts)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        ring = [state_dict.pop(f"{prefix}ring_{name}", None) for name in ("lengths", "entries", "sums", "counts")]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if self.mode != "partial":
            return
        self._ring.clear()
        self.window_sum.zero_()
        self.window_count.zero_()
        if all(part is not None for part in ring):
            lengths = ring[0].tolist()
            for iteration in zip(*(part.cpu().split(lengths) for part in ring[1:])):
                self._push(*iteration)
