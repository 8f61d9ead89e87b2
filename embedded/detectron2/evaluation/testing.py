"""Results in a form to paste, to check and to store."""

import logging
import pprint
import sys
from collections.abc import Mapping

import numpy as np

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping) -> None:
    """Log {task: {metric: number}} as comma-separated lines; per-class metrics are left out."""
    assert isinstance(results, Mapping), f"Results are a mapping by task, got {results!r}."
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info(f"copypaste: {task}={metrics}")
            continue
        overall = {k: v for k, v in metrics.items() if "-" not in k}
        for line in (f"Task: {task}", ",".join(overall), ",".join(f"{v:.4f}" for v in overall.values())):
            logger.info(f"copypaste: {line}")


def verify_results(cfg, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compare with TEST.EXPECTED_RESULTS, [[task, metric, value, tolerance]]; else exit(1)."""
    for task, metric, value, tolerance in cfg.TEST.EXPECTED_RESULTS:
        actual = results.get(task, {}).get(metric, np.nan)
        if not abs(actual - value) <= tolerance:  # nan is never near
            logger.error(f"{task}/{metric} is {actual}, not {value} +- {tolerance}, in\n{pprint.pformat(results)}")
            sys.exit(1)
    return True


def flatten_results_dict(results: Mapping) -> dict:
    """{"bbox": {"AP": 1}} -> {"bbox/AP": 1}, at any depth."""
    flat = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{k}": v for k, v in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
