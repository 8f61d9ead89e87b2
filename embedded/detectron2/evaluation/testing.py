"""Results in a form to paste, to check and to store."""

import logging
import pprint
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log {task: {metric: number}} as comma-separated lines; per-class metrics are left out."""
    assert isinstance(results, Mapping), f"Results are a mapping by task, got {results!r}."
    logger = logging.getLogger(__name__)
    for task, metrics in results.items():
        if isinstance(metrics, Mapping):
            overall = {k: v for k, v in metrics.items() if "-" not in k}
            logger.info(f"copypaste: Task: {task}")
            logger.info("copypaste: " + ",".join(overall))
            logger.info("copypaste: " + ",".join(f"{v:.4f}" for v in overall.values()))
        else:
            logger.info(f"copypaste: {task}={metrics}")


def verify_results(cfg, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compare with TEST.EXPECTED_RESULTS, [[task, metric, value, tolerance]]; else exit(1)."""
    expected = cfg.TEST.EXPECTED_RESULTS
    if not expected:
        return True
    logger = logging.getLogger(__name__)
    for task, metric, value, tolerance in expected:
        actual = results.get(task, {}).get(metric)
        if actual is None or not np.isfinite(actual) or abs(actual - value) > tolerance:
            logger.error(f"{task}/{metric} is {actual}, expected {value} +- {tolerance}.")
            logger.error("All results: " + pprint.pformat(results))
            sys.exit(1)
    logger.info("All expected results were met.")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """{"bbox": {"AP": 1}} -> {"bbox/AP": 1}, at any depth."""
    flat = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{k}": v for k, v in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
