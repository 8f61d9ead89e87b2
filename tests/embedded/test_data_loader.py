"""Loaders and the order of what they yield; dataset dicts by name."""

import copy
import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, get_worker_info

from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import worker_init_reset_seed
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
from tests.embedded.data_parts import Numbers, Stream, identity, ids


def train_loader(dataset, **kwargs):
    kwargs = {"mapper": identity, "total_batch_size": 2, "aspect_ratio_grouping": False} | kwargs
    if not isinstance(dataset, IterableDataset):
        kwargs.setdefault("sampler", TrainingSampler(len(dataset), seed=3))
    return build_detection_train_loader(dataset, **kwargs)


# ------------------------------------------------------------------------------- train loader
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_order_does_not_depend_on_workers(workers):
    loader = train_loader(Numbers(10), total_batch_size=3, num_workers=workers)
    stream = list(itertools.islice(TrainingSampler(10, seed=3), 15))
    assert ids(loader, 5) == [stream[i : i + 3] for i in range(0, 15, 3)]


def test_aspect_ratio_grouping_in_the_loader():
    loader = train_loader(Numbers(10), aspect_ratio_grouping=True, total_batch_size=3)
    # the sampler's stream is 6 0 3 | 7 8 5 | 1 . 2 4 | . 8 5 . . . 7: recorded from Detectron2
    assert ids(loader, 5) == [[6, 0, 3], [7, 8, 5], [1, 2, 4], [9, 9, 3], [8, 5, 7]]
    assert ids(loader, 1) == [[0, 6, 6]]  # leftovers 0 6 of before, then the new 6


def test_grouping_with_workers_equals_detectron2():
    """Workers take turns by single images but hold chunks of a batch: not the sampler's order."""
    loader = train_loader(Numbers(10), aspect_ratio_grouping=True, num_workers=2)
    assert ids(loader, 5) == [[6, 3], [7, 8], [1, 5], [0, 9], [2, 4]]


def test_default_sampler_is_seeded_by_numpy():
    np.random.seed(5)
    order = ids(train_loader(Numbers(10), sampler=None), 5)
    np.random.seed(5)
    seed = np.random.randint(2**31)
    expected = list(itertools.islice(TrainingSampler(10, seed=seed), 10))
    assert list(itertools.chain(*order)) == expected


def test_lists_are_mapped_and_not_changed():
    items = [{"i": i, "x": [i]} for i in range(4)]
    before = copy.deepcopy(items)

    def mapper(d):
        d["x"].append(1)
        return d

    loader = train_loader(items, mapper=mapper)
    batch = next(iter(loader))
    assert batch[0]["x"] == [batch[0]["i"], 1] and items == before


def test_no_mapper():
    stream = list(itertools.islice(TrainingSampler(4, seed=3), 2))
    assert ids(train_loader(Numbers(4), mapper=None), 1) == [stream]


@pytest.mark.parametrize("grouping", [False, True])
def test_collate_fn(grouping):
    loader = train_loader(Numbers(9), collate_fn=lambda b: sum(d["i"] for d in b), aspect_ratio_grouping=grouping)
    plain = train_loader(Numbers(9), aspect_ratio_grouping=grouping)
    assert list(itertools.islice(loader, 3)) == [sum(b) for b in ids(plain, 3)]


@pytest.mark.parametrize("grouping", [False, True])
def test_iterable_dataset(grouping):
    loader = train_loader(Stream(), mapper=lambda d: None if d["i"] == 3 else d, aspect_ratio_grouping=grouping)
    expected = [[1, 2], [4, 5], [0, 6], [7, 8]] if grouping else [[0, 1], [2, 4], [5, 6], [7, 8]]
    assert ids(loader) == expected


@pytest.mark.parametrize(
    "build",
    [
        lambda s: build_batch_data_loader(Stream(), s, 2),
        lambda s: build_detection_train_loader(Stream(), mapper=None, sampler=s, total_batch_size=2),
        lambda s: build_detection_test_loader(Stream(), mapper=None, sampler=s),
    ],
)
def test_iterable_dataset_takes_no_sampler(build):
    with pytest.raises(AssertionError, match="sampler must be None"):
        build(InferenceSampler(3))


def test_batch_size_per_process(monkeypatch):
    monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: 2)
    build = build_batch_data_loader
    assert ids(build(Numbers(10), InferenceSampler(10), 4)) == [[i, i + 1] for i in range(0, 10, 2)]
    assert ids(build(Numbers(10), InferenceSampler(10), 0, single_gpu_batch_size=5), 1) == [list(range(5))]
    with pytest.raises(AssertionError, match="3.*2"):
        build(Numbers(10), InferenceSampler(10), 3)
    with pytest.raises(AssertionError, match="0"):
        build(Numbers(10), InferenceSampler(10), 0)
    with pytest.raises(ValueError, match="single_gpu_batch_size"):
        build(Numbers(10), InferenceSampler(10), 4, single_gpu_batch_size=5)


