"""Large path, buffer and loss together."""

import logging

import pytest
import torch
import torch.nn.functional as F

from detectron2.layers import ROIAlign
from detectron2.utils.events import EventStorage
from projects.InterNet.intertwiner import Foreground

from .parts import (
    CHANNELS,
    CLASSES,
    DIM,
    SIDES,
    SIZE,
    STRIDES,
    make_critic,
    make_intertwiner,
    make_maps,
    make_pooler,
    square,
)

CLASS_OF_ROW = (0, 1, 0, 2, 2)  # of sides 10, 20, 40, 60 in the first image and 60 in the second


def make_foreground(critic, maps, sides=(*SIDES, 60), classes=CLASS_OF_ROW):
    images = [0, 0, 0, 0, 1][: len(sides)]
    rois = torch.tensor([[float(i), *square(side)] for i, side in zip(images, sides)]).reshape(-1, 5)
    levels = torch.tensor([SIDES.index(side) for side in sides], dtype=torch.long)
    features = critic(make_pooler().pool_from(maps, range(4), rois, levels) + 0.3)  # as if made up
    return Foreground(rois, levels, torch.tensor(classes[: len(sides)], dtype=torch.long), features)


def run(module, critic=None, maps=None, foreground=None, iteration=0):
    """Losses, and the values put into the storage."""
    critic = critic or make_critic()
    maps = maps or make_maps()
    foreground = foreground or make_foreground(critic, maps)
    with EventStorage(iteration) as storage:
        losses = module(critic=critic, pooler=make_pooler(), maps=maps, image_sizes=[SIZE, SIZE], foreground=foreground)
    return losses, {name: value for name, (value, _) in storage.latest().items()}


def pairs_of(levels, nearest=False):
    return [(row, l) for row, m in enumerate(levels) for l in range(m) if not nearest or l == m - 1]


def source_map(source, module, maps, l, m):
    """The map that a RoI of level m is pooled from for level l, and its stride."""
    if source == "a":
        return maps[l], STRIDES[l]
    if source == "b":
        return maps[m], STRIDES[m]
    size = maps[l].shape[-2:]
    if source == "c_bilinear":
        return F.interpolate(maps[m], size=size, mode="bilinear", align_corners=False), STRIDES[l]
    x = maps[m]
    for level in range(m - 1, l - 1, -1):
        x = module.transport.generators[level](x, maps[level].shape[-2:])
    return x, STRIDES[l]


@pytest.mark.parametrize("pairs", ["all", "nearest"])
@pytest.mark.parametrize("per_level", [False, True])
@pytest.mark.parametrize("source", ["a", "b", "c_bilinear", "c_neural", "d"])
def test_buffer_holds_every_pair_of_its_source(source, per_level, pairs):
    """Against one RoI and one pair at a time. Levels 0, 1, 2, 3, 3: 0 + 1 + 2 + 3 + 3 pairs, or one each."""
    transport = {"c_bilinear": dict(loss="none", generator="bilinear"), "c_neural": dict(loss="none")}
    transport["d"] = dict(loss="l2")
    module = make_intertwiner({"per_level": per_level}, transport.get(source), large_source=source, large_pairs=pairs)
    critic, maps = make_critic(), make_maps()
    foreground = make_foreground(critic, maps)
    losses, scalars = run(module, critic, maps, foreground)
    assert set(losses) == ({"loss_inter", "loss_ot"} if source == "d" else {"loss_inter"})
    sums, counts = torch.zeros(3, CLASSES, DIM), torch.zeros(3, CLASSES)
    levels = foreground.levels.tolist()
    wanted = pairs_of(levels, pairs == "nearest")
    assert len(wanted) == scalars["internet/num_large"] == (9 if pairs == "all" else 4)
    with torch.no_grad():
        for row, l in wanted:
            x, stride = source_map(source, module, maps, l, levels[row])
            label = foreground.classes[row]
            sums[l, label] += critic(ROIAlign(14, 1 / stride, 1)(x, foreground.rois[row][None]))[0]
            counts[l, label] += 1
    if not per_level:
        sums, counts = sums.sum(dim=0), counts.sum(dim=0)
    assert torch.equal(module.buffer.count.float(), counts)
    torch.testing.assert_close(module.buffer.mean, sums / counts.clamp(min=1)[..., None])
    assert not module.buffer.mean.requires_grad


