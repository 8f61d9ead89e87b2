"""Loggers of a run, and rate-limited logging."""

import functools
import logging
import os
import re
import sys
import time
from collections import Counter

from tabulate import tabulate
from termcolor import colored

from detectron2.utils.file_io import PathManager

_DATES = "%m/%d %H:%M:%S"
_PLAIN = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", _DATES)


class _ScreenFormatter(logging.Formatter):
    """Coloured (on a terminal), with the root of the logger's name abbreviated."""

    def __init__(self, root_name: str, abbrev_name: str):
        super().__init__(colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s", _DATES)
        self._root, self._abbrev = root_name, abbrev_name

    def formatMessage(self, record):
        record = logging.makeLogRecord(vars(record))  # other handlers see the full name
        record.name = re.sub(rf"^{re.escape(self._root)}(?=\.|$)", self._abbrev, record.name)
        level = colored(record.levelname, "red", attrs=["bold"]) + " " if record.levelno >= logging.WARNING else ""
        return level + super().formatMessage(record)


@functools.lru_cache
def _open_log(filename: str):
    """One stream per file, shared by all loggers that write into it."""
    PathManager.mkdirs(os.path.dirname(filename) or ".")
    return PathManager.open(filename, "a")


@functools.lru_cache
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Logger `name` at DEBUG, to stdout (rank 0) and to `output`: a .txt or .log file, or a folder that gets log.txt
    (other ranks append ".rank<r>"). Equal arguments act once."""
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    if configure_stdout and distributed_rank == 0:
        if abbrev_name is None:
            abbrev_name = "d2" if name == "detectron2" else name
        screen = logging.StreamHandler(sys.stdout)
        screen.setFormatter(_ScreenFormatter(name, abbrev_name) if color else _PLAIN)
        logger.addHandler(screen)
    if output is not None:
        filename = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        file = logging.StreamHandler(_open_log(filename + (f".rank{distributed_rank}" if distributed_rank else "")))
        file.setFormatter(_PLAIN)
        logger.addHandler(file)
    return logger


def _find_caller() -> tuple[str, tuple]:
    """Module name and (file, line) of whoever called the function that calls this one."""
    frame = sys._getframe(2)
    module = frame.f_globals.get("__name__", "__main__")
    return "detectron2" if module == "__main__" else module, (frame.f_code.co_filename, frame.f_lineno)


_COUNTS: Counter = Counter()
_LAST_TIMES: dict[tuple, float] = {}


def log_first_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple = "caller") -> None:
    """Log the first `n` times; `key`: counted per calling line ("caller"), "message" or both."""
    module, line = _find_caller()
    keys = {key} if isinstance(key, str) else set(key)
    assert keys <= {"caller", "message"}, f'key={key!r}: give "caller", "message" or a tuple of both.'
    counted = (line if "caller" in keys else None, msg if "message" in keys else None)
    _COUNTS[counted] += 1
    if _COUNTS[counted] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log at the first call of a line and at every n-th after it."""
    module, line = _find_caller()
    _COUNTS[line] += 1
    if (_COUNTS[line] - 1) % n == 0:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log unless the same line has logged in the last `n` seconds."""
    module, line = _find_caller()
    now = time.time()
    if now - _LAST_TIMES.get(line, float("-inf")) >= n:
        _LAST_TIMES[line] = now
        logging.getLogger(name or module).log(lvl, msg)


def create_small_table(small_dict: dict) -> str:
    """A one-row table in pipe format, numbers with 3 decimals."""
    return tabulate([small_dict.values()], list(small_dict), "pipe", ".3f", stralign="center", numalign="center")


def _log_api_usage(identifier: str) -> None:
    """Nothing: a name that callers written for upstream import."""
