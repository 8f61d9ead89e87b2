"""Everything a report says, from the folders of the runs: plain values that go into report.json as they are."""

import ast
import contextlib
import json
import math
import os
from datetime import datetime
from pathlib import Path

from detectron2.data import MetadataCatalog
from shared.config import load_config
from shared.data.coco_sets import read_coco_json
from shared.data.digits import statistics
from shared.errors import EXIT_CODE, UserError
from shared.training.run import make_run
from tools.comparison import examples
from tools.comparison.arms import Arm, Plan, data_sets, shown
from tools.comparison.results import Results, choose_metrics, class_table, costs, difference, read_curves, read_results
from tools.comparison.runs import FINISHED, cuda_override, read_record

Records = dict[str, dict[int, dict]]  # {arm: {seed: run.json}}


class NothingFinished(UserError):
    """No run is finished: there is nothing to report. Exit code 1 where what was asked for is good, as far as the runs'
    own exit codes tell."""


def gather(plan: Plan, title: str, command: str, task: str = "", metrics: list[str] | None = None) -> dict:
    """All numbers of a comparison. UserError: what is asked for is not in the results, or NothingFinished."""
    records = {a.name: {s: read_record(plan.folder(a, s)) for s in plan.seeds} for a in plan.arms.values()}
    results: Results = {name: {} for name in plan.arms}
    for name, seed in finished(records):
        task, results[name][seed] = read_results(plan.folder(plan.arms[name], seed), task)
    if not any(results.values()):
        name, seed = next((n, s) for n, runs in records.items() for s in runs)
        why = records[name][seed].get("error") or records[name][seed]["status"]
        nothing = NothingFinished(
            f"No run below {plan.runs} is finished: there is nothing to report ({name}, seed {seed}: {why})."
        )
        codes = {_last_exit_code(record) for runs in records.values() for record in runs.values()}
        nothing.exit_code = EXIT_CODE if codes <= {EXIT_CODE, None} else 1
        raise nothing
    metrics = choose_metrics(results, metrics)
    hosts = {name: arm.host for name, arm in plan.arms.items()}
    return {
        "title": title,
        "written": datetime.now().astimezone().isoformat(timespec="minutes"),
        "command": command,
        "seeds": list(plan.seeds),
        "task": task,
        "metrics": metrics,
        "hosts": hosts,
        "groups": plan.groups(),
        "machines": _distinct(records, "machine"),
        "trained": _dates(records),
        "parallel": sorted({str(r["jobs"]) for rs in records.values() for r in rs.values() if "jobs" in r}),
        "threads": sorted({str(r["threads"]) for rs in records.values() for r in rs.values() if "threads" in r}),
        "data": _data(plan, records),
        "arms": {name: _arm(plan, arm, records[name], results[name]) for name, arm in plan.arms.items()},
        "differences": _differences(results, hosts, metrics),
        "classes": {n: class_table(_pairs(plan, results, n, h), task) for n, h in hosts.items() if h},
        "curves": _curves(plan, results, ["total_loss", f"{task}/{metrics[0]}"]),
        "costs": {n: costs(records[n], records[hosts[n]] if hosts[n] else None) for n in plan.arms},
    }


def metrics_of(data: dict) -> Results:
    """Of the finished runs; an arm without one has {}."""
    return {n: {s: r["metrics"] for s, r in a["runs"].items() if r["metrics"]} for n, a in data["arms"].items()}


def _last_exit_code(record: dict) -> int | None:
    """None where it was not run, or was interrupted before it ended."""
    return record["attempts"][-1].get("exit_code") if record["attempts"] else None


def finished(records: Records) -> list[tuple[str, int]]:
    return [(n, s) for n, runs in records.items() for s, record in runs.items() if record["status"] == FINISHED]


def as_json(value):
    """The value with None for numbers that JSON lacks: not a number, infinite."""
    if isinstance(value, dict):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------- arms and data
def _arm(plan: Plan, arm: Arm, records: dict[int, dict], results: dict[int, dict]) -> dict:
    return {
        "config": shown(arm.config),
        "about": about(arm.config),
        "overrides": list(arm.overrides),
        "host": arm.host,
        **_budget(plan, arm, records),
        "runs": {s: _run(plan.folder(arm, s), record, results.get(s)) for s, record in records.items()},
    }


def _run(folder: Path, record: dict, metrics: dict | None) -> dict:
    keys = ("status", "error", "seconds", "seconds_per_step", "peak_memory_mib", "memory_of", "inference_parameters")
    found = {key: record.get(key) for key in keys}
    return {**found, "parts": len(record["attempts"]), "folder": str(folder), "metrics": metrics}


def about(config: Path) -> str:
    """The first paragraph of a config's docstring, or of a YAML's comment."""
    text = config.read_text()
    if config.suffix != ".py":
        return text.partition("\n")[0].lstrip("# ") if text.startswith("#") else ""
    return " ".join((ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0].split())


