"""The folded group norm: equal to the unfolded one, forward and backward, with less to keep."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import Conv2d
from projects.MSFM import MSFM
from projects.MSFM.folding import add_folded, fold
from tests.projects.msfm.nets import CHANNELS, make_msfm, make_x, randomised

THIN = 5


def make_conv(groups, channels=CHANNELS, activation=None):
    torch.manual_seed(0)
    conv = Conv2d(THIN, channels, 1, norm=nn.GroupNorm(groups, channels), activation=activation)
    return randomised(conv).double()


def unfolded(x, y, conv):
    return x + conv(y)


@pytest.mark.parametrize("activation", [None, F.relu_])
@pytest.mark.parametrize("groups", [1, 4, CHANNELS])
def test_equals_convolution_and_norm(groups, activation):
    """Value and gradients of x, y, weight, bias, scale and shift, in float64."""
    conv = make_conv(groups, activation=activation)
    x, y = make_x(4, 7).requires_grad_(), make_x(4, 7, channels=THIN, seed=2).requires_grad_()
    inputs, weight = [x, y, *conv.parameters()], make_x(4, 7, seed=5)
    ours, theirs = add_folded(x, y, conv), unfolded(x, y, conv)
    torch.testing.assert_close(ours, theirs)
    grads = [torch.autograd.grad(out, inputs, weight) for out in (ours, theirs)]
    torch.testing.assert_close(*grads)
    assert all(g.abs().max() > 0 for g in grads[1][:3])


def test_gradcheck():
    conv = make_conv(2, channels=4)
    x, y = make_x(2, 3, channels=4).requires_grad_(), make_x(2, 3, channels=THIN, seed=2).requires_grad_()
    names, parameters = zip(*conv.named_parameters())

    def function(x, y, *values):
        return torch.func.functional_call(Adding(conv), dict(zip((f"conv.{n}" for n in names), values)), (x, y))

    assert torch.autograd.gradcheck(function, (x, y, *parameters))


def test_collinear_channels():
    """Thin channels that are nearly multiples of one another: a variance that rounds to below 0 makes no NaN."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(100):
        direction = torch.randn(1, THIN, 1, generator=rng)
        y = direction * torch.randn(1, 1, 64, generator=rng) + 1e-5 * torch.randn(1, THIN, 64, generator=rng)
        across = torch.randn(8, THIN, generator=rng)
        across -= (across @ direction[0]) * direction[0].T / direction.square().sum()
        norm = nn.GroupNorm(8, 8)  # one channel a group: no other variance hides it
        matrix, rows = fold(10 * y, 10 * across, torch.zeros(8), norm)
        assert matrix.isfinite().all() and rows.isfinite().all()


class Adding(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x, y):
        return add_folded(x, y, self.conv)


def test_by_hand():
    """One thin channel y = 1, 3: mean 2, variance 1. w = 2, 2 and b = 0, 4 in one group: means 4 and 8, so 6 +- 2;
    variance 4 + 4 = 8. u is 2, 6 and 6, 10; (u - 6) / sqrt(8) with scales 1 and 2, shifts 0 and 1."""
    norm = nn.GroupNorm(1, 2, eps=0.0).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0]))
        norm.bias.copy_(torch.tensor([0.0, 1.0]))
    y = torch.tensor([[[1.0, 3.0]]], dtype=torch.float64)
    weight, bias = torch.tensor([[2.0], [2.0]]).double(), torch.tensor([0.0, 4.0]).double()
    matrix, rows = fold(y, weight, bias, norm)
    expected = torch.tensor([[[-4.0, 0.0], [0.0, 8.0]]]).double() / 8**0.5 + torch.tensor([[[0.0], [1.0]]]).double()
    torch.testing.assert_close(matrix @ rows, expected)


def test_values_far_from_zero():
    """In float32 with a mean of 1000 deviations: a covariance from E[yy'] - mu mu' would have two digits left."""
    conv = make_conv(CHANNELS)  # norms of one channel, whose deviation is that of y alone
    y = make_x(6, 9, channels=THIN, seed=2) + 1000
    exact = unfolded(torch.zeros(2, CHANNELS, 6, 9).double(), y, conv)
    ours = add_folded(torch.zeros(2, CHANNELS, 6, 9), y.float(), conv.float())
    torch.testing.assert_close(ours, exact.float(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", [{}, {"fusion": "cat"}, {"groups": 8}, {"zero_init": False, "out_relu": True}])
def test_module_equals_the_plain_one(kind):
    """float32, value and all gradients within 1e-5 of their scale; one state dict.

    That is 10 at least: with t = G a bias before a norm has gradient 0, a sum of hundreds of values that cancel.
    """
    folded = make_msfm(**kind).float()
    groups = kind.get("groups", 4)
    plain = MSFM(CHANNELS, ratio=3, norm_groups=groups, spec=replace(folded.spec, impl="plain"))
    plain.load_state_dict(folded.state_dict())
    x, weight = make_x(9, 13).float().requires_grad_(), make_x(9, 13, seed=5).float()
    results = []
    for module in (folded, plain):
        out = module(x)
        grads = torch.autograd.grad(out, [x, *module.parameters()], weight)
        results.append([out.detach(), *grads])
    for ours, theirs in zip(*results):
        scale = theirs.abs().max().clamp(min=10)
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-5)


def kept(module, x):
    """Values that autograd keeps, each storage once."""
    storages = {}

    def pack(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(x)
    own = {p.untyped_storage().data_ptr() for p in (*module.parameters(), x)}
    return sum(size for pointer, size in storages.items() if pointer not in own)


def test_keeps_no_wide_map():
    """128 channels, 8 thin ones: the plain form keeps u, which is 128 wide."""
    plain, folded = (make_msfm(channels=128, ratio=16, scales=(1.0,), conv_num=1, impl=i) for i in ("plain", "folded"))
    x = make_x(20, 30, channels=128).requires_grad_()
    wide = x.numel()
    assert kept(folded, x) < 0.75 * wide < 1.25 * wide < kept(plain, x)


def test_is_one_graph():
    """Forward and backward are traced without a break; no compiler is wanted."""
    module, x = make_msfm(scales=(0.5, 1.0, 1.4), conv_num=1), make_x(9, 13).requires_grad_()
    traced = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = [(out, *torch.autograd.grad(out.sum(), [x, *module.parameters()])) for out in (traced(x), module(x))]
    torch.testing.assert_close(*results)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["folded", "plain"])
def test_compiled_inference(impl):
    """Wants a C++ compiler."""
    module, x = make_msfm(impl=impl).float(), make_x(9, 13).float()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(module, fullgraph=True)(x), module(x), rtol=1e-4, atol=1e-4)
