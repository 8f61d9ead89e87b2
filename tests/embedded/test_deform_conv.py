"""DeformConv and ModulatedDeformConv against a slow loop in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.layers import DeformConv, ModulatedDeformConv


def bilinear(image, y, x):
    """image: (C, H, W); y, x: 0-d. Cells outside are 0."""
    height, width = image.shape[1:]
    y0, x0 = int(y.detach().floor()), int(x.detach().floor())
    out = torch.zeros(image.shape[0], dtype=image.dtype)
    for i in (y0, y0 + 1):
        for j in (x0, x0 + 1):
            if 0 <= i < height and 0 <= j < width:
                out = out + image[:, i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return out


def sample_taps(conv, image, offset, mask, i, j):
    """(C, kh, kw): what the kernel sees at output cell (i, j); offset and mask of that cell."""
    (kh, kw), dgroups = conv.kernel_size, conv.deformable_groups
    stride, padding, dilation = (
        v[0] if isinstance(v, tuple) else v for v in (conv.stride, conv.padding, conv.dilation)
    )
    groups = []
    for d, part in enumerate(image.chunk(dgroups)):
        taps = []
        for k in range(kh * kw):
            cell = d * kh * kw + k
            y = i * stride - padding + (k // kw) * dilation + offset[2 * cell]
            x = j * stride - padding + (k % kw) * dilation + offset[2 * cell + 1]
            taps.append(bilinear(part, y, x) * (1 if mask is None else mask[cell]))
        groups.append(torch.stack(taps, dim=1).view(-1, kh, kw))
    return torch.cat(groups)


def slow_deform_conv(conv, x, offset, mask=None):
    """The defining sum, one sample at a time; differentiable in x, offset, mask and weight."""
    n, rows, columns = x.shape[0], *offset.shape[2:]
    out = []
    for b, i, j in itertools.product(range(n), range(rows), range(columns)):
        cell_mask = None if mask is None else mask[b, :, i, j]
        taps = sample_taps(conv, x[b], offset[b, :, i, j], cell_mask, i, j)
        pairs = zip(conv.weight.chunk(conv.groups), taps.chunk(conv.groups))
        out.append(torch.cat([torch.einsum("ochw,chw->o", w, t) for w, t in pairs]))
    out = torch.stack(out, dim=1).view(-1, n, rows, columns).transpose(0, 1)
    return out if conv.bias is None else out + conv.bias[:, None, None]


def inputs(conv, device="cpu"):
    g = torch.Generator().manual_seed(0)
    dgroups, size = conv.deformable_groups, (2, 3)
    shapes = [(2, 4, 4, 5), (2, 18 * dgroups, *size), (2, 9 * dgroups, *size)]
    # offsets of up to 2 cells, some beyond the border; never on a cell, where there is a kink
    tensors = [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]
    tensors = tensors if isinstance(conv, ModulatedDeformConv) else tensors[:2]
    return [t.to(device).requires_grad_() for t in tensors]


def build(cls, device="cpu", **kwargs):
    torch.manual_seed(0)
    kwargs = {"stride": 2, "padding": 1, **kwargs}
    conv = cls(4, 2, 3, **kwargs)
    if conv.bias is not None:
        nn.init.normal_(conv.bias)
    return conv.to(device=device, dtype=torch.float64)


@pytest.mark.embedded_only
@pytest.mark.parametrize("cls", [DeformConv, ModulatedDeformConv])
@pytest.mark.parametrize("kwargs", [{}, {"groups": 2, "deformable_groups": 2}, {"dilation": 2, "padding": 2}])
def test_equals_the_loop_forward_and_backward(device, cls, kwargs):
    conv, slow = build(cls, device, **kwargs), build(cls, **kwargs)
    args, slow_args = inputs(conv, device), inputs(slow)
    out, expected = conv(*args), slow_deform_conv(slow, *slow_args)
    torch.testing.assert_close(out.cpu(), expected)
    weight = torch.randn(expected.shape, dtype=torch.float64)
    grads = torch.autograd.grad(out, [*args, *conv.parameters()], weight.to(device))
    slow_grads = torch.autograd.grad(expected, [*slow_args, *slow.parameters()], weight)
    for grad, slow_grad in zip(grads, slow_grads):
        assert slow_grad.abs().max() > 0
        torch.testing.assert_close(grad.cpu(), slow_grad)


def test_deform_conv_forward_on_every_engine():
    conv = DeformConv(4, 2, 3, stride=2, padding=1)
    args = [t.detach().float() for t in inputs(conv)]
    with torch.no_grad():
        torch.testing.assert_close(conv(*args), slow_deform_conv(conv, *args), rtol=1e-4, atol=1e-5)


@pytest.mark.embedded_only
def test_offsets_by_hand(device):
    # kernel 1, weight 1, x = 10 * row + column: dy = 0.5 adds 5, dx = -0.25 takes 0.25, mask 2
    conv = ModulatedDeformConv(1, 1, 1, bias=False).to(device)
    nn.init.ones_(conv.weight)
    grid = 10.0 * torch.arange(4)[:, None] + torch.arange(5)
    x = grid.view(1, 1, 4, 5).to(device)
    offset = torch.tensor([0.5, -0.25], device=device).view(1, 2, 1, 1).expand(1, 2, 4, 5)
    mask = torch.full((1, 1, 4, 5), 2.0, device=device)  # no sigmoid inside
    out = conv(x, offset.contiguous(), mask)
    assert out[0, 0, 1, 2].item() == 2 * (12 + 5 - 0.25)
    plain = DeformConv(1, 1, 1).to(device)
    nn.init.ones_(plain.weight)
    assert plain(x, offset.contiguous())[0, 0, 1, 2].item() == 12 + 5 - 0.25


@pytest.mark.embedded_only
def test_without_offsets_it_is_a_convolution():
    conv = build(ModulatedDeformConv, groups=2)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    offset = torch.zeros(2, 18, 3, 3, dtype=torch.float64)
    out = conv(x, offset, torch.ones_like(offset[:, :9]))
    torch.testing.assert_close(out, F.conv2d(x, conv.weight, conv.bias, 2, 1, groups=2))


@pytest.mark.embedded_only
def test_norm_then_activation():
    conv = DeformConv(2, 4, 1, norm=nn.GroupNorm(2, 4), activation=F.relu)
    assert sorted(conv.state_dict()) == ["norm.bias", "norm.weight", "weight"]
    x, offset = torch.randn(2, 2, 3, 3), torch.zeros(2, 2, 3, 3)
    expected = F.relu(conv.norm(F.conv2d(x, conv.weight)))
    torch.testing.assert_close(conv(x, offset), expected)


def test_state_init_and_attributes():
    for cls in (DeformConv, ModulatedDeformConv):
        torch.manual_seed(3)
        conv = cls(4, 6, 3, 2, 1, 2, 2, 1)
        torch.manual_seed(3)
        expected = nn.init.kaiming_uniform_(torch.empty(6, 2, 3, 3), nonlinearity="relu")
        assert torch.equal(conv.weight, expected)
    assert sorted(conv.state_dict()) == ["bias", "weight"] and not conv.bias.any()
    assert (conv.stride, conv.padding, conv.dilation) == (2, 1, 2)  # as given
    plain = DeformConv(4, 6, 3, 2, 1, 2, 2, 1)
    assert (plain.stride, plain.padding, plain.dilation) == ((2, 2), (1, 1), (2, 2))
    assert plain.kernel_size == conv.kernel_size == (3, 3)
    assert sorted(ModulatedDeformConv(4, 6, 3, bias=False).state_dict()) == ["weight"]


def test_repr():
    assert repr(DeformConv(3, 10, kernel_size=3, padding=1, deformable_groups=2)) == (
        "DeformConv(in_channels=3, out_channels=10, kernel_size=(3, 3), stride=(1, 1), "
        "padding=(1, 1), dilation=(1, 1), groups=1, deformable_groups=2, bias=False)"
    )
    assert repr(ModulatedDeformConv(3, 10, kernel_size=3, padding=1, deformable_groups=2)) == (
        "ModulatedDeformConv(in_channels=3, out_channels=10, kernel_size=(3, 3), stride=1, "
        "padding=1, dilation=1, groups=1, deformable_groups=2, bias=True)"
    )


def test_empty_batch_keeps_the_graph():
    conv = DeformConv(2, 3, 3, stride=2, padding=1, norm=nn.BatchNorm2d(3))
    x = torch.zeros(0, 2, 5, 8, requires_grad=True)
    out = conv(x, torch.zeros(0, 18, 3, 4))
    assert out.shape == (0, 3, 3, 4)  # (5 + 2 - 3) // 2 + 1, (8 + 2 - 3) // 2 + 1
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert conv.norm.running_mean.tolist() == [0, 0, 0]


@pytest.mark.embedded_only
def test_empty_batch_gives_every_parameter_a_gradient():
    conv = ModulatedDeformConv(2, 3, 3, dilation=2, norm=nn.GroupNorm(1, 3))
    x = torch.zeros(0, 2, 5, 8)
    out = conv(x, torch.zeros(0, 18, 1, 4), torch.zeros(0, 9, 1, 4))
    assert out.shape == (0, 3, 1, 4)  # 5 - 2 * 2, 8 - 2 * 2
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in conv.parameters())


def test_refuses_bias_and_groups():
    with pytest.raises(AssertionError):
        DeformConv(2, 2, 1, bias=True)
    for channels in ((2, 3), (3, 2)):
        with pytest.raises(AssertionError):
            DeformConv(*channels, 1, groups=2)


@pytest.mark.embedded_only
def test_messages():
    with pytest.raises(AssertionError, match="has no bias"):
        DeformConv(2, 2, 1, bias=True)
    with pytest.raises(AssertionError, match="3 channels do not split into 2 groups"):
        DeformConv(2, 3, 1, groups=2)
    conv, x = ModulatedDeformConv(4, 2, 1), torch.zeros(1, 4, 3, 3)
    with pytest.raises(ValueError, match="offset of 2 channels.*4, 3, 3"):  # would be 2 groups
        conv(x, torch.zeros(1, 4, 3, 3), torch.zeros(1, 1, 3, 3))
    with pytest.raises(ValueError, match="mask of 1 channels"):
        conv(x, torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3))