def test_large_sets_are_nested_as_in_table_3():
    """302, 36, 54 and 8 proposals on the levels: 98, 62 and 8 are large for the first three."""
    levels = torch.repeat_interleave(torch.arange(4), torch.tensor([302, 36, 54, 8]))
    rows, finer = make_intertwiner().large_set(levels)
    assert finer.bincount().tolist() == [98, 62, 8] and (levels[rows] > finer).all()
    rows, finer = make_intertwiner(large_pairs="nearest").large_set(levels)
    assert finer.bincount().tolist() == [36, 54, 8] and (levels[rows] == finer + 1).all()


def test_source_b_pools_and_criticises_each_large_roi_once(monkeypatch):
    module, critic, maps = make_intertwiner(), make_critic(), make_maps()
    foreground = make_foreground(critic, maps)
    seen = []
    monkeypatch.setattr(critic, "with_running_statistics", lambda x: seen.append(len(x)) or critic(x))
    run(module, critic, maps, foreground)
    assert seen == [4]
    assert module.buffer.count.tolist() == [2, 1, 6]  # lambda - 2 each: a level-5 RoI counts three times


def test_loss_uses_the_buffer_of_this_very_iteration():
    module, critic, maps = make_intertwiner(), make_critic(), make_maps()
    foreground = make_foreground(critic, maps)
    losses, scalars = run(module, critic, maps, foreground)
    expected = (foreground.features - module.buffer.mean[foreground.classes]).square().mean()
    torch.testing.assert_close(losses["loss_inter"], expected)
    assert expected > 0 and scalars["internet/num_small"] == 5 and scalars["internet/num_representatives"] == 3


def test_weight_reduction_and_kind_reach_the_loss():
    module, critic, maps = make_intertwiner(loss="l1", loss_weight=10.0, reduction="instance_sum_dims"), None, None
    critic, maps = make_critic(), make_maps()
    foreground = make_foreground(critic, maps)
    losses, _ = run(module, critic, maps, foreground)
    expected = 10 * (foreground.features - module.buffer.mean[foreground.classes]).abs().sum(dim=1).mean()
    torch.testing.assert_close(losses["loss_inter"], expected)


def test_an_unseen_class_has_no_loss_and_a_seen_one_needs_no_small_sample():
    """Class 1's only RoI is on the finest level: nothing to compare with. Later the buffer knows it."""
    module, critic, maps = make_intertwiner(), make_critic(), make_maps()
    small = make_foreground(critic, maps, sides=(10, 10), classes=(1, 1))
    losses, scalars = run(module, critic, maps, small)
    assert losses["loss_inter"] == 0 and scalars["internet/num_small"] == 0
    none = small._replace(**{name: getattr(small, name)[:0] for name in small._fields})
    assert run(module, critic, maps, none)[0]["loss_inter"] == 0
    run(module, critic, maps, make_foreground(critic, maps, sides=(20,), classes=(1,)))
    assert module.buffer.count.tolist() == [0, 1, 0]
    losses, scalars = run(module, critic, maps, small)
    expected = (small.features - module.buffer.mean[1]).square().mean()
    torch.testing.assert_close(losses["loss_inter"], expected)
    assert scalars["internet/num_small"] == 2


@pytest.mark.parametrize("per_level", [False, True])
def test_last_level_takes_part_unless_told_not_to(per_level):
    """With a buffer per level it reads the finest one's."""
    critic, maps = make_critic(), make_maps()
    foreground = make_foreground(critic, maps, sides=(60,), classes=(2,))
    module = make_intertwiner({"per_level": per_level})
    mean = (foreground.features - run_mean(module, critic, maps, foreground)).square().mean()
    assert mean > 0
    module = make_intertwiner({"per_level": per_level}, last_level_loss=False)
    losses, scalars = run(module, critic, maps, foreground)
    assert losses["loss_inter"] == 0 and scalars["internet/num_small"] == 0
    assert module.buffer.count.sum() == 3  # it guides all the same


def run_mean(module, critic, maps, foreground):
    losses, _ = run(module, critic, maps, foreground)
    mean = module.buffer.mean.flatten(0, -2)[2]
    torch.testing.assert_close(losses["loss_inter"], (foreground.features - mean).square().mean())
    return mean


def test_loss_starts_later_and_the_buffer_at_once():
    module = make_intertwiner(start_iter=5)
    assert run(module, iteration=4)[0]["loss_inter"] == 0
    assert module.buffer.count.sum() == 9
    assert run(module, iteration=5)[0]["loss_inter"] > 0


