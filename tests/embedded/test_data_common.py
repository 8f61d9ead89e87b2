"""DatasetFromList, MapDataset, ToIterableDataset and the aspect ratio groups."""

import pickle
import random

import numpy as np
import pytest
from torch.utils.data import IterableDataset

from detectron2.data import DatasetFromList, MapDataset, ToIterableDataset
from detectron2.data.common import AspectRatioGroupedDataset, set_default_dataset_from_list_serialize_method
from detectron2.data.samplers import InferenceSampler
from tests.embedded.data_parts import Numbers, Stream, ids


@pytest.mark.parametrize("serialize", [True, False])
def test_dataset_from_list_gives_fresh_items(serialize):
    items = [{"a": [1]}, {"b": "x" * 1000}, {"c": np.arange(3)}]
    dataset = DatasetFromList(items, serialize=serialize)
    assert len(dataset) == 3 and len(list(dataset)) == 3
    assert dataset[0] == items[0] and dataset[0]["a"] is not items[0]["a"]
    assert dataset[1] == items[1]
    np.testing.assert_array_equal(dataset[2]["c"], np.arange(3))
    again = pickle.loads(pickle.dumps(dataset))  # as a spawned worker gets it
    assert again[1] == items[1]


def test_dataset_from_list_without_copy():
    items = [{"a": 1}]
    assert DatasetFromList(items, copy=False, serialize=False)[0] is items[0]


def test_serialize_methods():
    class Stored(list):
        pass

    items = [{"a": 1}]
    assert DatasetFromList(items, serialize=Stored)[0] is items[0]
    with set_default_dataset_from_list_serialize_method(Stored):
        assert DatasetFromList(items)[0] is items[0]
    assert DatasetFromList(items)[0] is not items[0]


def test_map_retries_another_index(caplog):
    calls = []

    def only_two(x):
        calls.append(x)
        return x if x == 2 else None

    dataset = MapDataset(list(range(3)), only_two)
    assert [dataset[i] for i in (0, 1, 2)] == [2, 2, 2]
    assert calls == [0, 1, 2, 1, 2, 2]  # recorded from Detectron2


def test_map_retry_order():
    dataset = MapDataset(list(range(100)), lambda x: x if x >= 90 else None)
    rng, candidates = random.Random(42), list(range(1, 100))
    while (choice := rng.choice(candidates)) < 90:  # each failure leaves the candidates
        candidates.remove(choice)
    assert dataset[0] == choice and len(candidates) < 99


@pytest.mark.parametrize("failures", [2, 3, 4])
def test_map_warns_from_the_third_failure(caplog, failures):
    results = iter([None] * failures + [1])
    dataset = MapDataset(list(range(9)), lambda x: next(results))
    with caplog.at_level("WARNING"):
        assert dataset[0] == 1
    assert sum(r.levelname == "WARNING" for r in caplog.records) == failures - 2


def test_an_index_that_works_again_is_a_candidate_again():
    results = iter([None, "b", "a", None, "a"])
    dataset = MapDataset(["a", "b"], lambda x: next(results))
    # 0 fails, so 1; then 0 works; then 1 fails, and only 0 is left
    assert [dataset[0], dataset[0], dataset[1]] == ["b", "a", "a"]


@pytest.mark.embedded_only
def test_map_to_nothing_is_an_error():
    with pytest.raises(ValueError, match="All 3 items"):
        MapDataset(list(range(3)), lambda x: None)[0]


def test_map_of_an_iterable_leaves_out_none():
    mapped = MapDataset(Stream(), lambda d: None if d["i"] % 2 else d["i"])
    assert isinstance(mapped, IterableDataset) and list(mapped) == [0, 2, 4, 6, 8]


def test_map_is_picklable_with_a_lambda():
    dataset = pickle.loads(pickle.dumps(MapDataset([1, 2], lambda x: x + 1)))
    assert [dataset[0], dataset[1], len(dataset)] == [2, 3, 2]
    stream = pickle.loads(pickle.dumps(MapDataset(Stream(), lambda d: d["i"])))
    assert list(stream) == list(range(10))


def test_to_iterable():
    dataset = ToIterableDataset(list("abcd"), InferenceSampler(3))
    assert list(dataset) == ["a", "b", "c"] and len(dataset) == 3
    with pytest.raises(AssertionError):
        ToIterableDataset(Stream(), InferenceSampler(3))
    with pytest.raises(AssertionError):
        ToIterableDataset(Numbers(3), [0, 1])


def test_aspect_ratio_groups_keep_leftovers():
    dataset = AspectRatioGroupedDataset([Numbers(9)[i] for i in range(9)], 2)
    # wide: 0 3 6; not wide: 1 2 4 5 7 8
    assert ids(dataset) == [[1, 2], [0, 3], [4, 5], [7, 8]]
    assert [[d["i"] for d in b] for b in dataset._buckets] == [[6], []]
    assert ids(dataset, 1) == [[6, 0]]  # the 6 of the last pass comes first
    assert ids(dataset, 2) == [[1, 2], [0, 3]]  # and leaves, though the pass was cut short


def test_square_images_are_not_wide():
    square = {"i": 0, "width": 5, "height": 5}
    dataset = AspectRatioGroupedDataset([square, Numbers(2)[1], Numbers(1)[0]], 2)
    assert ids(dataset) == [[0, 1]]
