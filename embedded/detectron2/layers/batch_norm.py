"""Normalisation layers. N: images, C: channels, H x W: cells; all take (N, C, H, W)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn

from detectron2.utils import comm


def _scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x * scale[:, None, None] + shift[:, None, None]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm of buffers only. running_var starts at 1 - eps: untouched, it is exactly x * weight + bias."""

    _version = 3

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        # F.batch_norm would keep more memory, for gradients of the statistics
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return _scale_and_shift(x, scale.to(x.dtype), shift.to(x.dtype))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args, **kwargs):
        if (local_metadata.get("version") or 0) < 2:  # old files hold weight and bias alone
            state_dict.setdefault(prefix + "running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(prefix + "running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, eps={self.eps}"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Freeze every BatchNorm2d and SyncBatchNorm of the tree in place. Returns the root, new if it was one."""
        return _replace(module, (nn.BatchNorm2d, nn.SyncBatchNorm), cls)

    @classmethod
    def convert_frozenbatchnorm2d_to_batchnorm2d(cls, module: nn.Module) -> nn.Module:
        """The reverse: every FrozenBatchNorm2d becomes a BatchNorm2d with the same numbers."""
        return _replace(module, cls, nn.BatchNorm2d)


def _replace(module: nn.Module, old: type | tuple[type, ...], new: type) -> nn.Module:
    """`module` with all norms of type `old` replaced by `new` ones that hold copies."""
    if not isinstance(module, old):
        for name, child in module.named_children():
            setattr(module, name, _replace(child, old, new))
        return module
    norm = new(module.num_features, module.eps).to(module.running_mean)  # dtype, device
    for name in ("weight", "bias", "running_mean", "running_var"):
        if (value := getattr(module, name)) is not None:
            getattr(norm, name).data.copy_(value)
    tracked = module.num_batches_tracked
    norm.num_batches_tracked = tracked if tracked is None else tracked.clone()
    return norm.train(module.training)


class NaiveSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over all workers by a differentiable all-reduce of the means of x and x^2; biased running_var.
    stats_mode "" averages over workers (none empty); "N" weights each by its number of images, which may be 0."""

    def __init__(self, *args, stats_mode: str = "", **kwargs):
        super().__init__(*args, **kwargs)
        assert stats_mode in ("", "N"), f"stats_mode is '' or 'N', got {stats_mode!r}."
        self._stats_mode = stats_mode

    def forward(self, input: Tensor) -> Tensor:
        if comm.get_world_size() == 1 or not self.training:
            return super().forward(input)
        n, channels = input.shape[:2]
        assert n > 0 or self._stats_mode, "NaiveSyncBatchNorm needs images on every worker; use 'naiveSyncBN_N'."
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        if n == 0:
            local = x.new_zeros(2 * channels) + x.sum()  # x.sum() keeps the graph
        else:
            local = torch.cat([x.mean(dim=(0, 2, 3)), (x * x).mean(dim=(0, 2, 3))])
        weight = n if self._stats_mode == "N" else 1
        total = differentiable_all_reduce(torch.cat([local * weight, x.new_tensor([weight])]))
        weights = total[-1].detach()  # of all workers
        mean, mean_square = (total[:-1] / weights.clamp(min=1)).chunk(2)
        var = mean_square - mean * mean
        scale = self.weight * (var + self.eps).rsqrt()
        with torch.no_grad():
            momentum = self.momentum * weights.clamp(max=1)
            self.running_mean += momentum * (mean - self.running_mean)
            self.running_var += momentum * (var - self.running_var)
        return _scale_and_shift(x, scale, self.bias - mean * scale).to(input.dtype)


class CycleBatchNormList(nn.ModuleList):
    """`length` norms with their own statistics and one common affine, for heads shared by the levels of a pyramid:
    call i uses norm i % length. kwargs go to `bn_class`."""

    def __init__(self, length: int, bn_class: Callable = nn.BatchNorm2d, **kwargs):
        self._affine = kwargs.pop("affine", True)
        super().__init__([bn_class(**kwargs, affine=False) for _ in range(length)])
        if self._affine:
            self.weight = nn.Parameter(torch.ones(self[0].num_features))
            self.bias = nn.Parameter(torch.zeros(self[0].num_features))
        self._next = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self[self._next](x)
        self._next = (self._next + 1) % len(self)
        return _scale_and_shift(x, self.weight, self.bias) if self._affine else x


class LayerNorm(nn.Module):
    """Layer norm over the channels of (N, C, H, W), biased variance."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
        return _scale_and_shift((x - mean) / (var + self.eps).sqrt(), self.weight, self.bias)


_NORMS = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "nnSyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": lambda channels: NaiveSyncBatchNorm(channels, stats_mode="N"),
    "LN": LayerNorm,
}


def get_norm(norm: str | Callable | None, out_channels: int) -> nn.Module | None:
    """The norm of that name, or of that callable, for `out_channels`; None for None or ""."""
    if norm is None or norm == "":
        return None
    if isinstance(norm, str) and norm not in _NORMS:
        raise KeyError(f"Unknown norm {norm!r}; choose one of {sorted(_NORMS)} or a callable.")
    return (_NORMS[norm] if isinstance(norm, str) else norm)(out_channels)
