"""soft_roi_pool against its equation in float64, its invariances, its errors."""

import math

import pytest
import torch
from torch.nn import functional as F

from shared.ops.soft_roi_pool import soft_roi_pool, soft_roi_pool_reference

SIZES = {  # N, L, C', D, H, W: tails, one position, several chunks (CPU: 2048), several blocks of 16
    "small": (2, 3, 5, 2, 7, 9),
    "one position": (2, 3, 5, 2, 1, 1),
    "chunks": (1, 4, 2, 3, 45, 103),
    "blocks": (2, 18, 35, 1, 13, 23),
    "vectors": (1, 16, 16, 4, 20, 30),
    "empty": (0, 3, 5, 2, 7, 9),
}


def make_inputs(device, size="small", dtype=torch.float64, grad=True):
    n, groups, channels, maps, h, w = SIZES[size]
    rng = torch.Generator().manual_seed(0)
    shapes = [(n, groups, maps, h, w), (n, channels, maps, h, w)]
    scores, values = (torch.randn(s, generator=rng, dtype=torch.float64).to(device, dtype) for s in shapes)
    return (2 * scores).requires_grad_(grad), values.requires_grad_(grad)


def make_mask(scores):
    """Half of the positions; the last image has none."""
    n, h, w = scores.shape[0], *scores.shape[3:]
    mask = torch.rand(n, h, w, generator=torch.Generator().manual_seed(1)) < 0.5
    if n:
        mask[0, 0, 0] = True
        mask[-1] = n == 1
    return mask.to(scores.device)


def forward_backward(function, inputs, *args, **kwargs):
    out = function(*inputs, *args, **kwargs)
    outs = out if isinstance(out, tuple) else (out,)
    rng = torch.Generator().manual_seed(2)
    weights = [torch.randn(o.shape, generator=rng, dtype=torch.float64).to(o) for o in outs]
    return [o.detach() for o in outs] + list(torch.autograd.grad(outs, inputs, weights))


def assert_close(got, expected, **tolerance):
    assert len(got) == len(expected)
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b.to(a.dtype), **tolerance)