def test_drop_last():
    def batches(**kwargs):
        return ids(build_batch_data_loader(Numbers(5), InferenceSampler(5), 2, **kwargs))

    assert batches() == [[0, 1], [2, 3]]
    assert batches(drop_last=False) == [[0, 1], [2, 3], [4]]
    with pytest.raises(AssertionError, match="drop"):
        batches(drop_last=False, aspect_ratio_grouping=True)


def worker_randomness(_):
    info = get_worker_info()
    return {"i": (info.id, info.seed, np.random.rand(), random.random(), torch.rand(1).item())}


@pytest.mark.parametrize("seed", [None, 11])
def test_workers_seed_numpy_and_random(seed):
    """info.seed is torch's own seed of the worker: base + id."""
    torch.manual_seed(0)
    loader = train_loader(Numbers(4), mapper=worker_randomness, num_workers=2, seed=seed)
    after = torch.rand(1).item()
    values = ids(loader, 2)
    for rank, ((id_, worker_seed, a, b, c), _) in enumerate(values):
        expected = worker_seed % 2**31 + rank
        assert id_ == rank
        assert a == np.random.RandomState(expected % 2**32).rand()
        assert b == random.Random(expected).random()
        assert c == torch.rand(1, generator=torch.Generator().manual_seed(expected)).item()
    torch.manual_seed(0)
    assert torch.rand(1).item() == after
    if seed is not None:  # torch's global RNG plays no part
        torch.manual_seed(1)
        again = train_loader(Numbers(4), mapper=worker_randomness, num_workers=2, seed=seed)
        assert ids(again, 2) == values


def test_worker_init_reset_seed():
    state = np.random.get_state(), random.getstate(), torch.get_rng_state()
    torch.manual_seed(2**31 + 5)
    worker_init_reset_seed(3)
    assert torch.initial_seed() == 8  # 2**31 + 5 mod 2**31, plus 3
    assert np.random.rand() == np.random.RandomState(8).rand()
    np.random.set_state(state[0])
    random.setstate(state[1])
    torch.set_rng_state(state[2])


# -------------------------------------------------------------------------------- test loader
@pytest.mark.parametrize("workers", [0, 2])
def test_test_loader(workers):
    loader = build_detection_test_loader(Numbers(7), mapper=identity, batch_size=3, num_workers=workers)
    assert len(loader) == 3 and ids(loader) == [[0, 1, 2], [3, 4, 5], [6]]


