"""The numbers of a comparison: means and spreads over seeds, differences to hosts paired by seed, tables of both."""

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from shared.errors import UserError
from tools.class_changes import changes, class_ap
from tools.comparison.arms import AVERAGE_PRECISION
from tools.comparison.runs import FINISHED, RESULTS
from tools.curves import curve, read_metrics

Results = dict[str, dict[int, dict[str, float]]]  # {arm: {seed: {metric: value}}}
GAIN, LOSS, WITHIN = "▲", "▼", "≈"  # a mean difference beyond its spread, or not
PER_CLASS = ("AP-", "accuracy-")  # prefixes of metrics of one class
NONE = "–"


# ---------------------------------------------------------------- what a run's folder has
def read_results(folder: Path, task: str) -> tuple[str, dict[str, float]]:
    """The task (given, or the first) of a run's results.json and its metrics."""
    file = folder / RESULTS
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as e:
        raise UserError(f"Results file {file} cannot be read: {e}.") from e
    task = task or next(iter(content), "")
    metrics = content.get(task)
    if not isinstance(metrics, dict) or any(isinstance(value, dict) for value in metrics.values()):
        raise UserError(f"{file} has no metrics of {task!r}, but of {', '.join(content) or 'nothing'}: set --task.")
    return task, metrics


def read_curves(folder: Path, scalars: Iterable[str]) -> dict[str, tuple[list[int], list[float]]]:
    """{scalar: (iterations, values)} of those that metrics.json has."""
    try:
        metrics = read_metrics(str(folder))
    except UserError:
        return {}
    known = {key for record in metrics.values() for key in record}
    return {scalar: curve(metrics, [scalar]) for scalar in scalars if scalar in known}


def choose_metrics(results: Results, wanted: list[str] | None) -> list[str]:
    """`wanted`; without a wish AP and its kin, else all that are not of one class.

    results: of one run or more. UserError: not every run has them, or there is nothing that all have.
    """
    runs = [metrics for seeds in results.values() for metrics in seeds.values()]
    shared = [key for key in runs[0] if all(key in metrics for metrics in runs)]
    general = [key for key in shared if not key.startswith(PER_CLASS)]
    if odd := [key for key in wanted or () if key not in shared]:
        raise UserError(f"--metrics {' '.join(odd)}: not in every run's results, which have {', '.join(general)}.")
    found = wanted or [key for key in AVERAGE_PRECISION if key in shared] or general
    if not found:
        raise UserError(f"The arms' results have no metric in common: {', '.join(map(str, results))} differ in kind.")
    return found


# ---------------------------------------------------------------- statistics
class Difference(NamedTuple):
    """Of one metric, ours minus the host's, by seed. spread: sample standard deviation, None of one seed."""

    values: dict[int, float]
    mean: float
    spread: float | None

    @property
    def mark(self) -> str:
        """GAIN or LOSS where the mean is larger than its spread, WITHIN where not, "" of one seed."""
        if self.spread is None:
            return ""
        return WITHIN if abs(self.mean) <= self.spread else GAIN if self.mean > 0 else LOSS


def difference(ours: dict[int, dict], host: dict[int, dict], metric: str) -> Difference | None:
    """Paired by seed, over the seeds that both have finished with a number; None without one."""
    values = {
        seed: metrics[metric] - host[seed][metric]
        for seed, metrics in ours.items()
        if seed in host and math.isfinite(metrics.get(metric, math.nan) - host[seed].get(metric, math.nan))
    }
    if not values:
        return None
    found = list(values.values())
    return Difference(values, statistics.mean(found), statistics.stdev(found) if len(found) > 1 else None)


def spread(values: list[float], sign: str = "") -> str:
    """ "mean ± sample standard deviation" of the finite ones. sign: "+" writes it for gains too."""
    values = [v for v in values if math.isfinite(v)]
    if not values:
        return NONE
    text = f"{statistics.mean(values):{sign}.2f}"
    return text + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


class Row(NamedTuple):
    """Of a table. minus: the host of a row of differences, "" of a row of results."""

    arm: str
    minus: str
    cells: list[str]

    @property
    def label(self) -> str:
        return f"{self.arm} minus {self.minus}" if self.minus else self.arm


def table_rows(results: Results, hosts: dict[str, str | None], metrics: list[str]) -> list[Row]:
    """An arm's means and its first metric of each seed, in the arms' order; below an arm its difference to its host."""
    rows = []
    for arm, runs in results.items():
        cells = [spread([run.get(m, math.nan) for run in runs.values()]) for m in metrics]
        seeds = ", ".join(f"{run[metrics[0]]:.2f}" for run in runs.values())
        rows.append(Row(arm, "", [*cells, seeds or NONE]))
        if host := hosts.get(arm):
            found = [difference(runs, results.get(host, {}), m) for m in metrics]
            cells = [NONE if d is None else f"{spread(list(d.values.values()), '+')} {d.mark}".strip() for d in found]
            seeds = NONE if found[0] is None else ", ".join(f"{v:+.2f}" for v in found[0].values.values())
            rows.append(Row(arm, host, [*cells, seeds]))
    return rows


def table_heads(metrics: list[str]) -> list[str]:
    return ["arm", *metrics, f"{metrics[0]} of each seed"]


def markdown(rows: list[Row], metrics: list[str]) -> list[str]:
    heads = table_heads(metrics)
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return lines + [f"| {' | '.join([row.label, *row.cells])} |" for row in rows]


# ---------------------------------------------------------------- classes
def class_table(folders: dict[int, tuple[Path, Path]], task: str) -> list[dict]:
    """Per class the mean over seeds of the host's AP, ours, and the change. folders: {seed: (host's, ours)}.

    In the order of results.json; [] where the evaluation has no AP of each class.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for host, ours in folders.values():
        try:
            before, after = (class_ap(str(folder / RESULTS), "", task) for folder in (host, ours))
        except UserError:
            return []
        rows = {name: (b, a) for name, b, a, _ in changes(before, after)}
        for name in before:
            if name in rows:
                found.setdefault(name, []).append(rows[name])
    table = []
    for name, pairs in found.items():
        before, after = (statistics.mean(values) for values in zip(*pairs))
        table.append({"class": name, "before": before, "after": after, "change": after - before})
    return table


# ---------------------------------------------------------------- time and memory
COSTS = ("seconds", "seconds_per_step", "peak_memory_mib", "inference_parameters")


def costs(records: dict[int, dict], host: dict[int, dict] | None) -> dict[str, dict[str, float | None]]:
    """{quantity: {"mean", "ratio"}}: mean over the seeds, and ours over the host's on the seeds that both have."""
    found = {}
    for key in COSTS:
        values = {s: r[key] for s, r in records.items() if r["status"] == FINISHED and r.get(key) is not None}
        theirs = {s: r[key] for s, r in (host or {}).items() if r["status"] == FINISHED and r.get(key)}
        pairs = [(values[s], theirs[s]) for s in values if s in theirs]
        ratio = sum(a for a, _ in pairs) / sum(b for _, b in pairs) if pairs else None
        found[key] = {"mean": statistics.mean(values.values()) if values else None, "ratio": ratio}
    return found
