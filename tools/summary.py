#!/usr/bin/env python3
"""What a run's folder holds, in a few lines: average precision, weights, pictures."""

import json
import sys
from pathlib import Path


def summary(run: Path) -> str:
    """Lines for a person; {run}/inference/results.json must exist."""
    results = json.loads((run / "inference/results.json").read_text())
    lines = []
    for task, metrics in results.items():
        shown = [k for k in ("AP", "AP50", "AP75", "APs", "APm", "APl") if k in metrics]
        lines.append(f"{task:<12}" + "  ".join(f"{k} {metrics[k]:.1f}" for k in shown))
    for what, name in (
        ("weights", "model_final.pth"),
        ("config", "config.yaml"),
        ("log", "log.txt"),
        ("pictures", "predictions"),
    ):
        if (run / name).exists():
            lines.append(f"{what:<12}{run / name}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(summary(Path(sys.argv[1])))
