#!/usr/bin/env python3
"""Train several configs on the same data with the same seeds and put their results side by side.

    benchmarks/compare.py --arm plain=A.py --arm method=B.py --seeds 0 1 2 --runs runs/cmp \\
        [--output table.md] [--metrics AP AP50 APs] [--jobs 2] [--title TEXT] -- [arguments of train_net.py]

Every run is `train_net.py --config-file ... train.seed=SEED train.output_dir=RUNS/ARM/SEED`; what stands after `--`
goes to all of them, and `{seed}` in an argument becomes the run's seed (to start from a checkpoint of the same seed).
Finished runs are kept and unfinished ones resumed: the command can be repeated. The table gives mean and sample
standard deviation over the seeds, and the difference to the first arm, paired by seed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", action="append", required=True, metavar="NAME=CONFIG[,key=value...]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--output", type=Path, help="Markdown file; it is replaced")
    parser.add_argument("--metrics", nargs="+", default=["AP", "AP50", "AP75", "APs", "APm", "APl"])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; the cores are shared between them")
    parser.add_argument("--title", default="Comparison")
    parser.add_argument("common", nargs="*", help="after --: for train_net.py")
    return parser.parse_args()


def parse_arm(text: str) -> tuple[str, list[str]]:
    """ "name=config,a.b=1" -> name, train_net.py's arguments."""
    name, equals, rest = text.partition("=")
    config, *overrides = rest.split(",")
    if not equals or not (ROOT / config).is_file():
        raise SystemExit(f"--arm {text!r}: write NAME=CONFIG with an existing config file.")
    return name, ["--config-file", str(ROOT / config), *overrides]


def train(arguments: list[str], common: list[str], folder: Path, seed: int, threads: int) -> dict:
    """Run train_net.py unless the folder holds its results; returns {task: {metric: value}}."""
    results = folder / "inference" / "results.json"
    done = folder / "done"
    if not done.exists():
        command = [sys.executable, str(ROOT / "train_net.py"), *arguments, *common]
        command = [argument.replace("{seed}", str(seed)) for argument in command]
        command += [f"train.output_dir={folder}", f"train.seed={seed}"]
        command += ["--resume"] if (folder / "config.yaml").exists() else []
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder.parent / f"{seed}.txt", "a") as log:
            env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=env, stdin=subprocess.DEVNULL)
        if status.returncode != 0:
            raise SystemExit(f"{' '.join(command)} ended with {status.returncode}: see {log.name}")
        done.touch()
    return json.loads(results.read_text())


def shown(argument: str) -> str:
    """An argument without the folders of this machine."""
    path = Path(argument)
    if not path.is_absolute():
        return argument
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def table(results: dict[str, list[dict]], metrics: list[str]) -> list[str]:
    """Lines of a Markdown table: arms in rows. `results`: per arm, the metrics of each seed."""
    metrics = [m for m in metrics if all(m in r for runs in results.values() for r in runs)]
    first = next(iter(results))
    lines = [f"| arm | {' | '.join(metrics)} | {metrics[0]} of each seed |", "|---" * (len(metrics) + 2) + "|"]
    for name, runs in results.items():
        cells = [spread([r[m] for r in runs]) for m in metrics]
        lines.append(f"| {name} | {' | '.join(cells)} | {', '.join(f'{r[metrics[0]]:.2f}' for r in runs)} |")
    for name, runs in results.items():
        if name != first:
            cells = [spread([r[m] - base[m] for r, base in zip(runs, results[first])]) for m in metrics]
            lines.append(f"| {name} minus {first} | {' | '.join(cells)} | |")
    return lines


def main():
    args = parse_args()
    arms = dict(parse_arm(text) for text in args.arm)
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = {
            (name, seed): pool.submit(train, arguments, args.common, args.runs / name / str(seed), seed, threads)
            for seed in args.seeds
            for name, arguments in arms.items()
        }
        done = {key: next(iter(run.result().values())) for key, run in runs.items()}
    results = {name: [done[name, seed] for seed in args.seeds] for name in arms}
    words = [f"# {args.title}", ""]
    words += [
        f"{date.today()}, {platform.machine()} CPU, {os.cpu_count()} cores, seeds {', '.join(map(str, args.seeds))}; "
        "mean ± sample standard deviation. Made by `benchmarks/compare.py`; all arms with:",
        "",
        "```",
        " ".join(shown(c) for c in args.common) or "(no arguments)",
        *(
            f"{name}: {' '.join(os.path.relpath(a, ROOT) if os.path.isabs(a) else a for a in v[1:])}"
            for name, v in arms.items()
        ),
        "```",
        "",
        *table(results, args.metrics),
    ]
    text = "\n".join(words) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
