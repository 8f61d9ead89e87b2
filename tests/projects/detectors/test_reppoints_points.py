"""Points to boxes, and the convolution at points."""

import math

import pytest
import torch
import torch.nn.functional as F

from projects.Detectors.reppoints_points import PointConv2d, PointsToBox, scale_gradient

FORMS = ["_by_deform_conv", "_by_grid_sample"]


def random(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def as_points(*yx):
    return torch.tensor(yx, dtype=torch.float64).flatten()


def test_scaled_gradient_leaves_the_value():
    x = random(50, scale=1e3).requires_grad_()
    y = scale_gradient(x, 0.1)
    assert torch.equal(y, x)
    assert torch.allclose(torch.autograd.grad(y.sum(), x)[0], torch.full((50,), 0.1, dtype=torch.float64))


def test_moment_box_by_hand():
    """A rectangle's corners: y in 1, 5 and x in 0, 4, each twice."""
    box = PointsToBox("moment").double()
    points = as_points((1, 0), (1, 4), (5, 0), (5, 4))
    # mean (3, 2); four deviations of 2: variance 16 / 3, unbiased
    std = math.sqrt(16 / 3)
    torch.testing.assert_close(box(points), torch.tensor([2 - std, 3 - std, 2 + std, 3 + std]).double())
    with torch.no_grad():
        box.moment_transfer.copy_(torch.tensor([math.log(2), math.log(0.5)]))  # x, then y
    expected = [2 - 2 * std, 3 - std / 2, 2 + 2 * std, 3 + std / 2]
    torch.testing.assert_close(box(points), torch.tensor(expected).double())


def test_min_and_max_by_hand():
    points = as_points((1, 7), (2, -3), (4, 0), (3, 5), (-9, 40), (50, -60))
    assert PointsToBox("minmax")(points).tolist() == [-60, -9, 40, 50]
    assert PointsToBox("partial_minmax")(points).tolist() == [-3, 1, 7, 4]  # the first four


@pytest.mark.parametrize("method", PointsToBox.METHODS)
def test_gradients(method):
    box = PointsToBox(method, moment_grad=1.0).double()
    assert torch.autograd.gradcheck(box, random(2, 3, 18).requires_grad_())
    if method == "moment":
        points = random(5, 18)
        with torch.no_grad():
            box.moment_transfer.copy_(random(2, seed=1))

        def of_transfer(transfer):
            return torch.func.functional_call(box, {"moment_transfer": transfer}, (points,))

        assert torch.autograd.gradcheck(of_transfer, box.moment_transfer)


def test_moment_grad_scales_the_gradient_of_the_transfer_alone():
    grads = []
    for factor in (1.0, 0.01):
        box, points = PointsToBox("moment", moment_grad=factor).double(), random(7, 18).requires_grad_()
        box(points).square().sum().backward()
        grads.append((box.moment_transfer.grad, points.grad))
    torch.testing.assert_close(grads[1][0], 0.01 * grads[0][0])
    assert grads[0][0].abs().min() > 1e-3
    assert torch.equal(grads[0][1], grads[1][1])


@pytest.mark.parametrize("method", PointsToBox.METHODS)
def test_points_that_coincide_have_a_gradient(method):
    points = torch.zeros(3, 18, requires_grad=True)
    box = PointsToBox(method)(points)
    assert box.abs().max() == 0
    box.sum().backward()
    assert torch.isfinite(points.grad).all()


@pytest.mark.parametrize("method", PointsToBox.METHODS)
def test_boxes_move_scale_and_mirror_with_their_points(method):
    box, points = PointsToBox(method).double(), random(6, 9, 2)
    before = box(points.flatten(1))
    moved = box((points * 3 + torch.tensor([5.0, -2.0]).double()).flatten(1))  # y by 5, x by -2
    torch.testing.assert_close(moved, before * 3 + torch.tensor([-2.0, 5.0, -2.0, 5.0]).double())
    mirrored = box((points * torch.tensor([1.0, -1.0]).double()).flatten(1))
    torch.testing.assert_close(mirrored, before[:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1.0, -1.0, 1.0]).double())
    transposed = box(points.flip(2).flatten(1))
    torch.testing.assert_close(transposed, before[:, [1, 0, 3, 2]])


def test_order_of_points_matters_to_partial_minmax_alone():
    points, order = random(6, 9, 2), torch.tensor([8, 1, 7, 3, 4, 5, 6, 2, 0])
    for method in PointsToBox.METHODS:
        box = PointsToBox(method).double()
        same = torch.allclose(box(points.flatten(1)), box(points[:, order].flatten(1)))
        assert same == (method != "partial_minmax"), method


