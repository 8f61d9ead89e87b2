"""Dataset dicts by name, and the loaders that turn them into batches."""

import gc
import itertools
import logging
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tabulate import tabulate
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler

from detectron2.config import configurable
from detectron2.utils.comm import get_world_size
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import log_first_n

from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from .detection_utils import check_metadata_consistency
from .samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler


def print_instances_class_histogram(dataset_dicts: list[dict], class_names: Sequence[str]) -> None:
    """Log a table of the instances per class, crowds left out."""
    annos = itertools.chain.from_iterable(d["annotations"] for d in dataset_dicts)
    counts = Counter(a["category_id"] for a in annos if not a.get("iscrowd", 0))
    wrong = [c for c in counts if not 0 <= c < len(class_names)]
    assert not wrong, f"Got category ids {wrong}, but there are {len(class_names)} classes from 0."
    cells = [x for i, name in enumerate(class_names) for x in (name[:13], counts[i])] + ["total", sum(counts.values())]
    rows = [cells[i : i + 6] for i in range(0, len(cells), 6)]
    table = tabulate(rows, ["category", "#instances"] * 3, tablefmt="pipe", stralign="center", numalign="left")
    log_first_n(logging.INFO, f"Instances of each category:\n{table}", key="message")


def get_detection_dataset_dicts(
    names: str | Sequence[str], filter_empty=True, min_keypoints=0, proposal_files=None, check_consistency=True
) -> list[dict] | Dataset:
    """Load registered datasets and concatenate them. Keypoints and proposals are not supported.
    filter_empty drops images without annotations, or with crowds only; check_consistency compares `thing_classes`."""
    names = [names] if isinstance(names, str) else list(names)
    assert names, "No dataset to load: set DATASETS.TRAIN / DATASETS.TEST (or names=)."
    if min_keypoints or proposal_files:
        raise ValueError(f"Keypoints and proposals are not supported: got {min_keypoints=}, {proposal_files=}.")
    datasets = [DatasetCatalog.get(name) for name in names]
    if isinstance(datasets[0], Dataset):
        return ConcatDataset(datasets) if len(datasets) > 1 else datasets[0]
    for name, dicts in zip(names, datasets):
        assert len(dicts), f"Dataset {name!r} is empty."
    dicts = list(itertools.chain.from_iterable(datasets))
    if "annotations" in dicts[0]:
        if filter_empty:
            total = len(dicts)
            dicts = [d for d in dicts if any(not a.get("iscrowd", 0) for a in d["annotations"])]
            logging.getLogger(__name__).info(f"{len(dicts)} of {total} images have usable annotations.")
        class_names = MetadataCatalog.get(names[0]).get("thing_classes")
        if check_consistency and class_names is not None:
            check_metadata_consistency("thing_classes", names)
            print_instances_class_histogram(dicts, class_names)
    assert dicts, f"No image with usable annotations in {', '.join(names)}."
    return dicts


def trivial_batch_collator(batch: list) -> list:
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """torch gives each worker its own seed; pass it on to NumPy and `random`. What a forked worker has
    inherited is left out of garbage collection, which would copy all its pages."""
    gc.freeze()
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)


