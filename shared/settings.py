"""Values that the training loop and the loaders read: of which kind they are, and in which range."""

import math
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detectron2.config import CfgNode
from shared.errors import UserError

Rule = tuple[Callable[[Any], bool], str]  # whether a value is right, and what is wanted


def _whole(low: int) -> Rule:
    return lambda v: type(v) is int and low <= v < 2**31, f"a whole number of at least {low}"


def _number(low: float, high: float = math.inf, what: str = "") -> Rule:
    def right(v) -> bool:
        return isinstance(v, int | float) and not isinstance(v, bool) and low <= v <= high and math.isfinite(v)

    return right, what or f"a number of at least {low}"


def _or_null(rule: Rule) -> Rule:
    right, wanted = rule
    return lambda v: v is None or right(v), f"{wanted}, or null"


def _is_device(value) -> bool:
    try:
        return isinstance(value, str) and torch.device(value).type in ("cpu", "cuda", "meta")  # meta: to be counted
    except RuntimeError:
        return False


TEXT: Rule = (lambda v: isinstance(v, str), "a text")
NAME: Rule = (lambda v: isinstance(v, str) and v.strip() != "" and "\0" not in v, "the name of a folder")
FLAG: Rule = (lambda v: isinstance(v, bool), "true or false")
DEVICE: Rule = (_is_device, "a device such as cpu, cuda or cuda:1")
SEED: Rule = (lambda v: type(v) is int and v < 2**31, "a whole number below 2147483648 (below 0: a random one)")
PRECISION: Rule = (lambda v: v in ("", "highest", "high", "medium"), 'highest, high, medium or ""')
GROUP: Rule = (lambda v: isinstance(v, DictConfig), "a group of keys")
ABSENT = object()

NEEDED = {  # by key of a LazyConfig
    "model": GROUP,
    "train.output_dir": NAME,
    "train.init_checkpoint": TEXT,
    "train.max_iter": _whole(1),
    "train.device": DEVICE,
    "train.eval_period": _whole(0),
    "train.log_period": _whole(1),
    "train.checkpointer.period": _whole(1),
    "train.amp.enabled": FLAG,
    "train.ddp": GROUP,
    "lr_multiplier": GROUP,
    "optimizer.params": GROUP,
    "dataloader.train.dataset": GROUP,
    "dataloader.test.dataset": GROUP,
    "dataloader.evaluator": GROUP,
}
KNOWN = {  # checked where they are there
    "train.seed": SEED,
    "train.cudnn_benchmark": FLAG,
    "train.float32_precision": PRECISION,
    "train.clip_grad_norm": _or_null(_number(0)),
    "train.checkpointer.max_to_keep": _or_null(_whole(1)),
    "train.ema.enabled": FLAG,
    "train.ema.decay": _number(0, math.nextafter(1, 0), "a number in [0, 1)"),
    "dataloader.train.total_batch_size": _whole(1),
    "dataloader.train.num_workers": _whole(0),
    "dataloader.test.batch_size": _whole(1),
    "dataloader.test.num_workers": _whole(0),
    "optimizer.lr": _number(0),
    "optimizer.momentum": _number(0),
    "optimizer.weight_decay": _number(0),
}
CFGNODE = {
    "OUTPUT_DIR": NAME,
    "MODEL.WEIGHTS": TEXT,
    "MODEL.DEVICE": DEVICE,
    "SOLVER.MAX_ITER": _whole(1),
    "SOLVER.IMS_PER_BATCH": _whole(1),
    "SOLVER.BASE_LR": _number(0),
    "SOLVER.MOMENTUM": _number(0),
    "SOLVER.WEIGHT_DECAY": _number(0),
    "SOLVER.WARMUP_ITERS": _whole(0),
    "SOLVER.CHECKPOINT_PERIOD": _whole(1),
    "SOLVER.CLIP_GRADIENTS.GLOBAL_NORM": _number(0),
    "TEST.EVAL_PERIOD": _whole(0),
    "DATALOADER.NUM_WORKERS": _whole(0),
    "SEED": SEED,
    "FLOAT32_PRECISION": PRECISION,
}


def check_settings(cfg: DictConfig | CfgNode, file: str) -> None:
    """UserError naming the key whose value is of another kind or out of its range, or that is missing."""
    if isinstance(cfg, CfgNode):
        for key, rule in CFGNODE.items():
            value = cfg
            for part in key.split("."):
                value = value[part]
            _check(key, value, rule)
        _refuse_pickles(cfg.MODEL.LOAD_PROPOSALS, "MODEL.LOAD_PROPOSALS")
        return
    for key, rule in {**NEEDED, **KNOWN}.items():
        value = _select(cfg, key)
        if value is not ABSENT:
            _check(key, value, rule)
        elif key in NEEDED:
            raise UserError(f"Config file {file!r} gives no {key}: it must be {rule[1]}.")
    for part in ("train", "test"):
        key = f"dataloader.{part}.dataset.proposal_files"
        _refuse_pickles(_select(cfg, key), key)


def _select(cfg: DictConfig, key: str) -> Any:
    """ABSENT also for a value that is left to the user ("???") or below something that is no group."""
    try:
        return OmegaConf.select(cfg, key, default=ABSENT)
    except OmegaConfBaseException:
        return ABSENT


def _check(key: str, value: Any, rule: Rule) -> None:
    right, wanted = rule
    if not right(value):
        raise UserError(f"{key} must be {wanted}, got {'null' if value is None else repr(str(value)[:60])}.")


def _refuse_pickles(value: Any, key: str) -> None:
    """Upstream unpickles the files of precomputed proposals, which could run any code."""
    if value is not ABSENT and value:
        raise UserError(f"{key}: precomputed proposals are pickled files, which could run any code: not supported.")
