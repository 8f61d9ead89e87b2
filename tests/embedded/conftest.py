"""Loggers are process-wide: every test finds them propagating (for caplog), and leaves them so."""

import logging

import pytest


@pytest.fixture(autouse=True)
def loggers_as_found():
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    before = [(log.level, log.propagate, list(log.handlers)) for log in loggers]
    for log in loggers:
        log.propagate = True
    yield
    for log, (level, propagate, handlers) in zip(loggers, before):
        log.setLevel(level)
        log.propagate, log.handlers = propagate, handlers
