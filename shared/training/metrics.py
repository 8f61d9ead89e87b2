"""metrics.json and the storage of metrics, so that those of a resumed run are those of an uninterrupted one."""

import json
import logging
import os
from collections import defaultdict

import torch

from detectron2.engine import hooks
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
from shared.files import disk_errors, whole_file

logger = logging.getLogger(__name__)

FILE = "metrics.json"
WINDOW = 20  # iterations that a written value is the median of, as in Detectron2's writers
TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")  # of this part of the run alone
# Values of a metric that stay in memory and go into a checkpoint: the remaining time is told from as many
KEPT = 1000


class MetricsFile(EventWriter):
    """Detectron2's JSONWriter (one object a line and iteration, each value once), to which a run can come back.

    The file is open only while lines are written, all at once, so that a full disk leaves at most one of them cut.
    """

    def __init__(self, folder: str):
        """Values up to the iteration `last_write` are in the file."""
        self.path, self.last_write = os.path.join(folder, FILE), -1

    def write(self) -> None:
        lines: dict[int, dict] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(WINDOW).items():
            if iteration > self.last_write:
                lines[iteration][name] = value
        if not lines:
            return
        text = "".join(json.dumps({**row, "iteration": i}, sort_keys=True) + "\n" for i, row in lines.items())
        with open(self.path, "ab", buffering=0) as f:
            _write_all(f, text.encode())
            os.fsync(f.fileno())
        self.last_write = max(lines)

    def close(self) -> None:
        """Nothing is open."""

    def go_back_to(self, last_write: int) -> None:
        """Drop lines of later iterations, which the resumed run writes again, and what is no whole line."""
        if not os.path.exists(self.path):
            return
        with open(self.path, "rb") as f:
            lines = f.readlines()
        kept = [line for line in lines if 0 <= _iteration(line) <= last_write]
        if kept != lines:
            logger.info("%s: %d lines after iteration %d dropped.", FILE, len(lines) - len(kept), last_write)
            with whole_file(self.path) as f:
                f.writelines(kept)
        self.last_write = last_write


def _write_all(f, data: bytes) -> None:
    while data:
        data = data[f.write(data) :]


def _iteration(line: bytes) -> int:
    """-1 of a damaged line."""
    try:
        return int(json.loads(line)["iteration"]) if line.endswith(b"\n") else -1
    except (ValueError, KeyError, TypeError):
        return -1


class WriteMetrics(hooks.PeriodicWriter):
    """PeriodicWriter that names a full disk, and keeps the storage from growing with every iteration."""

    def __init__(self, writers: list[EventWriter], period: int, folder: str):
        super().__init__(writers, period)
        self._folder = folder

    def after_step(self):
        with disk_errors(self._folder):
            super().after_step()
        for history in self.trainer.storage.histories().values():
            del history.values()[:-KEPT]

    def after_train(self):
        with disk_errors(self._folder):
            super().after_train()


def state_of(storage: EventStorage) -> dict:
    """Name to the last values, their iterations and whether they are smoothed; of all metrics but times."""
    hints, state = storage.smoothing_hints(), {}
    for name, history in storage.histories().items():
        if name in TIMES:
            continue
        values, iterations = zip(*history.values()[-KEPT:])
        state[name] = {
            "values": torch.tensor(values, dtype=torch.float64),
            "iterations": torch.tensor(iterations, dtype=torch.int64),
            "smoothed": bool(hints[name]),
        }
    return state


def restore(storage: EventStorage, state: dict) -> None:
    for name, saved in state.items():
        for value, iteration in zip(saved["values"].tolist(), saved["iterations"].tolist()):
            storage.put_scalar(name, value, smoothing_hint=saved["smoothed"], cur_iter=iteration)
