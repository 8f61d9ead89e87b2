"""Is every row as the index says? Configs exist, overrides apply, models build, counts are those of the file."""

from collections.abc import Callable, Iterable

from shared.errors import UserError

from . import cost, measured
from .differences import compare
from .entries import Entry, Model, missing_configs
from .measured import Cost


def problems_of(model: Model, mmdetection: bool, costs: dict[str, Cost], with_cost: bool) -> list[str]:
    """What is wrong with one model, one sentence each."""
    try:
        if str(model) not in costs:
            cost.build(measured.load(model))
            return [f"{model}: not measured, run tools/index.py measure"]
        return [f"{model}: {what}" for what in measured.changed(model, mmdetection, costs[str(model)], with_cost)]
    except Exception as e:  # whatever a config's parts raise: the other models are still to be checked
        return [f"{model}: {type(e).__name__}: {' '.join(str(e).split())}"]


def twin_problems(entry: Entry, costs: dict[str, Cost]) -> list[str]:
    """A YAML config must have as many parameters as the row's own."""
    found = []
    for twin in entry.twins():
        total = cost.parameters(cost.build(measured.load(twin)))[0]
        ours = costs.get(str(entry.model))
        if ours is not None and total != ours.parameters:
            found.append(f"{twin}: {total:,} parameters, {entry.config} has {ours.parameters:,}")
    return found


def run(entries: Iterable[Entry], with_cost: bool = False, say: Callable[[str], None] = print) -> None:
    """Say what is wrong and where counts differ from the papers'. UserError where anything is wrong."""
    entries, costs = list(entries), measured.read()
    problems = missing_configs(entries)
    for problem in problems:
        say(problem)
    if not problems:
        wanted = measured.models(entries)
        for model, mmdetection in wanted.items():
            problems += _said(problems_of(model, mmdetection, costs, with_cost), say)
        for entry in entries:
            problems += _said(twin_problems(entry, costs), say)
        say(f"{len(entries)} rows, {len(wanted)} models: " + ("see above." if problems else "all build, as counted."))
    compared = compare(entries, costs)
    differing = [c for c in compared if not c.agrees]
    say(f"{len(compared)} printed parameters and FLOPs, {len(differing)} of them other than ours:")
    for comparison in differing:
        say(f"  {comparison}")
    if problems:
        raise UserError(f"tools/index.py check: {len(problems)} problem(s), see above.")


def _said(problems: list[str], say: Callable[[str], None]) -> list[str]:
    for problem in problems:
        say(problem)
    return problems
