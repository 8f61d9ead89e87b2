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
    """Scalars with their history, images and histograms of one run. `iter` is the iteration that values are put at."""

    def __init__(self, start_iter: int = 0):
        self.iter, self._prefix = start_iter, ""
        self._history: dict[str, HistoryBuffer] = {}
        self._smoothing_hints: dict[str, bool] = {}
        self._vis_data: list[tuple] = []
        self._histograms: list[dict] = []

    def put_image(self, img_name: str, img_tensor) -> None:
        """img_tensor: (C, H, W), uint8 or float in [0, 1], RGB."""
        self._vis_data.append((img_name, img_tensor, self.iter))

    def put_scalar(self, name: str, value, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """smoothing_hint: whether writers show a median; it has to stay the same for a name."""
        name, cur_iter = self._prefix + name, self.iter if cur_iter is None else cur_iter
        hint = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert hint == smoothing_hint, f"Scalar {name!r} was put with smoothing_hint={hint} before."
        self._history.setdefault(name, HistoryBuffer()).update(float(value), cur_iter)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs) -> None:
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint, cur_iter)

    def put_histogram(self, hist_name: str, hist_tensor: torch.Tensor, bins: int = 1000) -> None:
        """A histogram of all values of a tensor, kept as arguments of `add_histogram_raw`."""
        low, high = hist_tensor.min().item(), hist_tensor.max().item()
        edges = torch.linspace(low, high, steps=bins + 1, dtype=torch.float32)
        histogram = {"tag": hist_name, "global_step": self.iter, "min": low, "max": high, "num": len(hist_tensor)}
        histogram |= {"sum": float(hist_tensor.sum()), "sum_squares": float((hist_tensor**2).sum())}
        histogram |= {"bucket_limits": edges[1:].tolist(), "bucket_counts": torch.histc(hist_tensor, bins).tolist()}
        self._histograms.append(histogram)

    def history(self, name: str) -> HistoryBuffer:
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """Name to (value, iteration) of the last value put."""
        return {name: history.values()[-1] for name, history in self._history.items()}

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Like `latest`, with the median over the last `window_size` iterations where hinted."""
        result = {}
        for name, (value, itr) in self.latest().items():
            if self._smoothing_hints[name]:
                value = self._history[name].median(self.count_samples(name, window_size))
            result[name] = (value, itr)
        return result

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values of `name` belong to the last `window_size` iterations."""
        iters = [itr for _, itr in self.history(name).values()]
        return sum(itr > iters[-1] - window_size for itr in iters)

    def smoothing_hints(self) -> dict[str, bool]:
        return self._smoothing_hints

    def step(self) -> None:
        """One iteration is over: later values belong to the next one."""
        self.iter += 1

    @property
    def iteration(self) -> int:
        return self.iter

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

    _last_write = -1

    def write(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def _new_scalars(self, window_size: int) -> list[tuple[str, float, int]]:
        """Name, value (smoothed where hinted) and iteration of what was put after the last one that this returned."""
        latest = get_event_storage().latest_with_smoothing_hint(window_size)
        new = [(name, value, itr) for name, (value, itr) in latest.items() if itr > self._last_write]
        self._last_write = max((itr for _, _, itr in new), default=self._last_write)
        return new


class JSONWriter(EventWriter):
    """One JSON object per line and iteration; each value is written once, smoothed."""

    def __init__(self, json_file: str, window_size: int = 20):
        self._file, self._window_size = PathManager.open(json_file, "a"), window_size

    def write(self) -> None:
        lines = defaultdict(dict)
        for name, value, itr in self._new_scalars(self._window_size):
            lines[itr][name] = value
        for itr, scalars in lines.items():
            self._file.write(json.dumps({**scalars, "iteration": itr}, sort_keys=True) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class TensorboardXWriter(EventWriter):
    """Scalars, images and histograms for tensorboard; nothing on disk before the first value."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs):
        self._window_size, self._writer_args = window_size, {"log_dir": log_dir, **kwargs}

    @cached_property
    def _writer(self):
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(**self._writer_args)

    def write(self) -> None:
        storage = get_event_storage()
        for scalar in self._new_scalars(self._window_size):
            self._writer.add_scalar(*scalar)
        for image in storage._vis_data:
            self._writer.add_image(*image)
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_images()
        storage.clear_histograms()

    def close(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """One log line: remaining time, losses, iteration times, learning rate, GPU memory."""

    def __init__(self, max_iter: int | None = None, window_size: int = 20):
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter, self._window_size = max_iter, window_size
        self._last_time: tuple[int, float] | None = None  # of the last write: iteration, seconds

    def _get_eta(self, storage: EventStorage) -> list[str]:
        """["eta: H:MM:SS"] until max_iter; nothing if unknown."""
        last, self._last_time = self._last_time, (storage.iter, time.perf_counter())
        left = self._max_iter - storage.iter - 1
        if "time" in storage.histories():
            eta = storage.history("time").median(1000) * left
            storage.put_scalar("eta_seconds", eta, smoothing_hint=False)
        elif last is not None and storage.iter > last[0]:
            eta = (self._last_time[1] - last[1]) / (storage.iter - last[0]) * left
        else:
            return []
        return [f"eta: {datetime.timedelta(seconds=int(eta))}"]

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._max_iter:  # training is over, the last line has been printed
            return
        eta = [] if self._max_iter is None else self._get_eta(storage)
        parts, histories = [*eta, f"iter: {storage.iter}"], storage.histories()
        samples = {name: storage.count_samples(name, self._window_size) for name in histories}
        for part in ("loss", "[metric]"):
            parts += [f"{k}: {v.median(samples[k]):.4g}" for k, v in histories.items() if part in k]
        for name, times in ((k, histories[k]) for k in ("time", "data_time") if k in histories):
            parts += [f"{name}: {times.avg(samples[name]):.4f}", f"last_{name}: {times.latest():.4f}"]
        parts.append(f"lr: {histories['lr'].latest():.5g}" if "lr" in histories else "lr: N/A")
        if torch.cuda.is_available():
            parts.append(f"max_mem: {torch.cuda.max_memory_allocated() / 1024**2:.0f}M")
        self.logger.info(" " + "  ".join(parts))
