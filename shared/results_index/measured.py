"""What was counted of every model that a row names: benchmarks/results/index.json, made by `tools/index.py measure`."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from detectron2.config import CfgNode
from shared import engine
from shared.config import load_config
from shared.errors import UserError

from . import cost
from .entries import ROOT, Entry, Model

FILE = ROOT / "benchmarks/results/index.json"
ABOUT = (
    "Made by tools/index.py measure. parameters: of the model in training, frozen ones included; parameters_inference: "
    "without what training alone needs; parameters_mmdetection: what trains, with the affine values of res3 to res5's "
    "batch norms (of models whose paper counts so). multiply_adds_G: of one inference on one image of image_size "
    "(H, W; a detector pads it to what its backbone divides), convolutions, linear layers and matrix products; "
    "as many RoIs as the RPN keeps, as many boxes as are reported. with_norms_G: fvcore's values of norms and means "
    "besides. See shared/results_index/cost.py."
)


@dataclass(frozen=True)
class Cost:
    """One model's counts; see ABOUT. None: not measured, or not of this kind."""

    parameters: int
    parameters_inference: int
    parameters_mmdetection: int | None
    multiply_adds_G: float
    with_norms_G: float
    image_size: list[int]
    torch: str
    engine: str
    date: str


def read(file: Path = FILE) -> dict[str, Cost]:
    """By the models' names; {} where nothing has been measured. UserError where the file is not `write`'s."""
    if not file.exists():
        return {}
    try:
        models = json.loads(file.read_text())["models"]
        return {name: Cost(**values) for name, values in models.items()}
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{file} is not an index of measurements ({e}): delete it and measure again.") from e


def write(costs: dict[str, Cost], file: Path = FILE) -> None:
    content = {"about": ABOUT, "models": {name: asdict(costs[name]) for name in sorted(costs)}}
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(file)


def models(entries: Iterable[Entry]) -> dict[Model, bool]:
    """Every model that the rows name, once; whether MMDetection's parameters are wanted of it."""
    wanted: dict[Model, bool] = {}
    for entry in entries:
        for model in entry.models():
            wanted[model] = wanted.get(model, False) or entry.paper.parameters == "mmdetection"
    return wanted


def load(model: Model) -> DictConfig | CfgNode:
    """UserError as `load_config`."""
    return load_config(str(ROOT / model.config), model.overrides)


def count_parameters(cfg: DictConfig | CfgNode, built: nn.Module, mmdetection: bool) -> dict[str, int | None]:
    """The three counts of `Cost`; `built` is the config's model."""
    total, inference = cost.parameters(built)
    return {
        "parameters": total,
        "parameters_inference": inference,
        "parameters_mmdetection": cost.mmdetection_parameters(cfg) if mmdetection else None,
    }


def measure(model: Model, mmdetection: bool) -> Cost:
    """Count one model, on the meta device."""
    cfg = load(model)
    size, built = cost.image_size(cfg), cost.build(cfg)
    plain, with_norms = cost.multiply_adds(built, size)
    return Cost(
        **count_parameters(cfg, built, mmdetection),
        multiply_adds_G=round(plain, 6),
        with_norms_G=round(with_norms, 6),
        image_size=list(size),
        torch=torch.__version__.partition("+")[0],
        engine=engine.current(),
        date=str(date.today()),
    )


def drop_others(wanted: Iterable[Model], file: Path = FILE) -> None:
    """Take models out of `file` that no row names any more."""
    costs, names = read(file), {str(model) for model in wanted}
    if costs.keys() - names:
        write({name: found for name, found in costs.items() if name in names}, file)


def measure_all(
    wanted: dict[Model, bool], file: Path = FILE, again: bool = False, say: Callable[[str], None] = print
) -> dict[str, Cost]:
    """Measure what `file` lacks (`again`: everything), saving after each model."""
    costs = read(file)
    left = {m: mm for m, mm in wanted.items() if again or _lacks(costs.get(str(m)), mm)}
    for i, (model, mmdetection) in enumerate(left.items(), 1):
        costs[str(model)] = found = measure(model, mmdetection)
        write(costs, file)
        say(f"[{i}/{len(left)}] {model}: {found.parameters:,} parameters, {found.multiply_adds_G:.3f} G multiply-adds")
    return costs


def _lacks(found: Cost | None, mmdetection: bool) -> bool:
    return found is None or (mmdetection and found.parameters_mmdetection is None)


def changed(model: Model, mmdetection: bool, found: Cost, with_cost: bool) -> list[str]:
    """What of `found` is no longer so: one clause a value. with_cost: multiply-adds as well, which takes longer."""
    if with_cost:
        now = asdict(measure(model, mmdetection))
    else:
        cfg = load(model)
        now = count_parameters(cfg, cost.build(cfg), mmdetection)
    before = asdict(found)
    compared = [f.name for f in fields(Cost) if f.name not in ("torch", "engine", "date") and f.name in now]
    if not mmdetection:
        compared.remove("parameters_mmdetection")
    return [f"{name} is {now[name]}, was {before[name]}" for name in compared if _differs(now[name], before[name])]


def _differs(now, before) -> bool:
    return abs(now - before) > 1e-5 * abs(before) if isinstance(before, float) else now != before