def _saved_run(plan: Plan, records: Records, name: str):
    """The run of the arm's first folder that has a config.yaml; None without one."""
    arm = plan.arms[name]
    for seed in records[name]:
        file = plan.folder(arm, seed) / "config.yaml"
        if file.exists():
            return make_run(load_config(str(file), cuda_override(arm.keys.device)))
    return None


def _budget(plan: Plan, arm: Arm, records: dict[int, dict]) -> dict:
    """What a run's config.yaml says of the training, None where that is not known."""
    found = {"iterations": None, "batch_size": None, "eval_period": None, "train_sets": None}
    with contextlib.suppress(UserError):  # of a run that failed, or of other code than this, or the data are gone
        if run := _saved_run(plan, {arm.name: records}, arm.name):
            found.update(iterations=run.max_iter, batch_size=run.batch_size or None, eval_period=run.eval_period)
            run.register_data()
            found["train_sets"] = data_sets(run)[0]
    return found


def _data(plan: Plan, records: Records) -> dict:
    """{"train": ..., "test": ...} of the first finished run: name, images, objects, classes, scales."""
    name, _ = finished(records)[0]
    try:
        run = _saved_run(plan, records, name)
        run.register_data()
        train, test = data_sets(run)
        return {"train": [_set(n) for n in train], "test": [_set(n) for n in test]}
    except UserError as e:
        return {"train": [], "test": [], "missing": str(e)}


def _set(name: str) -> dict:
    meta = MetadataCatalog.get(name)
    found = {"name": name, "classes": list(meta.get("thing_classes", []))}
    file = meta.get("json_file", "")
    if file and os.path.isfile(file):
        counted = statistics(read_coco_json(file))
        found.update(counted["set"], scales=counted["scales"])
    return found


def _distinct(records: Records, key: str) -> list[dict]:
    found = [r[key] for runs in records.values() for r in runs.values() if key in r]
    return [json.loads(text) for text in dict.fromkeys(json.dumps(f) for f in found)]


def _dates(records: Records) -> list[str]:
    """The first day and the last."""
    days = [r["ended"][:10] for runs in records.values() for r in runs.values() if r.get("ended")]
    return [min(days), max(days)] if days else []


# ---------------------------------------------------------------- results
def _differences(results: Results, hosts: dict[str, str | None], metrics: list[str]) -> dict:
    found = {}
    for name, host in hosts.items():
        if host is None:
            continue
        by_metric = {m: difference(results[name], results[host], m) for m in metrics}
        found[name] = {m: d and {**d._asdict(), "mark": d.mark} for m, d in by_metric.items()}
    return found


def _pairs(plan: Plan, results: Results, name: str, host: str) -> dict[int, tuple[Path, Path]]:
    both = [seed for seed in results[name] if seed in results[host]]
    return {seed: (plan.folder(plan.arms[host], seed), plan.folder(plan.arms[name], seed)) for seed in both}


def _curves(plan: Plan, results: Results, scalars: list[str]) -> dict:
    return {
        name: {seed: read_curves(plan.folder(plan.arms[name], seed), scalars) for seed in seeds}
        for name, seeds in results.items()
    }


# ---------------------------------------------------------------- pictures
def gather_examples(plan: Plan, data: dict, count: int, threshold: float | None) -> dict:
    """{"images": [file names], "truth": [Picture], "arms": {arm: [Picture]}, "missing": {arm: why}}."""
    found = {"images": [], "truth": [], "arms": {}, "missing": {}, "threshold": threshold}
    sets = data["data"]["test"]
    if count == 0 or not sets:
        return found
    set_name, names = sets[0]["name"], sets[0]["classes"]
    images = examples.choose_images(set_name, count)
    if not images:
        return {**found, "missing": {name: f"{set_name} has no annotated boxes." for name in plan.arms}}
    found["images"] = [os.path.basename(image["file_name"]) for image in images]
    found["truth"] = [examples.draw_truth(image, names) for image in images]
    for name, arm in plan.arms.items():
        seed = next((s for s, run in data["arms"][name]["runs"].items() if run["status"] == FINISHED), None)
        if seed is None:
            found["missing"][name] = "It has no finished run."
            continue
        try:
            pictures = examples.draw_detections(plan.folder(arm, seed), arm.keys, images, names, threshold)
            found["arms"][name] = pictures
        except UserError as e:
            found["missing"][name] = str(e)
    return found


def without_pictures(found: dict) -> dict:
    """For report.json: counts, no JPEG."""
    arms = {n: [{"found": p.found, "false": p.false} for p in pictures] for n, pictures in found["arms"].items()}
    return {**found, "truth": [p.found for p in found["truth"]], "arms": arms}


def problems(data: dict) -> list[str]:
    """A sentence for every run that is not finished."""
    return [
        f"{name}, seed {seed}: {run['error'] or run['status']}"
        for name, arm in data["arms"].items()
        for seed, run in arm["runs"].items()
        if run["status"] != FINISHED
    ]
