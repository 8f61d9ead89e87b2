"""Chooses the engine before any test imports detectron2, and the marks that depend on it."""

import logging
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from shared import engine  # noqa: E402

ENGINE = engine.activate()

import torch  # noqa: E402

from detectron2.utils.logger import setup_logger  # noqa: E402

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_report_header(config):
    return engine.describe().splitlines()[0]


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if "embedded_only" in item.keywords and ENGINE != "embedded":
            item.add_marker(pytest.mark.skip(reason="beyond upstream Detectron2"))


@pytest.fixture(autouse=True)
def loggers_as_found():
    """Loggers are process-wide: every test finds them propagating (for caplog), and leaves them so.

    `setup_logger` remembers the folders it has opened: it forgets them, as their handlers are gone.
    """
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "shared", "projects")]
    before = [(log.level, log.propagate, list(log.handlers)) for log in loggers]
    for log in loggers:
        log.propagate = True
    yield
    for log, (level, propagate, handlers) in zip(loggers, before):
        log.setLevel(level)
        log.propagate, log.handlers = propagate, handlers
    setup_logger.cache_clear()


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param
