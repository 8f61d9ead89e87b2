"""Datasets made from lists, maps, samplers and aspect ratio groups."""

import contextlib
import copy
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from detectron2.utils.serialize import PicklableWrapper

logger = logging.getLogger(__name__)


class _TorchSerializedList:
    """A list pickled into one byte tensor: workers then share its pages instead of copying them."""

    def __init__(self, lst: list):
        chunks = [pickle.dumps(x, protocol=-1) for x in lst]
        self._ends = torch.from_numpy(np.cumsum([len(c) for c in chunks], dtype=np.int64))
        self._bytes = torch.from_numpy(np.frombuffer(bytearray().join(chunks), dtype=np.uint8))
        logger.info(f"Serialized {len(chunks)} dataset items: {len(self._bytes) / 2**20:.2f} MiB")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, idx: int) -> Any:
        start = self._ends[idx - 1] if idx else 0
        return pickle.loads(memoryview(self._bytes[start : self._ends[idx]].numpy()))


_default_serialize: Callable[[list], Any] = _TorchSerializedList


@contextlib.contextmanager
def set_default_dataset_from_list_serialize_method(new: Callable[[list], Any]) -> Iterator[None]:
    """Within the context, `DatasetFromList(serialize=True)` stores its list as `new(list)`."""
    global _default_serialize
    old, _default_serialize = _default_serialize, new
    try:
        yield
    finally:
        _default_serialize = old


class DatasetFromList(Dataset):
    """Map-style dataset over a list. copy: deep-copy each item on access, unless `serialize` makes fresh items anyway.
    serialize: True (the default method), False, or a callable from the list to a sequence."""

    def __init__(self, lst: list, copy: bool = True, serialize: bool | Callable = True):
        self._copy = copy and not serialize
        method = serialize if callable(serialize) else _default_serialize
        self._lst = method(lst) if serialize else lst

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        return copy.deepcopy(self._lst[idx]) if self._copy else self._lst[idx]


class MapDataset(Dataset):
    """Apply `map_func` to each item of `dataset`; where it returns None, another item is taken.
    Of an IterableDataset it makes an IterableDataset that leaves out the None."""

    def __new__(cls, dataset, map_func):
        is_iterable = isinstance(dataset, IterableDataset)
        return _MapIterableDataset(dataset, map_func) if is_iterable else super().__new__(cls)

    def __getnewargs__(self):
        return self._dataset, self._map_func

    def __init__(self, dataset: Dataset, map_func: Callable):
        self._dataset, self._map_func = dataset, PicklableWrapper(map_func)  # a lambda has to reach spawned workers
        self._rng, self._failed = random.Random(42), set()

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        for tries in itertools.count(1):
            data = self._map_func(self._dataset[idx])
            if data is not None:
                self._failed.discard(idx)
                return data
            self._failed.add(idx)
            if tries >= 3:
                logger.warning(f"The mapper returned None {tries} times in a row, now for {idx}.")
            candidates = [i for i in range(len(self)) if i not in self._failed]
            if not candidates:
                raise ValueError(f"All {len(self)} items of the dataset were mapped to None.")
            idx = self._rng.choice(candidates)


class _MapIterableDataset(IterableDataset):
    def __init__(self, dataset: IterableDataset, map_func: Callable):
        self._dataset, self._map_func = dataset, PicklableWrapper(map_func)

    def __iter__(self) -> Iterator:
        return (x for x in map(self._map_func, self._dataset) if x is not None)


class ToIterableDataset(IterableDataset):
    """Stream `dataset[i]` for i of `sampler`. Each worker runs the same sampler and keeps its chunks, dealt out round
    robin as DataLoader collects. With chunks of the loader's batch size, any number of workers thus yields the
    sampler's order. shard_sampler=False: `sampler` itself differs from worker to worker."""

    def __init__(self, dataset: Dataset, sampler: Sampler, shard_sampler=True, shard_chunk_size=1):
        assert not isinstance(dataset, IterableDataset), f"{dataset} is iterable already."
        assert isinstance(sampler, Sampler), f"Expected a Sampler, got {type(sampler)}."
        self.dataset, self.sampler = dataset, sampler
        self.shard_sampler, self.shard_chunk_size = shard_sampler, shard_chunk_size

    def __iter__(self) -> Iterator:
        info = get_worker_info()
        workers, rank = (info.num_workers, info.id) if info and self.shard_sampler else (1, 0)
        for i, index in enumerate(self.sampler):
            if i // self.shard_chunk_size % workers == rank:
                yield self.dataset[index]

    def __len__(self) -> int:
        return len(self.sampler)


class AspectRatioGroupedDataset(IterableDataset):
    """Batches (lists) of dicts that are all wider than high, or all not, by `width` and `height` of the original image.
    Incomplete batches wait in `_buckets`, also for the next iteration over the object."""

    def __init__(self, dataset: Iterable[dict], batch_size: int):
        self.dataset, self.batch_size = dataset, batch_size
        self._buckets: list[list[dict]] = [[], []]

    def __iter__(self) -> Iterator[list[dict]]:
        for d in self.dataset:
            bucket = self._buckets[0 if d["width"] > d["height"] else 1]
            bucket.append(d)
            if len(bucket) == self.batch_size:
                batch = bucket[:]
                bucket.clear()
                yield batch
