"""Dataset dicts by name, and the loaders that turn them into batches."""

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


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict]) -> list[dict]:
    """Keep the images that have an annotation without `iscrowd`."""
    kept = [d for d in dataset_dicts if any(not a.get("iscrowd", 0) for a in d["annotations"])]
    removed = len(dataset_dicts) - len(kept)
    logger = logging.getLogger(__name__)
    logger.info(f"Removed {removed} images without usable annotations, {len(kept)} are left.")
    return kept


def print_instances_class_histogram(dataset_dicts: list[dict], class_names: Sequence[str]) -> None:
    """Log a table of the instances per class, crowds left out."""
    annos = itertools.chain.from_iterable(d["annotations"] for d in dataset_dicts)
    counts = Counter(a["category_id"] for a in annos if not a.get("iscrowd", 0))
    wrong = [c for c in counts if not 0 <= c < len(class_names)]
    assert not wrong, f"Got category ids {wrong}, but there are {len(class_names)} classes from 0."
    cells = [x for i, name in enumerate(class_names) for x in (name[:13], counts[i])]
    cells += ["total", sum(counts.values())]
    rows = [cells[i : i + 6] for i in range(0, len(cells), 6)]
    headers = ["category", "#instances"] * min(3, len(cells) // 2)
    table = tabulate(rows, headers, tablefmt="pipe", stralign="center", numalign="left")
    log_first_n(logging.INFO, f"Instances of each category:\n{table}", key="message")


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> list[dict] | Dataset:
    """Load registered datasets and concatenate them.

    Args:
        filter_empty: drop images without annotations, or with crowds only.
        min_keypoints, proposal_files: only their defaults are supported.
        check_consistency: the datasets must agree on `thing_classes`.
    """
    names = [names] if isinstance(names, str) else list(names)
    assert names, "No dataset to load: set DATASETS.TRAIN / DATASETS.TEST (or names=)."
    if min_keypoints or proposal_files:
        asked = f"min_keypoints={min_keypoints}, proposal_files={proposal_files}"
        raise ValueError(f"Keypoints and precomputed proposals are not supported: got {asked}.")
    datasets = [DatasetCatalog.get(name) for name in names]
    if isinstance(datasets[0], Dataset):
        return ConcatDataset(datasets) if len(datasets) > 1 else datasets[0]
    for name, dicts in zip(names, datasets):
        assert len(dicts), f"Dataset {name!r} is empty."
    dicts = list(itertools.chain.from_iterable(datasets))
    if "annotations" in dicts[0]:
        if filter_empty:
            dicts = filter_images_with_only_crowd_annotations(dicts)
        class_names = MetadataCatalog.get(names[0]).get("thing_classes")
        if check_consistency and class_names is not None:
            check_metadata_consistency("thing_classes", names)
            print_instances_class_histogram(dicts, class_names)
    assert dicts, f"No image with usable annotations in {', '.join(names)}."
    return dicts


def trivial_batch_collator(batch: list) -> list:
    """A batch is the list of its items."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """torch gives each worker its own seed; pass it on to NumPy and `random`."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)


def _local_batch_size(total: int, single_gpu: int | None) -> int:
    if single_gpu:
        if total:
            given = f"total_batch_size={total} and single_gpu_batch_size={single_gpu}"
            raise ValueError(f"Got {given}: set one of them to 0.")
        return single_gpu
    world_size = get_world_size()
    assert total > 0 and total % world_size == 0, (
        f"Total batch size ({total}) must be a positive multiple of the {world_size} processes."
    )
    return total // world_size


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
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs,
):
    """Batches of `total_batch_size / world size` items, as lists unless `collate_fn` is given.

    Args:
        sampler: of a map-style dataset; None for an IterableDataset.
        aspect_ratio_grouping: batches of only wide or only high images; needs `drop_last` and
            items with "width" and "height".
        single_gpu_batch_size: the batch per process, instead of `total_batch_size`.
        seed: of the workers; None draws it from torch's global RNG.
        kwargs: go to the DataLoader.
    """
    batch_size = _local_batch_size(total_batch_size, single_gpu_batch_size)
    if isinstance(dataset, IterableDataset):
        assert sampler is None, "sampler must be None if the dataset is an IterableDataset."
    else:
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)
    kwargs.update(
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch_factor if num_workers > 0 else None,
        persistent_workers=persistent_workers,
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


def _train_sampler_from_config(cfg, dataset) -> Sampler | None:
    """The seed is SEED, a fixed one also at its default of -1."""
    if isinstance(dataset, IterableDataset):
        return None
    name, loader = cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset), seed=cfg.SEED)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, loader.REPEAT_THRESHOLD, sqrt=loader.REPEAT_SQRT
        )
        return RepeatFactorTrainingSampler(factors, seed=cfg.SEED)
    known = "TrainingSampler, RepeatFactorTrainingSampler"
    raise ValueError(f"Unknown DATALOADER.SAMPLER_TRAIN={name!r}: use one of {known}.")


def _train_loader_from_config(cfg, mapper=None, *, dataset=None, sampler=None) -> dict[str, Any]:
    if dataset is None:
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
    return {
        "dataset": dataset,
        "sampler": _train_sampler_from_config(cfg, dataset) if sampler is None else sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


def _mapped(dataset, mapper: Callable[[dict], Any] | None):
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable | None = None,
    **kwargs,
):
    """An endless iterable of batches, or a finite one of a finite IterableDataset.

    Args:
        dataset: list of dicts, map-style Dataset or IterableDataset.
        mapper: from an item to what the model takes; None leaves the items as they are.
        sampler: default `TrainingSampler` with a seed from NumPy's global RNG.
        total_batch_size: of all processes together.
        kwargs: see `build_batch_data_loader`.
    """
    dataset = _mapped(dataset, mapper)
    if sampler is None and not isinstance(dataset, IterableDataset):
        sampler = TrainingSampler(len(dataset))
    kwargs.update(num_workers=num_workers, collate_fn=collate_fn)
    kwargs.update(aspect_ratio_grouping=aspect_ratio_grouping)
    return build_batch_data_loader(dataset, sampler, total_batch_size, **kwargs)


def _test_loader_from_config(cfg, dataset_name, mapper=None) -> dict[str, Any]:
    proposal_files = cfg.DATASETS.PROPOSAL_FILES_TEST if cfg.MODEL.LOAD_PROPOSALS else None
    return {
        "dataset": get_detection_dataset_dicts(dataset_name, filter_empty=False, proposal_files=proposal_files),
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable | None = None,
) -> DataLoader:
    """Each item once, in order; the last batch may be short. Default sampler: InferenceSampler."""
    dataset = _mapped(dataset, mapper)
    if isinstance(dataset, IterableDataset):
        assert sampler is None, "sampler must be None if the dataset is an IterableDataset."
    elif sampler is None:
        sampler = InferenceSampler(len(dataset))
    collate_fn = collate_fn or trivial_batch_collator
    return DataLoader(dataset, batch_size, sampler=sampler, num_workers=num_workers, collate_fn=collate_fn)
