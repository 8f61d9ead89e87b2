"""MSFM: its definition, sizes, start, errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from projects.MSFM import MSFM, MSFMSpec, SafeGroupNorm
from projects.MSFM.module import scaled
from tests.projects.msfm.nets import CHANNELS, GROUPS, RATIO, make_msfm, make_x
from tests.projects.msfm.reference import msfm_reference

SCALES = [(0.5, 0.7, 1.0), (0.5, 0.6, 0.7, 0.85, 1.0), (1.0, 1.4, 2.0), (0.5, 0.7, 1.4, 2.0), (0.5, 0.7, 1.0, 1.4, 2.0)]
KINDS = [
    {},
    {"fusion": "cat"},
    {"conv_num_small": 1},
    {"squeeze_norm": False},
    {"squeeze_bias": False},
    {"align_corners": True},
    {"zero_init": False, "out_relu": True},
    {"scales": (1.0,)},
    {"scales": (0.7,), "fusion": "cat"},
]


@pytest.mark.parametrize("impl", ["plain", "folded"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_definition(kind, impl):
    """In float64: 10 * 0.7 is 7, as 7 * 1.4 (9.8) is 9 and not 10."""
    module, x = make_msfm(impl=impl, **kind), make_x(7, 10)
    expected = msfm_reference(module, x)
    torch.testing.assert_close(module(x), expected)
    assert (expected - x).abs().mean() > 0.1


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("fusion", ["add", "cat"])
def test_shapes_of_every_size(scales, fusion, device):
    """One image, t = G: instance norm of branches down to 1 x 1, in training and evaluation."""
    module = make_msfm(groups=8, scales=scales, fusion=fusion).float().to(device)
    for size in ((1, 1), (1, 2), (2, 1), (3, 3), (2, 7), (13, 11)):
        for mode in (True, False):
            x = make_x(*size, n=1).float().to(device)
            y = module.train(mode)(x)
            assert y.shape == x.shape and y.dtype == x.dtype and y.device == x.device
            assert torch.isfinite(y).all() and not torch.equal(x, y)


@pytest.mark.parametrize("size", [(1, 1), (3, 2)])
def test_tiny_maps_equal_the_definition_whatever_the_batch(size):
    module, x = make_msfm(groups=8), make_x(*size)
    expected = msfm_reference(module, x)
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module(x[:1]), expected[:1])
    module(x[:1]).square().sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


def test_group_norm_of_single_values():
    """The bias, for one image as for two; torch's own refuses one."""
    norm = SafeGroupNorm(3, 3).double()
    nn.init.normal_(norm.bias)
    x = make_x(1, 1, channels=3).requires_grad_()
    torch.testing.assert_close(norm(x), norm.bias.view(1, 3, 1, 1).expand(2, 3, 1, 1))
    torch.testing.assert_close(norm(x[:1]), norm(x)[:1])
    with pytest.raises(ValueError, match="more than 1 value"):
        nn.GroupNorm(3, 3).double()(x[:1])
    weight_grad, x_grad, bias_grad = torch.autograd.grad(norm(x).sum(), [norm.weight, x, norm.bias])
    assert torch.equal(weight_grad, torch.zeros(3)) and not x_grad.any() and bias_grad.tolist() == [2, 2, 2]
    y = make_x(1, 2, channels=3)
    torch.testing.assert_close(norm(y), F.group_norm(y, 3, norm.weight, norm.bias))


@pytest.mark.parametrize(
    "side, scale, expected",
    # in binary 90 * 0.7, 330 * 0.7, 45 * 1.4 and 85 * 1.4 are a little below 63, 231, 63 and 119
    [(90, 0.7, 63), (330, 0.7, 231), (45, 1.4, 63), (85, 1.4, 119), (25, 0.5, 12), (1, 0.5, 1), (13, 0.85, 11)],
)
def test_size_rule(side, scale, expected):
    assert scaled(side, scale) == expected


def branch_inputs(module, x):
    seen = []
    handles = [b.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for b in module.branches]
    module(x)
    for handle in handles:
        handle.remove()
    return seen


def test_half_scale_is_average_pooling_and_scale_1_no_copy():
    module = make_msfm(scales=(0.5, 1.0, 1.4))
    thin = []
    module.squeeze.register_forward_hook(lambda _, args, out: thin.append(out))
    half, same, larger = branch_inputs(module, make_x(6, 8))
    torch.testing.assert_close(half, F.avg_pool2d(thin[0], 2))
    assert same is thin[0] and larger.shape[2:] == (8, 11)


