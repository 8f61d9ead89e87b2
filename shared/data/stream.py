"""Training batches as a function of the run's seed and the number of the batch, so that a resumed run gets exactly
those that the uninterrupted one would.

Which samples make up a batch follows from indices alone: skipping to a batch replays the sampler and reads no image.
Augmentation is seeded for every sample, see `shared.randomness`.
"""

import gc
import itertools
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from shared.errors import UserError
from shared.randomness import Use, generators_kept, seed_generators

Draw = tuple[int, int]  # position in the sampler's stream, index of the data set


class BatchPlan(Sampler[tuple[int, list[Draw]]]):
    """(number of the batch, its draws), from batch `start` on.

    With `wide`, a batch has images that are wider than high or images that are not, as in Detectron2: images wait, in
    order, until enough of their kind have come.
    """

    def __init__(self, sampler: Sampler[int], batch_size: int, wide: Callable[[int], bool] | None, start: int = 0):
        self.sampler, self.batch_size, self.wide, self.start = sampler, batch_size, wide, start

    def __iter__(self) -> Iterator[tuple[int, list[Draw]]]:
        waiting: tuple[list[Draw], list[Draw]] = ([], [])
        number = 0
        for draw, index in enumerate(self.sampler):
            batch = waiting[0 if self.wide is None else int(self.wide(index))]
            batch.append((draw, index))
            if len(batch) == self.batch_size:
                if number >= self.start:
                    yield number, list(batch)
                batch.clear()
                number += 1


class _Batches(Dataset):
    """Whole batches by (number, draws)."""

    def __init__(self, dataset, mapper: Callable | None, collate_fn: Callable | None, seed: int):
        self.dataset, self.mapper, self.collate_fn = dataset, mapper, collate_fn
        self.seed, self.rank, self.world_size = seed, comm.get_rank(), comm.get_world_size()

    def __getitem__(self, batch: tuple[int, list[Draw]]) -> Any:
        number, draws = batch
        with generators_kept():  # without workers they are those of the model
            items = [self._sample(*draw) for draw in draws]
            if self.collate_fn is None:
                return items
            seed_generators(self.seed, self.rank, Use.BATCH, number)
            return self.collate_fn(items)

    def _sample(self, draw: int, index: int) -> Any:
        """The mapper's output; where that is None another, random item takes the place, as in Detectron2."""
        useless: set[int] = set()
        position = draw * self.world_size + self.rank  # in the draws of all processes: their number changes nothing
        for attempt in itertools.count():
            seed_generators(self.seed, 0, Use.SAMPLE, position, attempt)
            if useless:
                index = random.choice([i for i in range(len(self.dataset)) if i not in useless])
            item = self.dataset[index]
            if self.mapper is not None:
                item = self.mapper(item)
            if item is not None:
                return item
            useless.add(index)
            if len(useless) == len(self.dataset):
                raise UserError(f"The mapper of the training data returned None for all {len(self.dataset)} items.")


class TrainStream:
    """What `build_detection_train_loader` makes for a map-style data set, but resumable: iterate over it for batches.

    Differs from it: the number of worker processes changes neither batches nor augmentation.
    """

    def __init__(
        self,
        dataset: list | Dataset,
        *,
        mapper: Callable | None,
        seed: int,
        total_batch_size: int,
        single_gpu_batch_size: int | None = None,
        sampler: Sampler[int] | None = None,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
        collate_fn: Callable | None = None,
        **kwargs,
    ):
        """
        Args:
            dataset: records, or a data set of them; for grouping with their "width" and "height".
            seed: the run's, equal in all processes.
            total_batch_size: of all processes together; single_gpu_batch_size, with 0 there: of each.
            sampler: this process's indices, the same ones at every iteration over it. Default: TrainingSampler.
            kwargs: of torch's DataLoader.
        Raises:
            UserError: a batch that the processes cannot share; grouping of records without a size.
        """
        world_size = comm.get_world_size()
        batch_size, rest = divmod(total_batch_size, world_size)
        if single_gpu_batch_size and not total_batch_size:
            batch_size = single_gpu_batch_size
        if batch_size == 0 or rest:
            raise UserError(f"The total batch size {total_batch_size} must be a multiple of {world_size} processes.")
        self.start = 0
        wide = _width_exceeds_height(dataset) if aspect_ratio_grouping else None
        sampler = TrainingSampler(len(dataset), seed=seed) if sampler is None else sampler
        self._plan = lambda: BatchPlan(sampler, batch_size, wide, self.start)
        if isinstance(dataset, list):
            dataset = DatasetFromList(dataset, copy=False)  # serialized: worker processes share its memory
        self._batches = _Batches(dataset, mapper, collate_fn, seed)
        self._loader_arguments = {**kwargs, "num_workers": num_workers}

    def __iter__(self) -> Iterator[Any]:
        """Batches from `start` on."""
        loader = DataLoader(
            self._batches,
            sampler=self._plan(),
            batch_size=None,  # an item is a batch
            collate_fn=_unchanged,
            worker_init_fn=_begin_worker,
            generator=torch.Generator(),  # and not the global one, which is the model's
            **self._loader_arguments,
        )
        return iter(loader)


def stream_of_cfg(cfg: CfgNode, mapper: Callable, seed: int) -> TrainStream | None:
    """The stream of a config's DATASETS.TRAIN and DATALOADER; None for what only Detectron2's own loader can do: a data
    set that is a stream itself, another sampler, keypoints, precomputed proposals."""
    node = cfg.DATALOADER
    if cfg.MODEL.KEYPOINT_ON or cfg.MODEL.LOAD_PROPOSALS:
        return None
    dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=node.FILTER_EMPTY_ANNOTATIONS)
    if isinstance(dataset, IterableDataset):
        return None
    if node.SAMPLER_TRAIN == RepeatFactorTrainingSampler.__name__:
        factors_of = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
        factors = factors_of(dataset, node.REPEAT_THRESHOLD, sqrt=node.REPEAT_SQRT)
        sampler = RepeatFactorTrainingSampler(factors, seed=seed)
    elif node.SAMPLER_TRAIN == TrainingSampler.__name__:
        sampler = None
    else:
        return None
    return TrainStream(
        dataset,
        mapper=mapper,
        seed=seed,
        sampler=sampler,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=node.ASPECT_RATIO_GROUPING,
        num_workers=node.NUM_WORKERS,
    )


def _unchanged(batch: Any) -> Any:
    return batch


def _width_exceeds_height(dataset: list | Dataset) -> Callable[[int], bool]:
    """By index. Of a data set that is no list, which may read files, when it is asked."""

    def is_wide(index: int) -> bool:
        record = dataset[index]
        try:
            return bool(record["width"] > record["height"])
        except (KeyError, TypeError) as e:
            raise UserError(
                f"Grouping by aspect ratio needs the width and height of every record, and record {index} of the "
                f"training data has none: set dataloader.train.aspect_ratio_grouping=false "
                f"(DATALOADER.ASPECT_RATIO_GROUPING)."
            ) from e

    return list(map(is_wide, range(len(dataset)))).__getitem__ if isinstance(dataset, list) else cache(is_wide)


def _begin_worker(worker_id: int) -> None:
    """A stop signal to all processes of a job, or a terminal's Ctrl-C, is for the training process: it still needs this
    worker's batches, and ends the worker itself."""
    gc.freeze()  # what was inherited: collecting it would copy its pages
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGHUP])
        threading.Thread(target=_end_when_parent_says, args=(os.getppid(),), daemon=True).start()


def _end_when_parent_says(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM, signal.SIGHUP]).si_pid != parent:
        pass
    os._exit(0)
