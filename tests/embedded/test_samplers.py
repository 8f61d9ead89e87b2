"""The index streams; the seeded ones are recorded from Detectron2."""

from itertools import islice

import numpy as np
import pytest
import torch

from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm


@pytest.mark.parametrize("seed,expected", [(-1, [1, 3, 4, 2, 0, 0, 1, 3, 2, 4]), (7, [0, 1, 3, 2, 4, 3, 4, 1, 2, 0])])
def test_training_sampler(seed, expected):
    sampler = TrainingSampler(5, seed=seed)
    assert list(islice(sampler, 10)) == expected
    assert list(islice(sampler, 10)) == expected  # an iteration starts over


def test_training_sampler_without_shuffle():
    assert list(islice(TrainingSampler(3, shuffle=False), 7)) == [0, 1, 2, 0, 1, 2, 0]


def test_default_seed_is_one_draw_of_numpys_global_rng():
    np.random.seed(3)
    first, after = list(islice(TrainingSampler(50), 50)), np.random.rand()
    np.random.seed(3)
    assert first == list(islice(TrainingSampler(50, seed=np.random.randint(2**31)), 50))
    assert np.random.rand() == after
    np.random.seed(3)
    TrainingSampler(50, seed=1)  # a given seed draws nothing
    np.random.seed(3)
    unused = np.random.rand()
    np.random.seed(3)
    TrainingSampler(50, seed=1)
    assert np.random.rand() == unused


@pytest.mark.parametrize("make", [TrainingSampler, lambda n, **k: RepeatFactorTrainingSampler(torch.ones(n), **k)])
def test_ranks_share_one_stream(monkeypatch, make):
    stream = list(islice(make(5, seed=7), 12))
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(list(islice(make(5, seed=7), 4)))
    assert [list(p) for p in zip(*parts)] == [stream[i : i + 3] for i in range(0, 12, 3)]


def test_training_sampler_size():
    with pytest.raises(TypeError, match="2.5|float"):
        TrainingSampler(2.5)
    with pytest.raises(ValueError, match="positive int.*0"):
        TrainingSampler(0)


def test_repeat_factor_sampler():
    factors = torch.tensor([1, 1.5, 2])
    sampler = RepeatFactorTrainingSampler(factors, seed=7)
    assert list(islice(sampler, 10)) == [1, 2, 1, 0, 2, 2, 2, 1, 1, 0]
    # in order: 0 once, 2 twice, 1 once or twice as the epoch's draw decides
    ordered = RepeatFactorTrainingSampler(factors, seed=7, shuffle=False)
    assert list(islice(ordered, 10)) == [0, 1, 1, 2, 2, 0, 1, 1, 2, 2]


def test_repeat_factors():
    def image(*categories):
        return {"annotations": [{"category_id": c} for c in categories]}

    dicts = [image(0, 0), image(0, 1), image(), image()]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    # f(0) = 2/4 and f(1) = 1/4, counted per image; sqrt(.7/.5) = 1.1832, sqrt(.7/.25) = 1.6733
    torch.testing.assert_close(factors(dicts, 0.7), torch.tensor([1.4**0.5, 2.8**0.5, 1.0, 1.0]))
    torch.testing.assert_close(factors(dicts, 0.7, sqrt=False), torch.tensor([1.4, 2.8, 1, 1]))
    assert factors(dicts, 0.2).tolist() == [1, 1, 1, 1]  # frequent enough


def test_inference_sampler(monkeypatch):
    parts = [list(InferenceSampler._get_local_indices(7, 3, r)) for r in range(3)]
    assert parts == [[0, 1, 2], [3, 4], [5, 6]]
    assert [list(InferenceSampler._get_local_indices(1, 2, r)) for r in range(2)] == [[0], []]
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    sampler = InferenceSampler(7)
    assert list(sampler) == [3, 4] and len(sampler) == 2
    with pytest.raises(AssertionError):
        InferenceSampler(0)
