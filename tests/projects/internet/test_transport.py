"""ScaleOT: generators, critics, and the transport loss between levels."""

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

from detectron2.utils.events import EventStorage
from projects.InterNet import transport
from projects.InterNet.generators import GENERATORS
from projects.InterNet.transport import ScaleOT

STRIDES = [4, 8, 16, 32]


def make(**changes) -> ScaleOT:
    torch.manual_seed(0)
    return ScaleOT(**{"channels": 6, "norm": "", **changes})


def random_maps(sizes, channels=6, images=2, seed=0, **kwargs):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(images, channels, *size, generator=rng, **kwargs) for size in sizes]


def pyramid(**kwargs):
    """Maps of two 64 x 48 images and the other arguments of forward."""
    maps = random_maps([(16, 12), (8, 6), (4, 3), (2, 2)], **kwargs)
    return maps, [(64, 48)] * len(maps[0]), STRIDES


def reference_transport(p, q, eps=0.1, iters=10, detach_plan=True):
    """Algorithm 1 in float64 for one image: p, q (C, k). Plan of mass 1, b (rows) updated last."""
    cost = 1 - F.normalize(p.double(), dim=1) @ F.normalize(q.double(), dim=1).T
    kernel = torch.exp(-cost / eps)
    b = torch.full((len(p),), 1 / len(p), dtype=torch.float64)
    for _ in range(iters):
        a = (1 / len(q)) / (kernel.T @ b)
        b = (1 / len(p)) / (kernel @ a)
    plan = b[:, None] * kernel * a
    return ((plan.detach() if detach_plan else plan) * cost).sum()


def expected_loss(module, maps, generated, pairs, distance=reference_transport):
    """Sum over l of the mean over m and over images."""
    total = 0
    for l in {l for l, _ in pairs}:
        values = [
            distance(p.flatten(1), q.flatten(1))
            for pair in pairs
            if pair[0] == l
            for p, q in zip(module.critics[l](maps[l]), module.critics[l](generated[pair]))
        ]
        total = total + sum(values) / len(values)
    return total


ADJACENT = [(0, 1), (1, 2), (2, 3)]
ALL = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize("pairs, listed", [("adjacent", ADJACENT), ("all", ALL)])
def test_loss_is_algorithm_1_summed_over_levels(pairs, listed):
    module = make(pairs=pairs, weight=0.5)
    args = pyramid()
    generated, losses = module(*args)
    torch.testing.assert_close(
        losses["loss_ot"].double(), 0.5 * expected_loss(module, args[0], generated, listed), atol=1e-5, rtol=1e-5
    )
    assert list(losses) == ["loss_ot"] and losses["loss_ot"].dtype == torch.float32


def test_adjacent_and_all_pairs_differ():
    assert (make()(*pyramid())[1]["loss_ot"] - make(pairs="all")(*pyramid())[1]["loss_ot"]).abs() > 1e-3


@pytest.mark.parametrize("backprop_plan", [False, True])
def test_gradient_with_and_without_the_plan(backprop_plan):
    def reference(p, q):
        return reference_transport(p, q, detach_plan=not backprop_plan)

    module = make(backprop_plan=backprop_plan)
    args = pyramid()
    weights = list(module.parameters())
    generated, losses = module(*args)
    got = torch.autograd.grad(losses["loss_ot"], weights)
    generated, _ = module(*args)
    wanted = torch.autograd.grad(expected_loss(module, args[0], generated, ADJACENT, reference), weights)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-3)
    other = make(backprop_plan=not backprop_plan)
    different = torch.autograd.grad(other(*args)[1]["loss_ot"], list(other.parameters()))
    assert (different[0] - got[0]).abs().max() > 10 * (wanted[0] - got[0]).abs().max()


def test_debiased_is_zero_for_identical_maps_and_plain_is_not():
    class Same(nn.Module):
        def forward(self, x, size, valid=None):
            return maps[0]

    maps, sizes, strides = pyramid()
    for loss, low, high in (("ot", 1e-4, 2.0), ("ot_debiased", -1e-6, 1e-6)):
        module = make(loss=loss, num_levels=2)
        module.generators[0] = Same()
        value = module(maps[:2], sizes, strides[:2])[1]["loss_ot"].item()
        assert low <= value <= high


def test_debiased_is_the_three_terms():
    def debiased(p, q):
        return 2 * reference_transport(p, q) - reference_transport(p, p) - reference_transport(q, q)

    module, args = make(loss="ot_debiased"), pyramid()
    generated, losses = module(*args)
    expected = expected_loss(module, args[0], generated, ADJACENT, debiased)
    torch.testing.assert_close(losses["loss_ot"].double(), expected, atol=1e-4, rtol=1e-4)


