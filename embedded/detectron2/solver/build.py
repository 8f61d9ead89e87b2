"""Optimizers and schedules from a config; parameter groups."""

import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from enum import Enum
from functools import partial
from typing import Any

import torch
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from detectron2.config import CfgNode

from .lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

# _NormBase: BatchNorm1-3d, SyncBatchNorm, InstanceNorm1-3d
NORM_MODULES = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


class GradientClipType(Enum):
    VALUE = "value"
    NORM = "norm"


def _generate_optimizer_class_with_gradient_clipping(
    optimizer: type[torch.optim.Optimizer],
    *,
    per_param_clipper: Callable[[torch.Tensor], Any] | None = None,
    global_clipper: Callable[[Iterable[torch.Tensor]], Any] | None = None,
) -> type[torch.optim.Optimizer]:
    """`<Name>WithGradientClip`: clips each parameter, or all of them at once, just before its step."""
    assert per_param_clipper is None or global_clipper is None, (
        "Not allowed to use both per-parameter clipping and global clipping"
    )

    def step(self, closure=None):
        params = itertools.chain.from_iterable(g["params"] for g in self.param_groups)
        if per_param_clipper is None:
            global_clipper(params)
        else:
            for p in (p for p in params if p.grad is not None):
                per_param_clipper(p)
        return optimizer.step(self, closure)

    return type(optimizer.__name__ + "WithGradientClip", (optimizer,), {"step": step})


def maybe_add_gradient_clipping(cfg: CfgNode, optimizer: torch.optim.Optimizer | type[torch.optim.Optimizer]):
    """The optimizer (instance or class) as SOLVER.CLIP_GRADIENTS asks. Of an instance the class is exchanged."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return optimizer
    if GradientClipType(clip.CLIP_TYPE) is GradientClipType.VALUE:
        clipper = partial(nn.utils.clip_grad_value_, clip_value=clip.CLIP_VALUE)
    else:
        clipper = partial(nn.utils.clip_grad_norm_, max_norm=clip.CLIP_VALUE, norm_type=clip.NORM_TYPE)
    if isinstance(optimizer, type):
        return _generate_optimizer_class_with_gradient_clipping(optimizer, per_param_clipper=clipper)
    optimizer.__class__ = _generate_optimizer_class_with_gradient_clipping(type(optimizer), per_param_clipper=clipper)
    return optimizer


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD as cfg.SOLVER says."""
    solver = cfg.SOLVER
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    common = dict(lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, foreach=True)
    optimizer = torch.optim.SGD(params, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **common)
    return maybe_add_gradient_clipping(cfg, optimizer)


def _given(**hyper: float | None) -> dict[str, float]:
    return {k: v for k, v in hyper.items() if v is not None}


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Groups of the trainable parameters, in the order of `named_modules`, holding only the hyperparameters given here.
    weight_decay_norm is for normalization layers; bias_lr_factor and weight_decay_bias for parameters called "bias";
    lr_factor_func maps a full parameter name to a factor of base_lr; overrides, by last part of the name, win."""
    bias_lr_factor = None if bias_lr_factor == 1.0 else bias_lr_factor
    for name, option in (("bias_lr_factor", bias_lr_factor), ("lr_factor_func", lr_factor_func)):
        if option is not None and base_lr is None:
            raise ValueError(f"{name} requires base_lr: pass base_lr too.")
    bias = _given(lr=bias_lr_factor and base_lr * bias_lr_factor, weight_decay=weight_decay_bias)
    overrides = overrides or {}
    if bias and "bias" in overrides:
        raise ValueError("Conflicting overrides for 'bias': drop overrides['bias'], or the two arguments for biases.")
    overrides = {"bias": bias, **overrides}
    groups = {}  # by parameter: a shared one belongs where it comes first
    for module_name, module in model.named_modules():
        of_norm = _given(weight_decay=weight_decay_norm) if isinstance(module, NORM_MODULES) else {}
        for name, param in module.named_parameters(recurse=False):
            if not param.requires_grad:
                continue
            hyper = _given(lr=base_lr, weight_decay=weight_decay) | of_norm
            if lr_factor_func is not None:
                hyper["lr"] *= lr_factor_func(f"{module_name}.{name}")
            groups.setdefault(param, {"params": [param], **hyper, **overrides.get(name, {})})
    return reduce_param_groups(list(groups.values()))


_PER_PARAM = ("params", "param_names")  # lists in a group; all else is a hyperparameter


def _expand_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One group per parameter; later settings of the same parameter update the earlier ones."""
    groups: dict[torch.Tensor, dict[str, Any]] = defaultdict(dict)
    for item in params:
        for i, param in enumerate(item["params"]):
            groups[param].update({k: [v[i]] if k in _PER_PARAM else v for k, v in item.items()})
    return list(groups.values())


def reduce_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge groups of equal hyperparameters, by first appearance: fewer groups make a faster optimizer."""
    merged: dict[tuple, dict[str, Any]] = {}
    for item in _expand_param_groups(params):
        hyper = {k: v for k, v in item.items() if k not in _PER_PARAM}
        group = merged.setdefault(tuple(sorted(hyper.items())), hyper)
        for key in (k for k in _PER_PARAM if k in item):
            group.setdefault(key, []).extend(item[key])
    return list(merged.values())


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule SOLVER.LR_SCHEDULER_NAME with SOLVER's warm-up."""
    solver = cfg.SOLVER
    name, max_iter = solver.LR_SCHEDULER_NAME, solver.MAX_ITER
    if name == "WarmupCosineLR":
        schedule = CosineParamScheduler(1, solver.BASE_LR_END / solver.BASE_LR)
    elif name in ("WarmupMultiStepLR", "WarmupStepWithFixedGammaLR"):
        if name == "WarmupMultiStepLR":
            total, steps = max_iter, [s for s in solver.STEPS if s <= max_iter]
            if len(steps) < len(solver.STEPS):
                logging.getLogger(__name__).warning("SOLVER.STEPS larger than SOLVER.MAX_ITER are ignored.")
        else:  # equal parts. fvcore's scheduler of this name fails at the end of training (fraction 1)
            total, steps = solver.NUM_DECAYS + 1, list(range(1, solver.NUM_DECAYS + 1))
        values = [solver.GAMMA**k for k in range(len(steps) + 1)]
        schedule = MultiStepParamScheduler(values, num_updates=total, milestones=steps)
    else:
        known = "WarmupMultiStepLR, WarmupCosineLR or WarmupStepWithFixedGammaLR"
        raise ValueError(f"Unknown LR scheduler: {name}. Set SOLVER.LR_SCHEDULER_NAME to {known}.")
    warmup_length = min(solver.WARMUP_ITERS / max_iter, 1.0)
    warmup = (solver.WARMUP_FACTOR, warmup_length, solver.WARMUP_METHOD, solver.RESCALE_INTERVAL)
    return LRMultiplier(optimizer, multiplier=WarmupParamScheduler(schedule, *warmup), max_iter=max_iter)
