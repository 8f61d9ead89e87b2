"""Metrics of a run: where they are put, and the writers that take them to disk and screen."""

import datetime
import json
import logging
import os
import time
from collections import defaultdict
from contextlib import contextmanager
from functools import cached_property

import torch
from fvcore.common.history_buffer import HistoryBuffer

from detectron2.utils.file_io import PathManager

_STORAGES: list["EventStorage"] = []  # of the process, not of a thread: workers write metrics too


def get_event_storage() -> "EventStorage":
    """The storage of the innermost open `with EventStorage(...)`; AssertionError outside."""
    assert _STORAGES, "get_event_storage() has to be called inside a 'with EventStorage(...)'."
    return _STORAGES[-1]


def has_event_storage() -> bool:
    return bool(_STORAGES)


class EventStorage:
    """Scalars with their history, images and histograms of one run."""

    def __init__(self, start_iter: int = 0):
        self._history = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest: dict[str, tuple[float, int]] = {}
        self._iter = start_iter
        self._prefix = ""
        self._vis_data: list[tuple] = []
        self._histograms: list[dict] = []

    def put_image(self, img_name: str, img_tensor) -> None:
        """img_tensor: (C, H, W), uint8 or float in [0, 1], RGB."""
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_scalar(self, name: str, value, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """smoothing_hint: whether writers show a median; it has to stay the same for a name."""
        name = self._prefix + name
        cur_iter = self._iter if cur_iter is None else cur_iter
        value = float(value)
        hint = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert hint == smoothing_hint, (
            f"Scalar {name!r} was put with smoothing_hint={hint} before, now {smoothing_hint}."
        )
        self._history[name].update(value, cur_iter)
        self._latest[name] = (value, cur_iter)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs) -> None:
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint, cur_iter)

    def put_histogram(self, hist_name: str, hist_tensor: torch.Tensor, bins: int = 1000) -> None:
        """A histogram of all values of a tensor, kept as arguments of `add_histogram_raw`."""
        low, high = hist_tensor.min().item(), hist_tensor.max().item()
        counts = torch.histc(hist_tensor, bins=bins)
        edges = torch.linspace(low, high, steps=bins + 1, dtype=torch.float32)
        self._histograms.append(
            dict(
                tag=hist_name,
                min=low,
                max=high,
                num=len(hist_tensor),
                sum=float(hist_tensor.sum()),
                sum_squares=float((hist_tensor**2).sum()),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(),
                global_step=self._iter,
            )
        )

    def history(self, name: str) -> HistoryBuffer:
        """KeyError for a scalar that was never put."""
        if name not in self._history:
            raise KeyError(f"No scalar {name!r} in this storage; it has {sorted(self._history)}.")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """Name to (value, iteration) of the last value put."""
        return self._latest

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Like `latest`, with the median over the last `window_size` iterations where hinted."""
        return {
            name: (
                self._history[name].median(self.count_samples(name, window_size))
                if self._smoothing_hints[name]
                else value,
                itr,
            )
            for name, (value, itr) in self._latest.items()
        }

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values of `name` belong to the last `window_size` iterations."""
        iters = [itr for _, itr in self.history(name).values()]
        return sum(itr > iters[-1] - window_size for itr in iters)

    def smoothing_hints(self) -> dict[str, bool]:
        return self._smoothing_hints

    def step(self) -> None:
        """One iteration is over: later values belong to the next one."""
        self._iter += 1

    @property
    def iter(self) -> int:
        return self._iter

    @iter.setter
    def iter(self, value) -> None:
        self._iter = int(value)

    @property
    def iteration(self) -> int:
        return self._iter

    @contextmanager
    def name_scope(self, name: str):
        """Scalars put inside get the prefix `name/`."""
        old, self._prefix = self._prefix, name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._prefix = old

    def clear_images(self) -> None:
        self._vis_data = []

    def clear_histograms(self) -> None:
        self._histograms = []

    def __enter__(self):
        _STORAGES.append(self)
        return self

    def __exit__(self, *exc):
        assert _STORAGES[-1] is self, "Event storages have to be closed in the reverse order."
        _STORAGES.pop()


class EventWriter:
    """`write` takes what is new in the current storage somewhere; `close` ends it."""

    def write(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class JSONWriter(EventWriter):
    """One JSON object per line and iteration; each value is written once, smoothed."""

    def __init__(self, json_file: str, window_size: int = 20):
        self._file = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        lines = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, itr) in latest.items():
            if itr > self._last_write:
                lines[itr][name] = value
        for itr, scalars in lines.items():
            self._file.write(json.dumps({**scalars, "iteration": itr}, sort_keys=True) + "\n")
        self._last_write = max(lines, default=self._last_write)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class TensorboardXWriter(EventWriter):
    """Scalars, images and histograms for tensorboard; nothing on disk before the first value."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs):
        self._window_size = window_size
        self._writer_args = {"log_dir": log_dir, **kwargs}
        self._last_write = -1

    @cached_property
    def _writer(self):
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(**self._writer_args)

    def write(self) -> None:
        storage = get_event_storage()
        newest = self._last_write
        for name, (value, itr) in storage.latest_with_smoothing_hint(self._window_size).items():
            if itr > self._last_write:
                self._writer.add_scalar(name, value, itr)
                newest = max(newest, itr)
        self._last_write = newest
        for name, image, itr in storage._vis_data:
            self._writer.add_image(name, image, itr)
        storage.clear_images()
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_histograms()

    def close(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """One log line: remaining time, losses, iteration times, learning rate, GPU memory."""

    def __init__(self, max_iter: int | None = None, window_size: int = 20):
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None  # iteration, seconds

    def _get_eta(self, storage: EventStorage) -> str | None:
        """H:MM:SS until max_iter; None if unknown."""
        if self._max_iter is None:
            return None
        eta = None
        now = (storage.iter, time.perf_counter())
        if "time" in storage.histories():
            eta = storage.history("time").median(1000) * (self._max_iter - storage.iter - 1)
            storage.put_scalar("eta_seconds", eta, smoothing_hint=False)
        elif self._last_write is not None and storage.iter > self._last_write[0]:
            per_iter = (now[1] - self._last_write[1]) / (now[0] - self._last_write[0])
            eta = per_iter * (self._max_iter - storage.iter - 1)
        self._last_write = now
        return None if eta is None else str(datetime.timedelta(seconds=int(eta)))

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._max_iter:  # training is over, the last line has been printed
            return
        parts = []
        if (eta := self._get_eta(storage)) is not None:
            parts.append(f"eta: {eta}")
        parts.append(f"iter: {storage.iter}")

        names = list(storage.histories())
        losses = [k for k in names if "loss" in k]
        for name in losses + [k for k in names if "[metric]" in k]:
            n = storage.count_samples(name, self._window_size)
            parts.append(f"{name}: {storage.history(name).median(n):.4g}")
        for name in ("time", "data_time"):
            if name in storage.histories():
                history = storage.history(name)
                n = storage.count_samples(name, self._window_size)
                parts.append(f"{name}: {history.avg(n):.4f}")
                parts.append(f"last_{name}: {history.latest():.4f}")
        lr = storage.history("lr").latest() if "lr" in storage.histories() else None
        parts.append("lr: N/A" if lr is None else f"lr: {lr:.5g}")
        if torch.cuda.is_available():
            parts.append(f"max_mem: {torch.cuda.max_memory_allocated() / 1024**2:.0f}M")
        self.logger.info(" " + "  ".join(parts))