@pytest.mark.parametrize("source", ["a", "b", "c_neural", "d"])
def test_detached_large_path_has_no_graph(source):
    """The features of small RoIs are the only way into the loss."""
    transport = {"c_neural": dict(loss="none"), "d": dict(loss="l2")}.get(source)
    module, critic = make_intertwiner(transport=transport, large_source=source), make_critic()
    maps = make_maps(requires_grad=True)
    foreground = make_foreground(critic, make_maps())
    losses, _ = run(module, critic, maps, foreground)
    inter = losses["loss_inter"]
    assert torch.autograd.grad(inter, maps, allow_unused=True, retain_graph=True) == (None,) * 4
    assert torch.autograd.grad(inter, foreground.features)[0].abs().sum() > 0
    if source == "d":
        losses["loss_ot"].backward()
        assert all(p.grad is not None for p in module.parameters())


def test_without_detach_the_gradient_is_the_samples_share():
    """After two iterations of equal samples q / n is 1/2, the gradient of the representative half of the first's."""
    critic = make_critic()
    module = make_intertwiner(detach=False)
    gradients = []
    for _ in range(2):
        maps = make_maps(requires_grad=True)
        foreground = make_foreground(critic, make_maps())
        losses, _ = run(module, critic, maps, foreground._replace(features=foreground.features.detach()))
        gradients.append(torch.autograd.grad(losses["loss_inter"], maps[3])[0])
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[1], gradients[0] / 2, rtol=1e-4, atol=1e-9)


def test_without_detach_the_generators_learn_from_the_loss():
    module = make_intertwiner(transport=dict(loss="none"), large_source="c_neural", detach=False)
    run(module)[0]["loss_inter"].backward()
    assert all(p.grad.abs().sum() > 0 for p in module.transport.generators.parameters())


def test_c_neural_with_detach_freezes_its_generators_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        module = make_intertwiner(transport=dict(loss="none"), large_source="c_neural")
    assert "generators keep their initial weights" in caplog.text
    assert not any(p.requires_grad for p in module.parameters())
    caplog.clear()
    module = make_intertwiner(transport=dict(loss="l2"), large_source="d")
    assert all(p.requires_grad for p in module.parameters()) and not caplog.text


@pytest.mark.parametrize("loss", ["ot", "ot_debiased", "kl"])
def test_transport_losses(loss):
    module = make_intertwiner(transport=dict(loss=loss), large_source="d")
    losses, scalars = run(module)
    assert losses["loss_ot"].isfinite() and losses["loss_ot"] != 0
    assert {f"ot/abs_cos_level{level}" for level in (2, 3, 4)} <= set(scalars)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("reduction", ["instance_mean", "class_mean"])
@pytest.mark.parametrize("sides", [(), (10, 10), (60,)], ids=["no foreground", "no large", "one RoI"])
def test_every_parameter_gets_a_finite_gradient(sides, reduction, detach):
    module = make_intertwiner(
        transport=dict(loss="l2"), large_source="d", reduction=reduction, detach=detach, big_supervise=True
    )
    critic, maps = make_critic(norm="BN"), make_maps()
    foreground = make_foreground(critic, maps, sides=sides)
    losses, _ = run(module, critic, maps, foreground)
    if not sides or 60 not in sides:
        assert losses["loss_inter"] == 0 and losses["loss_big"] == 0
    sum(losses.values()).backward()
    parameters = [*module.parameters(), *critic.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)


def test_big_supervise_is_the_cross_entropy_of_all_pairs():
    module, critic, maps = make_intertwiner(big_supervise=True), make_critic(), make_maps()
    foreground = make_foreground(critic, maps)
    losses, _ = run(module, critic, maps, foreground)
    pooled = make_pooler().pool_from(maps, range(4), foreground.rois, foreground.levels)
    logits = module.big_classifier(critic(pooled))[[1, 2, 2, 3, 3, 3, 4, 4, 4]]
    labels = torch.tensor([1, 0, 0, 2, 2, 2, 2, 2, 2])
    torch.testing.assert_close(losses["loss_big"], F.cross_entropy(logits, labels))
    assert not module.buffer.mean.requires_grad


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"loss": "l3"}, "LOSS"),
        ({"reduction": "sum"}, "REDUCTION"),
        ({"large_source": "e"}, "LARGE_SOURCE"),
        ({"large_pairs": "some"}, "LARGE_PAIRS"),
        ({"large_source": "d"}, "needs a transport"),
        ({"transport": {"channels": CHANNELS}}, "needs transport None"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_intertwiner(**arguments)
