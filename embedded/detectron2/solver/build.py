"""Optimizers and schedules from a config; parameter groups."""

import copy
import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from enum import Enum
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


def _create_gradient_clipper(cfg: CfgNode) -> Callable[[torch.Tensor], None]:
    """cfg: SOLVER.CLIP_GRADIENTS. Returns a function that clips the gradient of one parameter."""
    cfg = copy.deepcopy(cfg)
    if GradientClipType(cfg.CLIP_TYPE) is GradientClipType.VALUE:
        return lambda p: nn.utils.clip_grad_value_(p, cfg.CLIP_VALUE)
    return lambda p: nn.utils.clip_grad_norm_(p, cfg.CLIP_VALUE, cfg.NORM_TYPE)


def _generate_optimizer_class_with_gradient_clipping(
    optimizer: type[torch.optim.Optimizer],
    *,
    per_param_clipper: Callable[[torch.Tensor], Any] | None = None,
    global_clipper: Callable[[Iterable[torch.Tensor]], Any] | None = None,
) -> type[torch.optim.Optimizer]:
    """Subclass `<Name>WithGradientClip` that clips just before its step: each parameter
    separately, or all of them (an iterator) at once."""
    assert per_param_clipper is None or global_clipper is None, (
        "Not allowed to use both per-parameter clipping and global clipping"
    )

    def step(self, closure=None):
        params = itertools.chain.from_iterable(g["params"] for g in self.param_groups)
        if per_param_clipper is not None:
            for p in params:
                if p.grad is not None:
                    per_param_clipper(p)
        else:
            global_clipper(params)
        return optimizer.step(self, closure)

    return type(optimizer.__name__ + "WithGradientClip", (optimizer,), {"step": step})


def maybe_add_gradient_clipping(cfg: CfgNode, optimizer: torch.optim.Optimizer | type[torch.optim.Optimizer]):
    """The optimizer (instance or class) as SOLVER.CLIP_GRADIENTS asks. Of an instance the class
    is exchanged."""
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    is_instance = isinstance(optimizer, torch.optim.Optimizer)
    clipping = _generate_optimizer_class_with_gradient_clipping(
        type(optimizer) if is_instance else optimizer,
        per_param_clipper=_create_gradient_clipper(cfg.SOLVER.CLIP_GRADIENTS),
    )
    if is_instance:
        optimizer.__class__ = clipping
        return optimizer
    return clipping


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
    optimizer = torch.optim.SGD(
        params,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
        foreach=True,
    )
    return maybe_add_gradient_clipping(cfg, optimizer)


def _with_bias_settings(overrides: dict, base_lr, bias_lr_factor, weight_decay_bias) -> dict:
    bias: dict[str, float] = {}
    if bias_lr_factor is not None and bias_lr_factor != 1.0:
        if base_lr is None:
            raise ValueError("bias_lr_factor requires base_lr: pass base_lr too.")
        bias["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        bias["weight_decay"] = weight_decay_bias
    if bias:
        if "bias" in overrides:
            raise ValueError(
                "Conflicting overrides for 'bias': give either overrides['bias'] or "
                "bias_lr_factor and weight_decay_bias."
            )
        overrides["bias"] = bias
    return overrides


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
    """Parameter groups of the trainable parameters, in the order of `named_modules`.

    A group holds only the hyperparameters given here; the optimizer fills in the others.

    Args:
        weight_decay_norm: for the parameters of normalization layers.
        bias_lr_factor, weight_decay_bias: for parameters called "bias".
        lr_factor_func: full parameter name -> factor of base_lr.
        overrides: last part of a parameter's name -> hyperparameters. They win.
    """
    overrides = _with_bias_settings(dict(overrides or {}), base_lr, bias_lr_factor, weight_decay_bias)
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func requires base_lr: pass base_lr too.")

    defaults = {"lr": base_lr, "weight_decay": weight_decay}
    defaults = {k: v for k, v in defaults.items() if v is not None}
    groups, seen = [], set()
    for module_name, module in model.named_modules():
        for name, param in module.named_parameters(recurse=False):
            if not param.requires_grad or param in seen:
                continue
            seen.add(param)
            hyper = dict(defaults)
            if weight_decay_norm is not None and isinstance(module, NORM_MODULES):
                hyper["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                hyper["lr"] *= lr_factor_func(f"{module_name}.{name}")
            hyper.update(overrides.get(name, {}))
            groups.append({"params": [param], **hyper})
    return reduce_param_groups(groups)


def _expand_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One group per parameter; later settings of the same parameter update the earlier ones."""
    groups: dict[torch.Tensor, dict[str, Any]] = defaultdict(dict)
    for item in params:
        hyper = {k: v for k, v in item.items() if k not in ("params", "param_names")}
        for i, param in enumerate(item["params"]):
            groups[param].update(params=[param], **hyper)
            if "param_names" in item:
                groups[param]["param_names"] = [item["param_names"][i]]
    return list(groups.values())


def reduce_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge groups of equal hyperparameters, in the order of first appearance: fewer groups make
    a faster optimizer."""
    merged: dict[tuple, dict[str, Any]] = {}
    for item in _expand_param_groups(params):
        hyper = {k: v for k, v in item.items() if k not in ("params", "param_names")}
        group = merged.setdefault(tuple(sorted(hyper.items())), {**hyper, "params": []})
        for key in ("params", "param_names"):
            if key in item:
                group.setdefault(key, []).extend(item[key])
    return list(merged.values())


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule SOLVER.LR_SCHEDULER_NAME with SOLVER's warm-up."""
    solver = cfg.SOLVER
    name, max_iter = solver.LR_SCHEDULER_NAME, solver.MAX_ITER
    if name == "WarmupMultiStepLR":
        steps = [s for s in solver.STEPS if s <= max_iter]
        if len(steps) != len(solver.STEPS):
            logging.getLogger(__name__).warning(
                "SOLVER.STEPS contains values larger than SOLVER.MAX_ITER. These values will be ignored."
            )
        values = [solver.GAMMA**k for k in range(len(steps) + 1)]
        schedule = MultiStepParamScheduler(values, num_updates=max_iter, milestones=steps)
    elif name == "WarmupCosineLR":
        end = solver.BASE_LR_END / solver.BASE_LR
        assert 0.0 <= end <= 1.0, f"SOLVER.BASE_LR_END must be in [0, BASE_LR], got factor {end}."
        schedule = CosineParamScheduler(1, end)
    elif name == "WarmupStepWithFixedGammaLR":
        # NUM_DECAYS + 1 equal parts. fvcore's StepWithFixedGammaParamScheduler is the same
        # but fails at the very end of training (fraction 1), where the last step leads.
        parts = solver.NUM_DECAYS + 1
        values = [solver.GAMMA**k for k in range(parts)]
        schedule = MultiStepParamScheduler(values, num_updates=parts, milestones=list(range(1, parts)))
    else:
        raise ValueError(
            f"Unknown LR scheduler: {name}. Set SOLVER.LR_SCHEDULER_NAME to WarmupMultiStepLR, "
            "WarmupCosineLR or WarmupStepWithFixedGammaLR."
        )
    schedule = WarmupParamScheduler(
        schedule,
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / max_iter, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=max_iter)