def loss_of_two(first, second, **changes):
    module = make(num_levels=2, generator="bilinear", critic_mode="avgpool", iters=200, **changes)
    return module([first, second], [(36, 28)] * 2, [4, 8])[1]["loss_ot"].item()


def test_invariances():
    first, second = random_maps([(9, 7), (5, 4)], images=2)  # odd: pooling 3x3 with stride 2 is symmetric
    second = second[..., :4]
    value = loss_of_two(first, second)
    assert 0 < value < 2
    order, factors = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([0.1, 1.0, 2.0, 5.0, 0.5, 30.0])[:, None, None]
    same = [
        (first[:, order], second),
        (first, second[:, order]),
        (first * factors, second),
        (first.flip(3), second.flip(3)),
        (first.flip(2), second.flip(2)),
    ]
    for maps in same:
        assert loss_of_two(*maps) == pytest.approx(value, abs=1e-5)
    assert loss_of_two(first.flip(3), second) != pytest.approx(value, abs=1e-3)
    assert loss_of_two(first, second, loss="l2") != pytest.approx(
        loss_of_two(first[:, order], second, loss="l2"), abs=1e-4
    )


def test_log_domain_gives_the_same():
    plain, logs = (make(log_domain=x)(*pyramid())[1]["loss_ot"] for x in (False, True))
    torch.testing.assert_close(plain, logs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("loss, expected", [("l2", 2.5), ("kl", 0.51171)])
def test_l2_and_kl_by_hand(loss, expected):
    """3x3 pooling of a 1 x 3 map (a, b, c) gives ((a + b) / 9, (b + c) / 9).

    (9, 0, 18) -> (1, 2), (0, 0, 36) -> (0, 4).

    l2: (1^2 + 2^2) / 2 = 2.5. kl: softmax(1, 2) = (0.26894, 0.73106), softmax(0, 4) = (0.01799, 0.98201);
    0.26894 ln(0.26894 / 0.01799) + 0.73106 ln(0.73106 / 0.98201) = 0.72746 - 0.21574 = 0.51171 (rounded).
    """

    class Given(nn.Module):
        def forward(self, x, size, valid=None):
            return torch.tensor([[[[0.0, 0.0, 36.0]]]])

    module = make(channels=1, num_levels=2, loss=loss, critic_mode="avgpool")
    module.generators[0] = Given()
    maps = [torch.tensor([[[[9.0, 0.0, 18.0]]]]), torch.zeros(1, 1, 1, 2)]
    assert module(maps, [(4, 12)], [4, 8])[1]["loss_ot"].item() == pytest.approx(expected, abs=2e-5)


def test_distant_levels_are_composed_of_adjacent_generators():
    module, args = make(), pyramid()
    generated, _ = module(*args)
    x = args[0][3]
    for l in (2, 1, 0):
        x = module.generators[l](x, args[0][l].shape[-2:])
        torch.testing.assert_close(generated[l, 3], x)


def test_bilinear_resizes_once():
    maps, sizes, strides = pyramid()
    generated, losses = make(generator="bilinear", loss="none")(maps, sizes, strides)
    wanted = F.interpolate(maps[3], size=(16, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(generated[0, 3], wanted)
    assert losses == {} and not list(make(generator="bilinear", loss="none").parameters())


def test_on_each_device_with_padding(device):
    module, (maps, _, strides) = make(), pyramid()
    sizes = [(50, 41), (64, 48)]
    expected = module(maps, sizes, strides)[1]["loss_ot"]
    with EventStorage() as storage:
        loss = module.to(device)([x.to(device) for x in maps], sizes, strides)[1]["loss_ot"]
        assert len(storage.latest()) == 3
    loss.backward()
    torch.testing.assert_close(loss.cpu(), expected, atol=1e-3, rtol=1e-3)  # a GPU's convolutions may be in TF32


@pytest.mark.parametrize("large, expected", [("all", ALL), ("nearest", ADJACENT), ("none", [])])
def test_large_pairs(large, expected):
    module, args = make(), pyramid()
    generated, losses = module(*args, large_pairs=large)
    assert sorted(generated) == expected
    torch.testing.assert_close(losses["loss_ot"], module(*args)[1]["loss_ot"])


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("loss", ["ot", "ot_debiased", "l2", "kl"])
@pytest.mark.parametrize("critic_mode", ["trained", "avgpool"])
def test_padding_and_the_other_images_change_nothing(generator, loss, critic_mode):
    """Two images in one batch, garbage where they are padded, against each alone, padded to multiples of 8 alone."""
    module = make(num_levels=2, generator=generator, loss=loss, critic_mode=critic_mode, norm="")
    sizes = [(29, 37), (32, 20)]  # 8 x 10 and 8 x 5 own cells of stride 4; 4 x 5 and 4 x 3 of stride 8
    alone = [random_maps(cells, images=1, seed=i) for i, cells in enumerate(([(8, 10), (4, 5)], [(8, 6), (4, 3)]))]
    batch = [torch.full((2, 6, *cells), 100.0) for cells in ((16, 12), (8, 6))]
    single, results = [], []
    for i, maps in enumerate(alone):
        generated, losses = module(maps, [sizes[i]], [4, 8])
        single.append(losses["loss_ot"])
        results.append(generated[0, 1][0])
        for whole, own in zip(batch, maps):
            whole[i, :, : own.shape[2], : own.shape[3]] = own[0]
    generated, losses = module(batch, sizes, [4, 8])
    torch.testing.assert_close(losses["loss_ot"], sum(single) / 2, atol=1e-5, rtol=1e-4)
    for i, own in enumerate(results):
        rows, columns = own.shape[1:]
        torch.testing.assert_close(generated[0, 1][i, :, :rows, :columns], own, atol=1e-5, rtol=1e-4)
        assert (generated[0, 1][i, :, rows:] == 0).all() and (generated[0, 1][i, :, :, columns:] == 0).all()


@pytest.mark.parametrize("loss", ["ot", "ot_debiased", "l2", "kl"])
def test_gradients_reach_maps_generators_and_critics(loss):
    module = make(loss=loss)
    maps, sizes, strides = pyramid(requires_grad=True)
    module(maps, sizes, strides)[1]["loss_ot"].backward()
    tensors = {**{f"map {i}": x for i, x in enumerate(maps)}, **dict(module.named_parameters())}
    assert len(tensors) == 4 + 3 * 5
    for name, x in tensors.items():
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().sum() > 0, name


def test_dead_channels_have_finite_gradients():
    module = make()
    maps, sizes, strides = pyramid()
    maps = [x.index_fill(1, torch.tensor([2]), 0).requires_grad_() for x in maps]
    for critic in module.critics:
        critic.weight.data[1] = 0
    loss = module(maps, sizes, strides)[1]["loss_ot"]
    loss.backward()
    assert loss.isfinite() and all(x.grad.isfinite().all() for x in (*maps, *module.parameters()))


def test_frozen_critics_stay_in_the_checkpoint():
    trained, frozen = make(), make(critic_mode="frozen")
    assert list(trained.state_dict()) == list(frozen.state_dict())
    maps, sizes, strides = pyramid(requires_grad=True)
    frozen(maps, sizes, strides)[1]["loss_ot"].backward()
    assert all(p.grad is None and not p.requires_grad for p in frozen.critics.parameters())
    assert all(p.grad.abs().sum() > 0 for p in frozen.generators.parameters())
    assert all(x.grad.abs().sum() > 0 for x in maps)


def test_weight_0_trains_nothing_and_has_no_graph():
    module = make(weight=0.0)
    maps, sizes, strides = pyramid(requires_grad=True)
    generated, losses = module(maps, sizes, strides)
    assert losses["loss_ot"].item() == 0 and not losses["loss_ot"].requires_grad
    assert not any(p.requires_grad for p in module.parameters())
    assert list(module.state_dict()) == list(make().state_dict()) and set(generated) == set(ALL)


def test_without_a_loss_generators_train_unless_frozen(caplog):
    module = make(loss="none", weight=0.0)
    assert len(module.critics) == 0 and all(p.requires_grad for p in module.generators.parameters())
    maps, sizes, strides = pyramid()
    generated, losses = module(maps, sizes, strides)
    assert losses == {} and generated[0, 3].requires_grad
    module.freeze_generators()
    module.freeze_generators()
    assert not any(p.requires_grad for p in module.parameters())
    assert [r.message for r in caplog.records if "keep their initial weights" in r.message] == [
        caplog.records[-1].message
    ]


def test_detach_changes_neither_loss_nor_its_gradients():
    args, grads = pyramid(), []
    for detach in (False, True):
        module = make()
        generated, losses = module(*args, detach=detach)
        assert all(x.requires_grad != detach for x in generated.values())
        grads.append([losses["loss_ot"], *torch.autograd.grad(losses["loss_ot"], list(module.parameters()))])
    torch.testing.assert_close(*grads)


def test_channels_per_level():
    """A classifier's stages: one Sinkhorn problem per number of channels, F from C_m to C_l."""
    channels = OmegaConf.create([4, 8, 8])
    module = make(channels=channels, num_levels=3)
    maps = [random_maps([size], c)[0] for size, c in zip([(8, 8), (4, 4), (2, 2)], channels)]
    generated, losses = module(maps, [(8, 8)] * 2, [1, 2, 4])
    assert {pair: x.shape[1] for pair, x in generated.items()} == {(0, 1): 4, (0, 2): 4, (1, 2): 8}
    expected = expected_loss(module, maps, generated, [(0, 1), (1, 2)])
    torch.testing.assert_close(losses["loss_ot"].double(), expected, atol=1e-5, rtol=1e-5)


def test_one_call_of_the_op_for_all_pairs(monkeypatch):
    calls = []

    def counted(x, y, *args, **kwargs):
        calls.append(len(x))
        return original(x, y, *args, **kwargs)

    original = transport.sinkhorn_divergence
    monkeypatch.setattr(transport, "sinkhorn_divergence", counted)
    make(pairs="all")(*pyramid())
    assert calls == [6]


def test_monitor_measures_cosines_between_channels_of_the_critic(caplog):
    module, args = make(), pyramid()
    module(*args)  # no storage: nothing to do
    with EventStorage() as storage:
        module(*args)
        values = {k: v[0] for k, v in storage.latest().items()}
    assert sorted(values) == [f"ot/abs_cos_level{l}" for l in (2, 3, 4)]
    x = F.normalize(module.critics[1](args[0][1])[0].detach().flatten(1), dim=1)
    pairs = [(x[i] @ x[j]).abs().item() for i in range(6) for j in range(6) if i != j]
    assert values["ot/abs_cos_level3"] == pytest.approx(sum(pairs) / 30, abs=1e-5)
    assert not caplog.records


def test_a_collapsed_critic_is_reported_once(caplog):
    module = make(first_level=1)
    with torch.no_grad():
        for scale, row in zip((1, -2, 3, -4, 5, 6), module.critics[2].weight):
            row.copy_(scale * module.critics[2].weight[0])
    with EventStorage() as storage:
        for _ in range(3):
            module(*pyramid())
        assert storage.latest()["ot/abs_cos_level3"][0] == pytest.approx(1, abs=1e-5)
    (record,) = caplog.records
    assert "ot/abs_cos_level3 is 1.00" in record.getMessage() and "critic_mode" in record.getMessage()


def test_loss_is_float32_under_autocast():
    module, args = make(), pyramid()
    exact = module(*args)[1]["loss_ot"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(*args)[1]["loss_ot"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, atol=0, rtol=0.03)  # the convolutions are in bfloat16: 8 bits


def test_detach_under_autocast_keeps_every_gradient():
    """Autocast caches weights cast without a graph: each generator must run with one first."""
    module = make()
    with torch.autocast("cpu", torch.bfloat16):
        module(*pyramid(), detach=True)[1]["loss_ot"].backward()
    for name, p in module.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("norm", ["BN", "GN", "affine"])
def test_norms_of_the_generators(norm):
    module = make(channels=32, norm=norm)
    assert "generators.0.norm.weight" in module.state_dict()
    generated, losses = module(*pyramid(channels=32))
    losses["loss_ot"].backward()
    assert module.generators[0].norm.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"loss": "emd"}, "loss is 'emd', choose one of none, l2, kl, ot, ot_debiased"),
        ({"pairs": "some"}, "pairs is 'some'"),
        ({"generator": "x"}, "generator is 'x', choose one of conv_up_conv, deconv, bilinear"),
        ({"critic_mode": "x"}, "critic_mode is 'x'"),
        ({"channels": [4, 8]}, "got 2 for num_levels 4"),
        ({"channels": [4, 8], "num_levels": 2, "generator": "bilinear"}, "cannot turn 8 channels into 4"),
        ({"eps": 0.0}, "eps above 0"),
        ({"iters": 0}, "at least one iteration"),
    ],
)
def test_bad_arguments(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**change)


def test_bad_input():
    maps, sizes, strides = pyramid()
    with pytest.raises(ValueError, match="num_levels 4, got 3 maps"):
        make()(maps[:3], sizes, strides)
    with pytest.raises(ValueError, match="large_pairs is 'far'"):
        make()(maps, sizes, strides, "far")
