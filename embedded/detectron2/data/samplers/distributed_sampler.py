"""Samplers over dataset indices; each rank gets its part of one common stream."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from detectron2.utils import comm


class _InfiniteSampler(Sampler[int]):
    """Epoch after epoch of `_epoch(generator)`, dealt out to the ranks one by one. All ranks need the same seed; None
    draws it from NumPy's global RNG, equal on all ranks."""

    def __init__(self, shuffle: bool, seed: int | None):
        self._shuffle = shuffle
        self._seed = comm.shared_random_seed() if seed is None else int(seed)
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._indices(), self._rank, None, self._world_size)

    def _indices(self) -> Iterator[int]:
        g = torch.Generator().manual_seed(self._seed)
        while True:
            indices = self._epoch(g)
            order = torch.randperm(len(indices), generator=g) if self._shuffle else slice(None)
            yield from indices[order].tolist()


class TrainingSampler(_InfiniteSampler):
    """Endless permutations of range(size), or range(size) itself without `shuffle`."""

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None):
        if not isinstance(size, int):
            raise TypeError(f"TrainingSampler(size=) needs an int, got {size!r} ({type(size)}).")
        if size <= 0:
            raise ValueError(f"TrainingSampler(size=) needs a positive int, got {size}.")
        super().__init__(shuffle, seed)
        self._size = size

    def _epoch(self, g: torch.Generator) -> torch.Tensor:
        return torch.arange(self._size)


class RepeatFactorTrainingSampler(_InfiniteSampler):
    """Each epoch repeats image i `repeat_factors[i]` times on average (LVIS, arXiv:1908.03195). The fraction of a
    factor decides at random, in every epoch anew."""

    def __init__(self, repeat_factors: Sequence[float], *, shuffle: bool = True, seed=None):
        super().__init__(shuffle, seed)
        self._factors = torch.as_tensor(repeat_factors)

    @staticmethod
    def repeat_factors_from_category_frequency(dataset_dicts: Sequence[dict], repeat_thresh: float, sqrt: bool = True):
        """Factor of a category: max(1, sqrt(t / f)), f its share of the images. An image takes its largest, or 1."""
        categories = [{a["category_id"] for a in d["annotations"]} for d in dataset_dicts]
        count = Counter(itertools.chain.from_iterable(categories))
        ratios = {c: repeat_thresh / (n / len(categories)) for c, n in count.items()}
        factors = {c: max(1.0, math.sqrt(r) if sqrt else r) for c, r in ratios.items()}
        return torch.tensor([max((factors[c] for c in cs), default=1.0) for cs in categories])

    def _epoch(self, g: torch.Generator) -> torch.Tensor:
        whole = self._factors.trunc()
        extra = torch.rand(len(whole), generator=g) < self._factors - whole
        return torch.arange(len(whole)).repeat_interleave((whole + extra).long())


class InferenceSampler(Sampler[int]):
    """Each index once: contiguous shards, the first `size % world_size` ranks get one more."""

    def __init__(self, size: int):
        assert size > 0, f"InferenceSampler(size=) needs a positive int, got {size}."
        self._local_indices = self._get_local_indices(size, comm.get_world_size(), comm.get_rank())

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        shard, longer = divmod(total_size, world_size)
        begin = rank * shard + min(rank, longer)
        return range(begin, begin + shard + (rank < longer))

    def __iter__(self) -> Iterator[int]:
        return iter(self._local_indices)

    def __len__(self) -> int:
        return len(self._local_indices)