def build_batch_data_loader(
    dataset,
    sampler: Sampler | None,
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int = 2,
    seed: int | None = None,
    **kwargs,
):
    """Batches of `total_batch_size / world size` items, as lists unless `collate_fn` is given.
    sampler: of a map-style dataset; None for an IterableDataset.
    aspect_ratio_grouping: batches of only wide or only high images; needs `drop_last` and "width" and "height".
    single_gpu_batch_size: the batch per process; `total_batch_size` is 0 then.
    seed: of the workers; None draws it from torch's global RNG. kwargs: pin_memory and others of the DataLoader."""
    batch_size, world_size = single_gpu_batch_size, get_world_size()
    if not batch_size:
        batch_size, rest = divmod(total_batch_size, world_size)
        assert batch_size > 0 and rest == 0, f"Total batch size {total_batch_size} must be a multiple of {world_size}."
    elif total_batch_size:
        raise ValueError(f"Got {total_batch_size=} and {single_gpu_batch_size=}: set one of them to 0.")
    if isinstance(dataset, IterableDataset):
        assert sampler is None, "sampler must be None if the dataset is an IterableDataset."
    else:
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)
    kwargs.update(
        num_workers=num_workers,
        prefetch_factor=prefetch_factor if num_workers > 0 else None,
        worker_init_fn=worker_init_reset_seed,
        generator=None if seed is None else torch.Generator().manual_seed(seed),
    )
    if not aspect_ratio_grouping:
        collate_fn = collate_fn or trivial_batch_collator
        return DataLoader(dataset, batch_size, drop_last=drop_last, collate_fn=collate_fn, **kwargs)
    assert drop_last, "Aspect ratio grouping drops incomplete batches: it needs drop_last=True."
    single_items = DataLoader(dataset, 1, collate_fn=operator.itemgetter(0), **kwargs)
    grouped = AspectRatioGroupedDataset(single_items, batch_size)
    return grouped if collate_fn is None else MapDataset(grouped, collate_fn)


def _train_loader_from_config(cfg, mapper=None, *, dataset=None, sampler=None) -> dict[str, Any]:
    """The sampler's seed is SEED, a fixed one also at its default of -1."""
    loader, name = cfg.DATALOADER, cfg.DATALOADER.SAMPLER_TRAIN
    if dataset is None:
        dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, loader.FILTER_EMPTY_ANNOTATIONS)
    if sampler is None and not isinstance(dataset, IterableDataset):
        if name == "TrainingSampler":
            sampler = TrainingSampler(len(dataset), seed=cfg.SEED)
        elif name == "RepeatFactorTrainingSampler":
            repeat_factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
            factors = repeat_factors(dataset, loader.REPEAT_THRESHOLD, sqrt=loader.REPEAT_SQRT)
            sampler = RepeatFactorTrainingSampler(factors, seed=cfg.SEED)
        else:
            raise ValueError(f"Unknown SAMPLER_TRAIN {name!r}: use TrainingSampler or RepeatFactorTrainingSampler.")
    return {
        "dataset": dataset,
        "sampler": sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": loader.ASPECT_RATIO_GROUPING,
        "num_workers": loader.NUM_WORKERS,
    }


def _mapped(dataset, mapper: Callable[[dict], Any] | None):
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset, *, mapper, sampler=None, total_batch_size: int, aspect_ratio_grouping: bool = True, **kwargs
):
    """An endless iterable of batches, or a finite one of a finite IterableDataset.
    dataset: list of dicts, map-style Dataset or IterableDataset. mapper: from an item to what the model takes, or None.
    sampler: default `TrainingSampler` with a seed from NumPy's global RNG. total_batch_size: of all processes together.
    kwargs: `num_workers`, `collate_fn` and the others of `build_batch_data_loader`."""
    dataset = _mapped(dataset, mapper)
    if sampler is None and not isinstance(dataset, IterableDataset):
        sampler = TrainingSampler(len(dataset))
    kwargs["aspect_ratio_grouping"] = aspect_ratio_grouping
    return build_batch_data_loader(dataset, sampler, total_batch_size, **kwargs)


def _test_loader_from_config(cfg, dataset_name, mapper=None) -> dict[str, Any]:
    return {
        "dataset": get_detection_dataset_dicts(dataset_name, filter_empty=False),
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset, *, mapper, sampler=None, batch_size: int = 1, num_workers: int = 0, collate_fn: Callable | None = None
) -> DataLoader:
    """Each item once, in order; the last batch may be short. Default sampler: InferenceSampler."""
    dataset = _mapped(dataset, mapper)
    if isinstance(dataset, IterableDataset):
        assert sampler is None, "sampler must be None if the dataset is an IterableDataset."
    elif sampler is None:
        sampler = InferenceSampler(len(dataset))
    collate_fn = collate_fn or trivial_batch_collator
    return DataLoader(dataset, batch_size, sampler=sampler, num_workers=num_workers, collate_fn=collate_fn)