@pytest.mark.parametrize("return_maps", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_equals_reference_forward_and_backward(device, size, masked, return_maps):
    inputs = make_inputs(device, size)
    mask = make_mask(inputs[0]) if masked else None
    args = (0.7, mask, return_maps)
    assert_close(
        forward_backward(soft_roi_pool, inputs, *args), forward_backward(soft_roi_pool_reference, inputs, *args)
    )


@pytest.mark.parametrize("size", ["small", "chunks", "vectors"])
@pytest.mark.parametrize(
    "dtype, rtol, atol",
    # float32: sums of up to 4635 rounded terms. Half types: the inputs are exact in both, sums are float32, so only the
    # rounding of the results is left: half a unit in the last place, 2^-11 or 2^-8 relative; atol: float16 subnormals.
    [(torch.float32, 2e-5, 1e-6), (torch.float16, 2e-3, 1e-6), (torch.bfloat16, 8e-3, 1e-6)],
)
def test_float32_and_half(device, size, dtype, rtol, atol):
    inputs = make_inputs(device, size, dtype)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    n, groups, maps = inputs[0].shape[:3]
    grads = torch.randn(n, groups, inputs[1].shape[1], generator=torch.Generator().manual_seed(3)).to(device, dtype)
    for mask in (None, make_mask(inputs[0])):
        out, expected = soft_roi_pool(*inputs, 0.7, mask), soft_roi_pool_reference(*wide, 0.7, mask)
        assert out.dtype == dtype and out.shape == (n, groups, inputs[1].shape[1])
        got = [out.detach(), *torch.autograd.grad(out, inputs, grads)]
        assert [g.dtype for g in got] == [dtype] * 3
        assert_close(
            got, [expected.detach(), *torch.autograd.grad(expected, wide, grads.double())], rtol=rtol, atol=atol
        )


def test_maps_of_half_scores_are_float32(device):
    inputs = make_inputs(device, "chunks", torch.float16)
    pooled, maps = soft_roi_pool(*inputs, return_maps=True)
    assert pooled.dtype == torch.float16 and maps.dtype == torch.float32
    torch.testing.assert_close(maps.flatten(3).sum(-1), torch.ones(1, 4, 3, device=device))


def test_by_hand(device):
    # One group, one channel, D = 2 maps of 2 positions, T = 2.
    # Map 0: scores (0, 2 ln 3) / 2 -> e = (1, 3), M = (1/4, 3/4); values (4, 8) -> 1 + 6 = 7.
    # Map 1: equal scores, M = (1/2, 1/2); values (2, 6) -> 4. pooled = 7 + 4 = 11.
    # d/d values = M. d/d scores = M * (values - pooled of the map) / T:
    # map 0 (1/4 * -3, 3/4 * 1) / 2 = (-0.375, 0.375), map 1 (1/2 * -2, 1/2 * 2) / 2 = (-0.5, 0.5).
    scores = torch.tensor([0, 2 * math.log(3), 5, 5], dtype=torch.float64, device=device).view(1, 1, 2, 1, 2)
    values = torch.tensor([4, 8, 2, 6], dtype=torch.float64, device=device).view(1, 1, 2, 1, 2)
    inputs = scores.requires_grad_(), values.requires_grad_()
    out = soft_roi_pool(*inputs, temperature=2.0)
    grads = torch.autograd.grad(out, inputs, torch.ones_like(out))
    assert out.item() == pytest.approx(11)
    torch.testing.assert_close(grads[0].flatten(), torch.tensor([-0.375, 0.375, -0.5, 0.5]).to(scores))
    torch.testing.assert_close(grads[1].flatten(), torch.tensor([0.25, 0.75, 0.5, 0.5]).to(scores))


def test_gradcheck(device):
    n, groups, channels, maps, h, w = 2, 3, 2, 2, 2, 3
    scores = torch.randn(n, groups, maps, h, w, dtype=torch.float64, device=device, requires_grad=True)
    values = torch.randn(n, channels, maps, h, w, dtype=torch.float64, device=device, requires_grad=True)
    mask = make_mask(scores)
    assert torch.autograd.gradcheck(lambda s, v: soft_roi_pool(s, v, 0.5), (scores, values))
    assert torch.autograd.gradcheck(lambda s, v: soft_roi_pool(s, v, 0.5, mask, True), (scores, values))


def test_opcheck(device):
    op, backward = torch.ops.d2ops.soft_roi_pool, torch.ops.d2ops.soft_roi_pool_backward
    utils = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    for mask, maps in ((False, False), (True, True)):
        scores, values = make_inputs(device)
        mask = make_mask(scores) if mask else None
        torch.library.opcheck(op.default, (scores, values, 0.7, mask, maps), test_utils=utils)
        pooled, per_map, stats, m = (x.detach() for x in op(scores, values, 0.7, mask, maps))
        saved = (scores.detach(), values.detach(), mask, per_map, stats, 0.7)
        for needed in ((True, True), (True, False), (False, True)):
            args = (torch.randn_like(pooled), m if maps else None, *saved, *needed)
            torch.library.opcheck(backward.default, args, test_utils=("test_schema", "test_faketensor"))


def test_compiles_in_one_graph(device):
    inputs = make_inputs(device)
    compiled = torch.compile(
        lambda s, v: soft_roi_pool(s, v, 0.7, return_maps=True), fullgraph=True, backend="aot_eager"
    )
    assert_close(forward_backward(compiled, inputs), forward_backward(soft_roi_pool, inputs, 0.7, return_maps=True))


@pytest.mark.parametrize("masked", [False, True])
def test_same_bits_twice_and_with_any_number_of_threads(device, masked):
    inputs = make_inputs(device, "chunks", torch.float32)
    mask = make_mask(inputs[0]) if masked else None
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(forward_backward(soft_roi_pool, inputs, 0.7, mask, True))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_non_contiguous_inputs_and_gradients(device):
    scores, values = make_inputs(device, grad=False)
    last = scores.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2).requires_grad_()  # channels last
    wide = values[:, :1].expand(-1, 4, -1, -1, -1).requires_grad_()
    assert not last.is_contiguous() and not wide.is_contiguous()
    mask = make_mask(scores).transpose(1, 2).contiguous().transpose(1, 2)
    copies = [last.detach().contiguous().requires_grad_(), wide.detach().contiguous().requires_grad_()]
    grads = [
        torch.autograd.grad(soft_roi_pool(s, v, 0.7, mask).sum(), (s, v)) for s, v in ((last, wide), copies)
    ]  # the gradient of a sum is expanded
    assert_close(*grads)


@pytest.mark.parametrize("which", [0, 1])
def test_only_one_input_requires_grad(device, which):
    inputs = make_inputs(device)
    expected = forward_backward(soft_roi_pool, inputs, 0.7)[1 + which]
    inputs[1 - which].requires_grad_(False)
    out = soft_roi_pool(*inputs, 0.7)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(out)
    torch.testing.assert_close(torch.autograd.grad(out, inputs[which], weight)[0], expected)


