"""Loggers of a run, and rate-limited logging."""

import functools
import logging
import os
import re
import sys
import time
from collections import Counter
from typing import Any

from tabulate import tabulate
from termcolor import colored

from detectron2.utils.file_io import PathManager

_PLAIN = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
_DATES = "%m/%d %H:%M:%S"


class _ScreenFormatter(logging.Formatter):
    """Coloured (on a terminal), with the root of the logger's name abbreviated."""

    def __init__(self, root_name: str, abbrev_name: str):
        head = colored("[%(asctime)s %(name)s]: ", "green")
        super().__init__(head + "%(message)s", datefmt=_DATES)
        self._root, self._abbrev = root_name, abbrev_name

    def formatMessage(self, record):
        record = logging.makeLogRecord(vars(record))  # other handlers see the full name
        record.name = re.sub(rf"^{re.escape(self._root)}(?=\.|$)", self._abbrev, record.name)
        level = ""
        if record.levelno >= logging.WARNING:
            level = colored(record.levelname, "red", attrs=["bold"]) + " "
        return level + super().formatMessage(record)


@functools.lru_cache
def _open_log(filename: str):
    """One stream per file, shared by all loggers that write into it."""
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
    """Logger `name` at DEBUG, to stdout (rank 0) and a file. Equal arguments act once.

    output: a .txt or .log file, or a folder that gets log.txt; other ranks append ".rank<r>".
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    if abbrev_name is None:
        abbrev_name = "d2" if name == "detectron2" else name

    plain = logging.Formatter(_PLAIN, datefmt=_DATES)
    handlers = []
    if configure_stdout and distributed_rank == 0:
        screen = logging.StreamHandler(stream=sys.stdout)
        screen.setFormatter(_ScreenFormatter(name, abbrev_name) if color else plain)
        handlers.append(screen)
    if output is not None:
        is_file = output.endswith((".txt", ".log"))
        filename = output if is_file else os.path.join(output, "log.txt")
        if distributed_rank > 0:
            filename += f".rank{distributed_rank}"
        PathManager.mkdirs(os.path.dirname(filename) or ".")
        file = logging.StreamHandler(_open_log(filename))
        file.setFormatter(plain)
        handlers.append(file)
    for handler in handlers:
        handler.setLevel(logging.DEBUG)
        logger.addHandler(handler)
    return logger


def _find_caller() -> tuple[str, tuple]:
    """Module name and (file, line) of whoever called the function that calls this one."""
    frame = sys._getframe(2)
    module = frame.f_globals.get("__name__", "__main__")
    module = "detectron2" if module == "__main__" else module
    return module, (frame.f_code.co_filename, frame.f_lineno)


_COUNTS: Counter = Counter()
_LAST_TIMES: dict[tuple, float] = {}


def log_first_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple = "caller") -> None:
    """Log the first `n` times; `key`: counted per calling line ("caller"), "message" or both."""
    module, line = _find_caller()
    keys = (key,) if isinstance(key, str) else key
    if not set(keys) <= {"caller", "message"}:
        raise ValueError(f'key={key!r}: give "caller", "message" or a tuple of both.')
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


def create_small_table(small_dict: dict[str, Any]) -> str:
    """A one-row table in pipe format, numbers with 3 decimals."""
    align = {"stralign": "center", "numalign": "center"}
    return tabulate([small_dict.values()], list(small_dict), tablefmt="pipe", floatfmt=".3f", **align)


def _log_api_usage(identifier: str) -> None:
    """Nothing: a name that callers written for upstream import."""
