"""LIPPool2d, the logit modules and the poolings in the same frame."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from projects.LIP.logits import (
    BottleneckLogit,
    DetailLogit,
    LogitConv,
    PlainLogit,
    ProjectionLogit,
    SimplifiedLogit,
    start_at_zero,
)
from projects.LIP.pooling import LIPPool2d, Pooling, make_branch_pool, make_pool, make_stem_pool
from tests.projects.lip.nets import images


def parameters(module):
    return sum(p.numel() for p in module.parameters())


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return torch.full_like(x, self.value)


def test_by_hand():
    """One window of four cells, k2 s2 p0. Weights e^0 : e^ln 2 : e^ln 3 : e^ln 4 = 1 : 2 : 3 : 4,
    y = (1 * 10 + 2 * 20 + 3 * 30 + 4 * 40) / 10 = 300 / 10 = 30.
    """
    x = torch.tensor([[10.0, 20.0], [30.0, 40.0]]).view(1, 1, 2, 2)
    z = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).log().view(1, 1, 2, 2)
    pool = LIPPool2d(nn.Identity(), gate=None, kernel_size=2, stride=2, padding=0)
    torch.testing.assert_close(pool(x, z), torch.full((1, 1, 1, 1), 30.0))


def test_gate_by_hand():
    """z = -ln 3, 0, ln 3, 0: sigmoid 1/4, 1/2, 3/4, 1/2; with gate 4 ln 2 the weights are 2, 4, 8, 4."""
    x = torch.tensor([[9.0, 0.0], [0.0, 0.0]]).view(1, 1, 2, 2)
    z = torch.tensor([[-math.log(3), 0.0], [math.log(3), 0.0]]).view(1, 1, 2, 2)
    pool = LIPPool2d(nn.Identity(), gate=4 * math.log(2), kernel_size=2, stride=2, padding=0)
    torch.testing.assert_close(pool(x, z).item(), 9 * 2 / 18)
    torch.testing.assert_close(pool.logits(x, z), torch.tensor([[1.0, 2.0], [3.0, 2.0]]).view(1, 1, 2, 2) * math.log(2))


@pytest.mark.parametrize("window", [(3, 2, 1), (2, 2, 0)])
@pytest.mark.parametrize("value", [-90.0, 0.0, 7.5])
def test_constant_logits_are_average_pooling_over_valid_positions(window, value):
    x = images(2, 9, 12).double()
    k, s, p = window
    y = LIPPool2d(Constant(value), gate=None, kernel_size=k, stride=s, padding=p)(x)
    torch.testing.assert_close(y, F.avg_pool2d(x, k, s, p, count_include_pad=False))
    if p:
        assert not torch.allclose(y, F.avg_pool2d(x, k, s, p))  # torch's default divides by what lies outside, too


@pytest.mark.parametrize("kind", ["softpool", "detail", "average", "max"])
def test_other_poolings_are_their_formula(kind):
    """sum of F x over sum of F, in each window of the unpadded input."""
    x = images(1, 8, 10).double().relu()
    if kind == "average":
        importance = torch.ones_like(x)
    elif kind == "softpool":
        importance = x.exp()
    elif kind == "max":
        importance = (1e4 * x).clamp(max=600).exp()  # replaced below: the limit is exact
    else:
        mean = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        importance = 1 + ((x - mean) ** 2 + 1e-6).sqrt()
    pool = make_pool(Pooling(kind=kind), 3, kernel_size=2, padding=0).double()
    expected = F.avg_pool2d(importance * x, 2) / F.avg_pool2d(importance, 2)
    if kind == "max":
        expected = x.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
    torch.testing.assert_close(pool(x), expected)


def test_detail_logit_learns_both_parameters():
    logit = DetailLogit(3)
    LIPPool2d(logit, gate=None)(images()).square().sum().backward()
    assert logit.log_alpha.grad.abs().min() > 0 and logit.log_exponent.grad.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_finite_where_the_plain_composition_overflows(dtype):
    """Gated logits reach 12 and exp(12) = 162755, above float16's 65504; without a gate nothing bounds them."""
    x, z = (3 * images(1, 16, 16, seed=s).double().relu() for s in (0, 1))
    x, z = x.to(dtype), (40 * z).to(dtype)
    for gate in (12.0, None):
        l = z if gate is None else gate * z.sigmoid()
        plain = F.avg_pool2d(x * l.exp(), 3, 2, 1) / F.avg_pool2d(l.exp(), 3, 2, 1)
        assert not plain.isfinite().all() or (dtype == torch.bfloat16 and gate is not None)  # has float32's range
        y = LIPPool2d(nn.Identity(), gate=gate)(x, z)
        assert y.dtype == dtype and y.isfinite().all()
        exact = LIPPool2d(nn.Identity(), gate=gate)(x.double(), z.double())
        torch.testing.assert_close(y.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize(
    "logit, expected",
    [
        # convolution + scale and shift of its instance norm
        (ProjectionLogit(64), 64 * 64 + 128),
        (SimplifiedLogit(64), 9 * 64 * 64 + 128),
        (PlainLogit(64), 64 * 64 + 64),
        # 1x1 and 3x3 trunk, 1x1 head
        (BottleneckLogit(64, 16), 64 * 16 + 32 + 9 * 16 * 16 + 32 + 16 * 64 + 128),
    ],
)
def test_logit_modules(logit, expected):
    assert parameters(logit) == expected
    x = torch.randn(2, 64, 5, 7)
    z = logit(x)
    assert z.shape == x.shape
    if not isinstance(logit, PlainLogit):
        # instance norm last: each map has mean 0 and variance 1, in eval mode as well
        for out in (z, logit.eval()(x)):
            torch.testing.assert_close(out.mean(dim=(2, 3)), torch.zeros(2, 64), atol=1e-5, rtol=0)
            torch.testing.assert_close(out.var(dim=(2, 3), correction=0), torch.ones(2, 64), atol=1e-2, rtol=0)
        assert not list(logit.buffers())


@pytest.mark.parametrize("init", ["zero_conv", "zero_gamma"])
@pytest.mark.parametrize("kind", ["bottleneck", "projection", "simplified"])
def test_starts_as_average_pooling(init, kind):
    pool = make_pool(Pooling(logit=kind, width=8, init=init), 6)
    x = torch.randn(2, 6, 9, 11)
    assert torch.equal(pool.logits(x), torch.full_like(x, 6.0))  # 12 * sigmoid(0)
    torch.testing.assert_close(pool(x), F.avg_pool2d(x, 3, 2, 1, count_include_pad=False))
    random = make_pool(Pooling(logit=kind, width=8, init="random"), 6)
    assert random.logits(x).std() > 1


def test_first_gradients_of_the_two_starts():
    """The zero convolution's gradient passes 1 / sqrt(eps) = 316; zero scales give a gradient to themselves alone."""
    x, norms = torch.randn(4, 6, 9, 11), {}
    for init in ("zero_conv", "zero_gamma", "random"):
        torch.manual_seed(0)
        pool = make_pool(Pooling(logit="projection", init=init), 6)
        pool(x).square().sum().backward()
        norms[init] = pool.logit.weight.grad.norm()
        scale_gradient = pool.logit.norm.weight.grad
        assert (scale_gradient.abs().max() == 0) == (init == "zero_conv")
    assert norms["zero_gamma"] == 0
    assert norms["zero_conv"] > 30 * norms["random"]


def test_parts_of_the_bottleneck_setting():
    """3x3 at the stem whatever the width; heads without trunk in the branches; a trunk where nothing is shared."""
    spec = Pooling(width=8)
    assert isinstance(make_stem_pool(spec, 6).logit, SimplifiedLogit)
    head = make_branch_pool(spec, 6).logit
    assert isinstance(head, LogitConv) and head.weight.shape == (6, 8, 1, 1)
    assert isinstance(make_pool(spec, 6).logit, BottleneckLogit)
    assert isinstance(make_stem_pool(Pooling(logit="projection"), 6).logit, ProjectionLogit)


def test_refusals():
    with pytest.raises(ValueError, match="Pooling: kind must be one of lip, softpool, .*got 'mean'"):
        Pooling(kind="mean")
    with pytest.raises(ValueError, match="Pooling: logit must be one of"):
        Pooling(logit="conv")
    with pytest.raises(ValueError, match="Pooling: init must be one of"):
        Pooling(init="zero")
    with pytest.raises(ValueError, match="width .* got 0"):
        Pooling(width=0)
    with pytest.raises(ValueError, match="gate must be positive, or None"):
        Pooling(gate=0)
    with pytest.raises(ValueError, match="'zero_gamma' needs a norm"):
        make_pool(Pooling(logit="plain", init="zero_gamma"), 4)
    with pytest.raises(ValueError, match="init of logit modules must be one of"):
        start_at_zero(ProjectionLogit(4), "none")