def test_gradient_through_the_maps_alone(device):
    inputs, weight = make_inputs(device), torch.randn(2, 3, 2, 7, 9, dtype=torch.float64, device=device)
    grads = [
        torch.autograd.grad(f(*inputs, 0.7, None, True)[1], inputs, weight, allow_unused=True, materialize_grads=True)
        for f in (soft_roi_pool, soft_roi_pool_reference)
    ]
    assert_close(*grads)


def test_second_derivative_is_an_error(device):
    inputs = make_inputs(device)
    grad = torch.autograd.grad(soft_roi_pool(*inputs).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="has no derivative"):
        grad[0].sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_autocast_keeps_the_dtype(device, dtype):
    inputs = make_inputs(device, dtype=dtype)
    expected = forward_backward(soft_roi_pool, inputs)
    with torch.autocast(device, dtype=torch.bfloat16):
        got = forward_backward(soft_roi_pool, inputs)
    assert got[0].dtype == dtype and all(torch.equal(a, b) for a, b in zip(got, expected))


@pytest.mark.parametrize("size", ["small", "chunks"])
def test_ones_pool_to_the_number_of_maps(device, size):
    scores, values = make_inputs(device, size, torch.float32, grad=False)
    out = soft_roi_pool(scores, torch.ones_like(values))
    assert torch.equal(out, torch.full_like(out, scores.shape[2]))  # exactly: e and e * 1 are summed alike


def test_uniform_scores_give_averages(device):
    scores, values = make_inputs(device, grad=False)
    out = soft_roi_pool(torch.full_like(scores, 3.0), values)
    expected = values.mean((3, 4)).sum(2)[:, None].expand_as(out)
    torch.testing.assert_close(out, expected)


def test_bounded_by_the_largest_values(device):
    scores, values = make_inputs(device, "chunks", torch.float32, grad=False)
    bound = values.abs().amax((3, 4)).sum(2)
    assert (soft_roi_pool(scores, values, 0.01).abs() <= bound[:, None] * (1 + 1e-6)).all()


def test_a_constant_per_map_changes_nothing(device):
    inputs = make_inputs(device)
    shift = torch.randn(2, 3, 2, 1, 1, dtype=torch.float64, device=device)
    shifted = (inputs[0].detach() + shift).requires_grad_(), inputs[1]
    assert_close(forward_backward(soft_roi_pool, inputs, 0.7), forward_backward(soft_roi_pool, shifted, 0.7))


def test_low_temperature_selects_the_best_position(device):
    scores, values = make_inputs(device, grad=False)
    n, groups, maps, h, w = scores.shape
    rank = torch.rand(n, groups, maps, h * w, generator=torch.Generator().manual_seed(4)).argsort(-1).to(device)
    best = rank.argmax(-1)  # scores 0, 1, 2, ...: at T = 0.02 the second one weighs e^-50
    picked = values.flatten(3)[:, None].expand(n, groups, -1, maps, h * w)
    picked = picked.gather(-1, best[:, :, None, :, None].expand(n, groups, values.shape[1], maps, 1))
    out = soft_roi_pool(rank.view_as(scores).double(), values, 0.02)
    torch.testing.assert_close(out, picked.squeeze(-1).sum(-1))


def test_equals_attention_with_the_scores_as_mask(device):
    scores, values = make_inputs(device, grad=False)
    v = values.flatten(3).permute(0, 2, 3, 1)  # N, D, P, C'
    bias = scores.flatten(3).transpose(1, 2) / 0.7  # N, D, L, P
    query = v.new_zeros(*bias.shape[:3], v.shape[-1])
    expected = F.scaled_dot_product_attention(query, torch.zeros_like(v), v, attn_mask=bias).sum(1)
    torch.testing.assert_close(soft_roi_pool(scores, values, 0.7), expected)


def test_order_of_positions_does_not_matter(device):
    scores, values = make_inputs(device, grad=False)
    order = torch.randperm(63, generator=torch.Generator().manual_seed(5)).to(device)
    permuted = [x.flatten(3)[..., order].view_as(x) for x in (scores, values)]
    torch.testing.assert_close(soft_roi_pool(*permuted), soft_roi_pool(scores, values))