@pytest.mark.parametrize("impl", ["plain", "folded"])
@pytest.mark.parametrize("fusion", ["add", "cat"])
def test_starts_as_the_identity_and_learns(impl, fusion):
    """Only the last norm gets a gradient at first; after a step everything does."""
    torch.manual_seed(0)
    spec = MSFMSpec(impl=impl, fusion=fusion, norm_groups=(GROUPS,) * 3)
    module = MSFM(CHANNELS, ratio=RATIO, norm_groups=GROUPS, spec=spec)
    x, target = make_x().float(), make_x(seed=2).float()
    assert torch.equal(module(x), x)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    last = {"unsqueeze.norm.weight", "unsqueeze.norm.bias"}
    # a bias before a norm of groups of one channel would have none at all; here groups have two and more
    for expected in (last, {name for name, _ in module.named_parameters()}):
        optimizer.zero_grad()
        (module(x) - target).square().mean().backward()
        assert {name for name, p in module.named_parameters() if p.grad.abs().max() > 0} == expected
        optimizer.step()


@pytest.mark.parametrize("impl", ["plain", "folded"])
def test_parts_and_their_fill(impl):
    torch.manual_seed(0)
    module = MSFM(64, ratio=2, norm_groups=8, spec=MSFMSpec(conv_num_small=1, impl=impl))
    assert [len(branch) for branch in module.branches] == [1, 1, 1, 2, 2]  # the paper's 2*
    assert len({id(p) for p in module.parameters()}) == 4 * (1 + 7 + 1) == len(module.state_dict())
    norms = [m for m in module.modules() if isinstance(m, nn.GroupNorm)]
    assert all(isinstance(n, SafeGroupNorm) and n.num_groups == 8 and n.eps == 1e-5 for n in norms) and len(norms) == 9
    conv = module.branches[0][0]
    # He's normal fill by fan out, 9 * 32
    assert conv.weight.std().item() == pytest.approx((2 / 288) ** 0.5, rel=0.05) and not conv.bias.any()
    assert [n.weight.abs().max().item() for n in norms] == [1.0] * 8 + [0.0]


def test_module_parameters():
    """C t + 3t + sum k (9 t^2 + 3t) + m t C + 3C, with C = 24, t = 8: 192 + 24 + 600 k + 192 m + 72."""
    for spec, expected in (
        ({"conv_num": 1, "scales": (0.5, 1.0)}, 192 + 24 + 2 * 600 + 192 + 72),
        ({"conv_num": 2, "scales": (0.5, 1.0), "fusion": "cat"}, 192 + 24 + 4 * 600 + 2 * 192 + 72),
        ({"conv_num": 3, "scales": (2.0,)}, 192 + 24 + 3 * 600 + 192 + 72),
        ({"conv_num": 1, "scales": (1.0,), "squeeze_norm": False}, 192 + 8 + 600 + 192 + 72),
        ({"conv_num": 1, "scales": (1.0,), "squeeze_bias": False}, 192 + 16 + 600 + 192 + 72),
    ):
        assert sum(p.numel() for p in make_msfm(**spec).parameters()) == expected


@pytest.mark.parametrize("impl", ["plain", "folded"])
def test_half_precision(impl):
    """bfloat16 keeps 8 bits: errors of a few hundredths of the correction's scale. The dtype of x stays."""
    module, x = make_msfm(impl=impl).float(), make_x(9, 11).float()
    expected = msfm_reference(make_msfm(), x.double()).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, half = module(x), module(x.bfloat16())
    pure = module.bfloat16()(x.bfloat16())
    assert out.dtype == torch.float32 and half.dtype == pure.dtype == torch.bfloat16
    for y in (out, half, pure):
        assert (y.float() - expected).abs().mean() < 0.02 * (expected - x).abs().mean()


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"positions": (2, 4)}, "positions must be different ones of"),
        ({"positions": ()}, "positions must be different ones of"),
        ({"positions": (2, 2)}, "positions must be different ones of"),
        ({"stages": ("res3", "res6"), "ratios": (1, 2)}, "stages must be different ones of"),
        ({"ratios": (16, 32)}, "ratios needs one entry for each of stages"),
        ({"norm_groups": (32,)}, "norm_groups needs three entries"),
        ({"fusion": "mul"}, "fusion must be one of add, cat, got 'mul'"),
        ({"impl": "fast"}, "impl must be one of folded, plain"),
        ({"scales": ()}, "scales must be one or more positive numbers"),
        ({"scales": (1.0, 0.0)}, "scales must be one or more positive numbers"),
        ({"conv_num": 0}, "conv_num must be at least 1"),
        ({"conv_num_small": -1}, "conv_num_small at least 0"),
        ({"squeeze_bias": False, "squeeze_norm": False}, "needs squeeze_bias, squeeze_norm or both"),
        ({"out_relu": True}, "out_relu with zero_init would stay the identity for ever"),
    ],
)
def test_spec_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MSFMSpec(**kwargs)


def test_module_refuses():
    with pytest.raises(ValueError, match="here: its 64 channels cannot be squeezed by a ratio of 5"):
        MSFM(64, ratio=5, norm_groups=1, place="here")
    with pytest.raises(ValueError, match="here: G=3 groups must divide both t=64/8=8 and C=64"):
        MSFM(64, ratio=8, norm_groups=3, place="here")
