"""The class buffer."""

import pytest
import torch

from projects.InterNet import ClassBuffer

DIM, K = 4, 3


def make(**changes):
    return ClassBuffer(**{"num_classes": K, "dim": DIM, **changes})


def iterations(num=7, seed=0):
    """Per iteration features (P, D), classes and levels (P,); the third is empty, class 2 never appears."""
    rng = torch.Generator().manual_seed(seed)
    result = []
    for i in range(num):
        n = 0 if i == 2 else int(torch.randint(1, 9, (), generator=rng))
        classes, levels = (torch.randint(0, high, (n,), generator=rng) for high in (2, 3))
        result.append((torch.rand(n, DIM, generator=rng), classes, levels))
    return result


def feed(buffer, samples):
    for sample in samples:
        result = buffer.update(*buffer.accumulate(*sample))
    return result


def weighted_mean(samples, label, weights):
    """float64 mean of all vectors of a class, those of iteration i times weights[i]; and the sum of weights."""
    total, count = torch.zeros(DIM, dtype=torch.float64), 0.0
    for (features, classes, _), w in zip(samples, weights, strict=True):
        rows = features[classes == label].double()
        total, count = total + w * rows.sum(dim=0), count + w * len(rows)
    return total / count, count


@pytest.mark.parametrize(
    "arguments, weights",
    [
        ({}, [1.0] * 7),
        ({"mode": "decay", "decay": 0.5}, [0.5**age for age in range(6, -1, -1)]),
        ({"mode": "partial", "window": 3}, [0, 0, 0, 0, 1, 1, 1]),
        ({"mode": "partial", "window": 1}, [0, 0, 0, 0, 0, 0, 1]),
        ({"mode": "partial", "window": 50}, [1.0] * 7),
    ],
)
def test_means_and_counts_of_every_mode(arguments, weights):
    samples = iterations()
    buffer = make(**arguments)
    means, seen = feed(buffer, samples)
    assert seen.tolist() == [True, True, False]
    for label in (0, 1):
        mean, count = weighted_mean(samples, label, weights)
        torch.testing.assert_close(means[label].double(), mean, atol=1e-6, rtol=0)
        assert float(buffer.count[label]) == pytest.approx(count, abs=1e-12)
    assert not means[2].any() and torch.equal(means, buffer.mean)


def test_any_split_into_iterations_gives_the_same_mean():
    samples = iterations()
    joined = tuple(torch.cat(parts) for parts in zip(*samples))
    single = [tuple(x[i : i + 1] for x in joined) for i in range(len(joined[0]))]
    results = [feed(make(), split)[0] for split in (samples, [joined], single)]
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(results[0], results[2], atol=1e-6, rtol=0)


def test_a_class_out_of_the_window_is_unseen_again():
    buffer = make(mode="partial", window=2)
    one, none = torch.ones(1, DIM), torch.zeros(0, DIM)
    label, no_label = torch.tensor([1]), torch.zeros(0, dtype=torch.long)
    assert feed(buffer, [(one, label, label)])[1].tolist() == [False, True, False]
    assert feed(buffer, [(none, no_label, no_label)])[1].tolist() == [False, True, False]
    means, seen = feed(buffer, [(none, no_label, no_label)])
    assert not seen.any() and not means.any()


def test_counts_stay_exact_beyond_float32():
    buffer = make()
    buffer.count[0] = 2**24
    feed(buffer, [(torch.ones(1, DIM), torch.tensor([0]), torch.tensor([0]))])
    assert int(buffer.count[0]) == 2**24 + 1
    assert torch.tensor(2.0**24) + 1 == 2**24  # float32 would stand still


def test_per_level_entries_and_the_last_level_reads_the_first():
    buffer = make(per_level=True)
    features = torch.arange(4.0)[:, None].expand(4, DIM)
    classes, levels = torch.tensor([1, 1, 0, 1]), torch.tensor([0, 1, 2, 0])
    means, seen = feed(buffer, [(features, classes, levels)])
    assert buffer.mean.shape == (3, K, DIM) and buffer.count.shape == (3, K)
    # class 1 on the first level: values 0 and 3; on the second: 1; class 0 on the third: 2
    assert buffer.mean[..., 0].tolist() == [[0, 1.5, 0], [0, 1, 0], [2, 0, 0]]
    read = buffer.entries(torch.tensor([1, 1, 0, 1, 0]), torch.tensor([0, 1, 2, 3, 3]))
    assert means[read, 0].tolist() == [1.5, 1, 2, 1.5, 0]
    assert seen[read].tolist() == [True, True, True, True, False]


def test_eval_mode_does_not_update():
    buffer, samples = make(), iterations()
    before, _ = feed(buffer, samples)
    after, seen = feed(buffer.eval(), samples)
    assert torch.equal(before, after) and seen.tolist() == [True, True, False]


@pytest.mark.parametrize(
    "arguments", [{}, {"mode": "decay"}, {"mode": "partial", "window": 3}, {"per_level": True}], ids=str
)
def test_resumes_as_if_nothing_had_happened(arguments):
    samples = iterations()
    buffer = make(**arguments)
    feed(buffer, samples[:5])
    saved = {k: v.clone() for k, v in buffer.state_dict().items()}
    resumed = make(**arguments)
    resumed.load_state_dict(saved)
    for sample in samples[5:]:
        feed(buffer, [sample])
        feed(resumed, [sample])
        assert torch.equal(buffer.mean, resumed.mean) and torch.equal(buffer.count, resumed.count)
    assert resumed.count.dtype == torch.float64


def test_a_window_left_out_of_the_checkpoint_starts_anew():
    samples = iterations()
    buffer = make(mode="partial", window=50, save_window=False)
    feed(buffer, samples[:5])
    assert set(buffer.state_dict()) == {"mean", "count"}
    resumed = make(mode="partial", window=50, save_window=False)
    resumed.load_state_dict(buffer.state_dict())
    assert torch.equal(resumed.mean, buffer.mean)  # until the first update
    feed(resumed, samples[5:])
    assert torch.equal(resumed.mean, feed(make(mode="partial", window=50), samples[5:])[0])


def test_gradient_of_a_mean_is_one_over_its_count():
    """5 samples before, 2 now: db/df = 1/7 for each of the two; nothing for the other classes."""
    buffer = make()
    ones = torch.zeros(5, dtype=torch.long)
    feed(buffer, [(torch.rand(5, DIM), ones, ones)])
    features = torch.rand(3, DIM, requires_grad=True)
    means, _ = feed(buffer, [(features, torch.tensor([0, 1, 0]), ones[:3])])
    assert torch.equal(means.detach(), buffer.mean)
    means[0].sum().backward()
    torch.testing.assert_close(features.grad[:, 0], torch.tensor([1 / 7, 0, 1 / 7]))


def test_later_updates_leave_earlier_results_alone():
    buffer, samples = make(), iterations()
    first, _ = feed(buffer, samples[:1])
    kept = first.clone()
    feed(buffer, samples[1:])
    assert torch.equal(first, kept) and not torch.equal(first, buffer.mean)


@pytest.mark.parametrize(
    "arguments, message",
    [({"mode": "some"}, "BUFFER.MODE"), ({"window": 0}, "BUFFER.WINDOW"), ({"decay": 1.5}, "BUFFER.DECAY")],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)
