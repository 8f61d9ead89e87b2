"""Make-up and critic."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from projects.InterNet import Critic, MakeUp

from .parts import CHANNELS, DIM, make_critic, make_maps


def size(module):
    return sum(p.numel() for p in module.parameters())


def macs(module, *args):
    """Multiply-adds of the convolutions, per RoI, biases not counted."""
    with FlopCounterMode(display=False) as counter:
        module.eval()(*args)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    "arguments, roi_size, parameters, operations",
    [
        # 3x3 256 -> 512: 9*256*512 + 512; BN 2*512; kxk 512 -> 1024: k*k*512*1024 + 1024; BN 2*1024
        # operations: 7*7 cells * 9*256*512 + 49*512*1024, for k = 4 16 cells
        ({}, 14, 26_874_368, 83_492_864),
        ({}, 7, 26_874_368, 83_492_864),
        ({"variant": "light"}, 7, 9_572_864, 27_262_976),
        ({"extra_1x1": True}, 14, 26_874_368 + 1024 * 1024 + 3 * 1024, 84_541_440),
    ],
)
def test_critic_sizes(arguments, roi_size, parameters, operations):
    with torch.device("meta"):
        critic = Critic(channels=256, roi_size=roi_size, **arguments)
        x = torch.zeros(1, 256, roi_size, roi_size)
    assert size(critic) == parameters
    assert macs(critic, x) == operations
    assert critic(x).shape == (1, 1024)


def test_makeup_size():
    """9*256*256 + 256 and BN's 2*256; 14*14*9*256*256 multiply-adds per RoI."""
    with torch.device("meta"):
        makeup = MakeUp(channels=256)
        x, levels = torch.zeros(1, 256, 14, 14), torch.zeros(1, dtype=torch.long)
    assert size(makeup) == 590_592
    assert macs(makeup, x, levels) == 115_605_504
    with torch.device("meta"):
        assert size(MakeUp(channels=256, num_units=4)) == 4 * 590_592


@pytest.mark.parametrize("norm", ["BN", "GN", "affine", "", "SyncBN"])
@pytest.mark.parametrize("rows", [3, 1, 0])
def test_any_number_of_rows_trains(norm, rows):
    """Values in [0.5, 1), finite gradients for all parameters, also for one RoI and for none."""
    makeup, critic = MakeUp(channels=32, norm=norm), make_critic(channels=32, hidden=32, dim=64, norm=norm)
    x = torch.randn(rows, 32, 14, 14, requires_grad=True)
    made_up = makeup(x, torch.zeros(rows, dtype=torch.long))
    assert made_up.shape == x.shape and (made_up >= 0).all()
    f = critic(made_up)
    assert f.shape == (rows, 64) and f.dtype == torch.float32
    assert ((f >= 0.5) & (f < 1)).all()
    f.sum().backward()
    parameters = [*makeup.parameters(), *critic.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)


def test_batch_norm_takes_statistics_of_two_rows_at_least():
    critic = make_critic(norm="BN")
    norms = [layer.norm for layer in critic.layers]
    critic(torch.randn(1, CHANNELS, 14, 14))
    assert [int(n.num_batches_tracked) for n in norms] == [0, 0]
    critic(torch.randn(2, CHANNELS, 14, 14))
    assert [int(n.num_batches_tracked) for n in norms] == [1, 1]


def test_running_statistics_are_those_of_inference():
    critic = make_critic(norm="BN")
    critic(torch.randn(4, CHANNELS, 14, 14))
    x = torch.randn(5, CHANNELS, 14, 14)
    large = critic.with_running_statistics(x)
    assert all(m.training for m in critic.modules())
    assert int(critic.layers[0].norm.num_batches_tracked) == 1
    assert not torch.allclose(large, critic(x))
    critic = make_critic(norm="BN")
    torch.testing.assert_close(critic.with_running_statistics(x), critic.eval()(x))


def test_softmax_is_a_distribution():
    f = make_critic(activation="softmax")(torch.randn(3, CHANNELS, 14, 14))
    torch.testing.assert_close(f.sum(dim=1), torch.ones(3))
    assert not torch.allclose(f[0], f[1])


def test_critic_by_hand():
    """One channel, all weights and inputs 1, roi_size 2: padded 3x3 of stride 2 sums 4 cells; the 1x1 that is left, 4;
    sigmoid(4)."""
    critic = Critic(channels=1, roi_size=2, hidden=1, dim=1, norm="")
    for p in critic.parameters():
        torch.nn.init.constant_(p, float(p.dim() > 1))
    torch.testing.assert_close(critic(torch.ones(1, 1, 2, 2)), torch.tensor([[4.0]]).sigmoid())
    # negative sums end in the ReLUs: sigmoid(0)
    assert critic(-torch.ones(1, 1, 2, 2)).item() == 0.5


def test_a_unit_per_level():
    makeup = MakeUp(channels=CHANNELS, norm="", num_units=4)
    x, levels = torch.randn(5, CHANNELS, 14, 14), torch.tensor([2, 0, 3, 0, 2])
    expected = torch.stack([makeup.units[level](row[None])[0] for row, level in zip(x, levels.tolist())])
    torch.testing.assert_close(makeup(x, levels), expected)
    maps = make_maps()
    for result, unit, x in zip(makeup.forward_maps(maps), makeup.units, maps, strict=True):
        assert torch.equal(result, unit(x))
    makeup(torch.randn(2, CHANNELS, 14, 14), torch.tensor([1, 1])).sum().backward()
    assert all(p.grad is not None for p in makeup.parameters())  # levels without RoIs too


def test_one_unit_on_maps():
    makeup = MakeUp(channels=CHANNELS)
    maps = make_maps()
    result = makeup.forward_maps(maps)
    assert [x.shape for x in result] == [x.shape for x in maps]
    assert int(makeup.units[0].norm.num_batches_tracked) == 4


def test_bfloat16_autocast_keeps_the_result_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        f = make_critic()(torch.randn(3, CHANNELS, 14, 14))
    assert f.shape == (3, DIM) and f.dtype == torch.float32 and f.isfinite().all()


@pytest.mark.parametrize(
    "arguments, message",
    [({"norm": "LN2"}, "NORM"), ({"variant": "big"}, "variant is 'big'"), ({"activation": "tanh"}, "'tanh'")],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_critic(**arguments)