def test_test_loader_options():
    build = build_detection_test_loader
    assert ids(build(Numbers(3), mapper=identity)) == [[0], [1], [2]]
    items = [{"i": 5}, {"i": 6}]
    assert ids(build(items, mapper=None, batch_size=2)) == [[5, 6]]
    assert ids(build(Numbers(5), mapper=identity, sampler=[3, 1], batch_size=2)) == [[3, 1]]
    assert ids(build(Stream(), mapper=identity, batch_size=4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(build(Numbers(3), mapper=identity, collate_fn=len)) == [1, 1, 1]


# ------------------------------------------------------------------- dataset dicts, from cfg
def annos(*crowd):
    return [{"iscrowd": c, "category_id": i, "bbox": [0, 0, 1, 1]} for i, c in enumerate(crowd)]


def dicts():
    rows = [annos(0), annos(1, 1), [], annos(1, 0), [{"category_id": 0}]]
    return [{"i": i, "width": 4, "height": 3, "annotations": a} for i, a in enumerate(rows)]


@pytest.fixture
def name():
    name = "t_data_loader"
    DatasetCatalog.register(name, dicts)
    MetadataCatalog.get(name).thing_classes = ["a", "b"]
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_images_with_crowds_only_are_dropped(name):
    assert [d["i"] for d in get_detection_dataset_dicts(name)] == [0, 3, 4]
    assert len(get_detection_dataset_dicts([name, name], filter_empty=False)) == 10


def test_dataset_dicts_errors(name):
    def register(other, func, classes=None):
        DatasetCatalog.register(other, func)
        if classes:
            MetadataCatalog.get(other).thing_classes = classes

    try:
        register("t_dl_empty", list)
        register("t_dl_crowd", lambda: dicts()[1:3])
        register("t_dl_other", dicts, ["a", "c"])
        with pytest.raises(AssertionError):
            get_detection_dataset_dicts([])
        with pytest.raises(AssertionError, match="t_dl_empty.*empty"):
            get_detection_dataset_dicts([name, "t_dl_empty"])
        with pytest.raises(AssertionError, match="t_dl_crowd"):
            get_detection_dataset_dicts("t_dl_crowd")
        with pytest.raises(ValueError, match="thing_classes"):
            get_detection_dataset_dicts([name, "t_dl_other"])
        both = get_detection_dataset_dicts([name, "t_dl_other"], check_consistency=False)
        assert [d["i"] for d in both] == [0, 3, 4] * 2
    finally:
        for other in ("t_dl_empty", "t_dl_crowd", "t_dl_other"):
            DatasetCatalog.remove(other)


def test_category_ids_must_be_classes(name):
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).thing_classes = ["a"]  # but there is a category_id 1
    with pytest.raises(AssertionError, match="category.*1"):
        get_detection_dataset_dicts(name)


def test_torch_datasets_are_returned_themselves():
    whole = Numbers(3)
    DatasetCatalog.register("t_dl_torch", lambda: whole)
    assert get_detection_dataset_dicts("t_dl_torch") is whole
    assert len(get_detection_dataset_dicts(["t_dl_torch", "t_dl_torch"])) == 6
    DatasetCatalog.remove("t_dl_torch")


@pytest.fixture
def cfg(name):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.SOLVER.IMS_PER_BATCH = (name,), 2
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def test_train_loader_from_cfg_has_a_fixed_seed(cfg):
    """SEED -1 is the sampler's seed: NumPy's global RNG does not matter."""
    kept = [0, 3, 4]
    expected = [kept[i] for i in itertools.islice(TrainingSampler(3, seed=-1), 8)]
    for seed in (0, 1):
        np.random.seed(seed)
        loader = build_detection_train_loader(cfg, mapper=identity)
        assert isinstance(loader, AspectRatioGroupedDataset)
        assert list(itertools.chain(*ids(loader, 4))) == expected
    cfg.SEED = 7
    loader = build_detection_train_loader(cfg, mapper=identity)
    expected = [kept[i] for i in itertools.islice(TrainingSampler(3, seed=7), 8)]
    assert list(itertools.chain(*ids(loader, 4))) == expected


def test_train_loader_from_cfg_options(cfg):
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    loader = build_detection_train_loader(cfg, mapper=identity)
    assert sorted(itertools.chain(*ids(loader, 5))) == sorted([*range(5)] * 2)
    items = [{"i": i} for i in range(4)]
    loader = build_detection_train_loader(
        cfg, mapper=identity, dataset=items, sampler=InferenceSampler(4), total_batch_size=4
    )
    assert ids(loader) == [[0, 1, 2, 3]]
    loader = build_detection_train_loader(cfg, mapper=identity, dataset=Stream())
    assert ids(loader, 2) == [[0, 1], [2, 3]]


def test_repeat_factor_sampler_from_cfg(cfg):
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD, cfg.SEED = 0.9, 4
    loader = build_detection_train_loader(cfg, mapper=identity)
    # of the kept images 0 3 4 all have category 0; image 3 has category 1: f = 1/3
    factors = torch.tensor([1.0, (0.9 * 3) ** 0.5, 1.0])
    stream = itertools.islice(RepeatFactorTrainingSampler(factors, seed=4), 8)
    assert list(itertools.chain(*ids(loader, 4))) == [[0, 3, 4][i] for i in stream]
    cfg.DATALOADER.REPEAT_SQRT = False
    loader = build_detection_train_loader(cfg, mapper=identity)
    stream = itertools.islice(RepeatFactorTrainingSampler(torch.tensor([1.0, 2.7, 1.0]), seed=4), 8)
    assert list(itertools.chain(*ids(loader, 4))) == [[0, 3, 4][i] for i in stream]


def test_unknown_sampler(cfg):
    cfg.DATALOADER.SAMPLER_TRAIN = "NoSampler"
    with pytest.raises(ValueError, match="NoSampler|Unknown training sampler"):
        build_detection_train_loader(cfg, mapper=identity)


def test_test_loader_from_cfg_keeps_all_in_order(cfg, name):
    loader = build_detection_test_loader(cfg, name, mapper=identity)
    assert ids(loader) == [[0], [1], [2], [3], [4]]
    loader = build_detection_test_loader(cfg, [name], mapper=identity, batch_size=4)
    assert ids(loader) == [[0, 1, 2, 3], [4]]


@pytest.mark.embedded_only
@pytest.mark.parametrize("kwargs", [{"min_keypoints": 1}, {"proposal_files": ["a.pkl"]}])
def test_what_is_left_out_is_refused(name, kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        get_detection_dataset_dicts(name, **kwargs)