def test_half_precision_points_give_float32_boxes():
    points = random(4, 18, scale=8.0).half()
    box = PointsToBox("moment")
    assert box(points).dtype == torch.float32
    torch.testing.assert_close(box(points).double(), box(points.double()), rtol=1e-6, atol=1e-5)


def test_unknown_method():
    with pytest.raises(ValueError, match="method must be one of moment, minmax, partial_minmax, got 'mean'"):
        PointsToBox("mean")


def conv_inputs(num_points=9, shape=(2, 3, 5, 7), out_channels=4):
    conv = PointConv2d(shape[1], out_channels, num_points).double()
    with torch.no_grad():
        conv.weight.copy_(random(*conv.weight.shape, seed=1))
    return conv, random(*shape)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_points", [9, 25])
def test_regular_points_are_an_ordinary_convolution(form, num_points):
    conv, x = conv_inputs(num_points)
    points = conv.grid.expand(len(x), -1, *x.shape[2:])
    expected = F.conv2d(x, conv.weight, padding=conv.padding)
    torch.testing.assert_close(getattr(conv, form)(x, points, conv.weight), expected)
    torch.testing.assert_close(conv(x, points), expected)


@pytest.mark.parametrize("form", FORMS)
def test_shifted_points_shift_the_result(form):
    """The first number of a pair is y: one more reads a row further down."""
    conv, x = conv_inputs()
    points, plain = conv.grid.expand(len(x), -1, *x.shape[2:]), F.conv2d(x, conv.weight, padding=1)
    down = getattr(conv, form)(x, points + torch.tensor([1.0, 0.0] * 9).view(1, -1, 1, 1), conv.weight)
    right = getattr(conv, form)(x, points + torch.tensor([0.0, 1.0] * 9).view(1, -1, 1, 1), conv.weight)
    torch.testing.assert_close(down[:, :, :-1], plain[:, :, 1:])
    torch.testing.assert_close(right[..., :-1], plain[..., 1:])


@pytest.mark.parametrize("form", FORMS)
def test_every_cell_of_the_kernel_reads_its_own_point(form):
    """One channel, and weight 1 at one cell: the output is the map at that cell's point, here halfway of two cells."""
    conv, x = conv_inputs(shape=(1, 1, 5, 7), out_channels=1)
    for cell in range(9):
        weight = torch.zeros(9, dtype=torch.float64)
        weight[cell] = 1
        points = random(1, 18, 5, 7, seed=cell, scale=5.0)
        points[:, 2 * cell], points[:, 2 * cell + 1] = 1.5, -2.0
        out = getattr(conv, form)(x, points, weight.view(1, 1, 3, 3))
        # row y reads rows y + 1 and y + 2, column x reads column x - 2
        torch.testing.assert_close(out[0, 0, :3, 2:], (x[0, 0, 1:4, :-2] + x[0, 0, 2:5, :-2]) / 2)


def test_both_forms_agree_with_points_beyond_the_map():
    conv, x = conv_inputs()
    x.requires_grad_()
    points = random(2, 18, 5, 7, seed=2, scale=4.0).requires_grad_()
    results = []
    for form in FORMS:
        out = getattr(conv, form)(x, points, conv.weight)
        grads = torch.autograd.grad(out, (x, points, conv.weight), random(*out.shape, seed=3))
        results.append((out, *grads))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs)
    assert points.abs().max() > 7


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_the_convolution(form):
    conv, x = conv_inputs(shape=(1, 2, 3, 4), out_channels=2)
    # between cells, where sampling has a derivative
    points = (random(1, 18, 3, 4, seed=2, scale=1.5).floor() + 0.3 + 0.4 * torch.rand(1, 18, 3, 4)).requires_grad_()
    assert torch.autograd.gradcheck(getattr(conv, form), (x.requires_grad_(), points, conv.weight))


def test_devices_and_autocast(device):
    conv, x = conv_inputs()
    points = random(2, 18, 5, 7, seed=2, scale=2.0)
    expected = conv(x, points)
    conv = conv.float().to(device)
    x, points = x.float().to(device), points.float().to(device)
    torch.testing.assert_close(conv(x, points).double().cpu(), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = conv(x.bfloat16(), points)
    assert out.dtype == torch.bfloat16
    # rounding of the input and of the output alone: 8 bits of values near 5, 27 terms
    torch.testing.assert_close(out.double().cpu(), expected, rtol=0.02, atol=0.1)


@pytest.mark.parametrize("num_points", [1, 8, 16])
def test_points_that_are_no_kernel(num_points):
    with pytest.raises(ValueError, match=f"num_points must be the square of 3, 5, 7, .* got {num_points}"):
        PointConv2d(2, 2, num_points)