def test_mask_equals_cropping(device):
    scores, values = make_inputs(device)
    mask = torch.zeros(2, 7, 9, dtype=torch.bool, device=device)
    mask[:, :4, :5] = True
    crop = [x.detach()[..., :4, :5].contiguous().requires_grad_() for x in (scores, values)]
    padded = forward_backward(soft_roi_pool, (scores, values), 0.7, mask)
    assert_close([padded[0]] + [g[..., :4, :5] for g in padded[1:]], forward_backward(soft_roi_pool, crop, 0.7))
    assert all((g.masked_fill(mask[:, None, None], 0) == 0).all() for g in padded[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_image_without_valid_position_gives_zeros(device, dtype):
    inputs = make_inputs(device, dtype=dtype)
    mask = torch.ones(2, 7, 9, dtype=torch.bool, device=device)
    mask[1] = False
    results = forward_backward(soft_roi_pool, inputs, 0.7, mask, True)
    assert len(results) == 4
    for result in results:
        assert (result[1] == 0).all() and result[0].abs().sum() > 0 and result.isfinite().all()


def test_huge_scores_stay_finite(device):
    scores, values = make_inputs(device, "chunks", torch.float32, grad=False)
    for factor in (1e4, -1e4, 1e30):
        inputs = (scores * factor).requires_grad_(), values.clone().requires_grad_()
        results = forward_backward(soft_roi_pool, inputs, 1.0, None, True)
        assert all(r.isfinite().all() for r in results)
        torch.testing.assert_close(results[1].flatten(3).sum(-1), torch.ones(1, 4, 3, device=device))


def test_reference_path(device, monkeypatch):
    inputs = make_inputs(device, dtype=torch.bfloat16)
    expected = forward_backward(soft_roi_pool, inputs, 0.7, None, True)
    monkeypatch.setenv("SHARED_OPS", "reference")
    got = forward_backward(soft_roi_pool, inputs, 0.7, None, True)
    assert [x.dtype for x in got] == [x.dtype for x in expected]
    assert_close(got, expected, rtol=8e-3, atol=1e-4)  # one unit of bfloat16


BAD_INPUTS = [
    (lambda s, v: (s[0], v), ValueError, r"scores has shape \[3, 2, 7, 9\]; expected 5 dimensions"),
    (lambda s, v: (s, v[0]), ValueError, r"values has shape \[5, 2, 7, 9\]; expected 5 dimensions"),
    (lambda s, v: (s, v[..., 1:]), ValueError, r"values has shape .* and scores .*; they must agree"),
    (lambda s, v: (s, v[:1]), ValueError, r"values has shape .* and scores .*; they must agree"),
    (lambda s, v: (s[..., :0], v[..., :0]), ValueError, "no size but N may be 0"),
    (lambda s, v: (s[:, :0], v), ValueError, "no size but N may be 0"),
    (lambda s, v: (s, v.half()), TypeError, "values has dtype Half and scores has Float"),
    (lambda s, v: (s.int(), v.int()), TypeError, "scores has dtype Int; expected float32"),
    (lambda s, v: (s, v, 0.0), ValueError, "temperature is 0; expected a finite number above 0"),
    (lambda s, v: (s, v, float("nan")), ValueError, "temperature is nan"),
    (lambda s, v: (s, v, 1.0, torch.ones(2, 9, 7, dtype=torch.bool, device=s.device)), ValueError, "mask has shape"),
    (lambda s, v: (s, v, 1.0, torch.ones(2, 7, 9, device=s.device)), TypeError, "mask has dtype Float; expected bool"),
]


@pytest.mark.parametrize("change, error, message", BAD_INPUTS)
def test_bad_input_is_named(device, change, error, message):
    inputs = make_inputs(device, dtype=torch.float32, grad=False)
    with pytest.raises(error, match=message):
        soft_roi_pool(*change(*inputs))


@pytest.mark.parametrize("name", ["values", "mask"])
def test_two_devices_are_named(device, name):
    scores, values = make_inputs(device, grad=False)
    inputs = {"values": values, "mask": make_mask(scores)}
    inputs[name] = inputs[name].to("meta")
    keys = torch._C.DispatchKeySet(torch._C._parse_dispatch_key(device.upper()))  # meta tensors choose the fake kernel
    with pytest.raises(ValueError, match=f"{name} is on meta and scores on {device}"):
        op = torch.ops.d2ops.soft_roi_pool.default
        op.redispatch(keys, scores, inputs["values"], 1.0, inputs["mask"], False)


@pytest.mark.parametrize("which, name", [(0, "scores"), (1, "values")])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("size", ["small", "chunks"])
def test_nan_is_named(size, bad, which, name):
    inputs = make_inputs("cpu", size, torch.float32, grad=False)
    inputs[which][0, 1, 1, 3, 2] = bad
    with pytest.raises(ValueError, match=f"{name} of shape .* holds NaN or infinite"):
        soft_roi_pool(*inputs)
