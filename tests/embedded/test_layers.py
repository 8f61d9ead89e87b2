"""Wrappers, blocks, ROIAlign, NMS, losses, ShapeSpec, and what `detectron2.layers` re-exports."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import detectron2.layers as layers
from detectron2.layers import (
    CNNBlockBase,
    Conv2d,
    DepthwiseSeparableConv2d,
    FrozenBatchNorm2d,
    ROIAlign,
    ShapeSpec,
    batched_nms,
    cat,
    ciou_loss,
    cross_entropy,
    diou_loss,
)


def test_re_exports():
    assert layers.Linear is nn.Linear and layers.BatchNorm2d is nn.BatchNorm2d
    assert layers.interpolate is F.interpolate and callable(layers.nms)
    assert issubclass(layers.ConvTranspose2d, nn.ConvTranspose2d)
    from detectron2.layers.mask_ops import paste_masks_in_image
    from detectron2.layers.roi_align import roi_align  # the package's attribute is the function

    assert layers.roi_align is roi_align and layers.paste_masks_in_image is paste_masks_in_image


def test_shape_spec():
    assert ShapeSpec(8, stride=4) == ShapeSpec(channels=8, height=None, width=None, stride=4)
    assert repr(ShapeSpec()) == "ShapeSpec(channels=None, height=None, width=None, stride=None)"


# ------------------------------------------------------------------------------------- wrappers
def test_conv_applies_norm_then_activation():
    torch.manual_seed(0)
    conv = Conv2d(3, 4, 3, padding=1, norm=nn.GroupNorm(2, 4), activation=F.relu)
    nn.init.constant_(conv.norm.bias, -0.5)
    assert sorted(conv.state_dict()) == ["bias", "norm.bias", "norm.weight", "weight"]
    x = torch.randn(2, 3, 5, 6)
    expected = F.relu(conv.norm(F.conv2d(x, conv.weight, conv.bias, padding=1)))
    torch.testing.assert_close(conv(x), expected)
    assert Conv2d(3, 4, 1).norm is None and Conv2d(3, 4, 1).activation is None


def test_empty_batches(device):
    x = torch.zeros(0, 3, 5, 6, device=device, requires_grad=True)
    for norm in (None, nn.BatchNorm2d(4), FrozenBatchNorm2d(4), nn.GroupNorm(2, 4)):
        conv = Conv2d(3, 4, 3, stride=2, norm=norm, activation=F.relu).to(device)
        assert conv(x).shape == (0, 4, 2, 2)
    assert layers.ConvTranspose2d(3, 4, 2, stride=2).to(device)(x).shape == (0, 4, 10, 12)
    assert layers.interpolate(x, scale_factor=2).shape == (0, 3, 10, 12)
    conv(x).sum().backward()
    assert conv.weight.grad.abs().sum() == 0


def test_sync_batch_norm_refuses_an_empty_batch_in_training():
    conv = Conv2d(3, 4, 1, norm=nn.SyncBatchNorm(4))
    with pytest.raises(AssertionError, match="SyncBatchNorm"):
        conv(torch.zeros(0, 3, 5, 6))


def test_cat_returns_a_single_tensor_itself():
    a = torch.ones(2, 3)
    assert cat([a]) is a and cat((a,), dim=1) is a
    assert cat([a, 2 * a], dim=1).tolist() == [[1, 1, 1, 2, 2, 2]] * 2


def test_cross_entropy_of_nothing_keeps_the_graph():
    logits = torch.zeros(0, 3, requires_grad=True)
    target = torch.zeros(0, dtype=torch.long)
    loss = cross_entropy(logits, target, reduction="mean")
    assert loss.item() == 0
    loss.backward()
    assert logits.grad.shape == (0, 3)
    assert cross_entropy(logits, target, reduction="sum").item() == 0
    assert cross_entropy(logits, target, reduction="none").shape == (0,)
    some, labels = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([1, 1])
    assert torch.equal(cross_entropy(some, labels), F.cross_entropy(some, labels))
    weighted = cross_entropy(some, labels, reduction="none", label_smoothing=0.1)
    expected = F.cross_entropy(some, labels, reduction="none", label_smoothing=0.1)
    assert torch.equal(weighted, expected)


def test_empty_input_wrapper_of_another_loss():
    loss = layers.empty_input_loss_func_wrapper(F.l1_loss)
    assert loss(torch.zeros(0), torch.zeros(0)).item() == 0  # l1_loss itself gives nan
    assert loss(torch.ones(2), torch.zeros(2)).item() == 1


def test_small_helpers(device):
    rows, columns = layers.nonzero_tuple(torch.tensor([[0, 1], [1, 0]]))
    assert rows.tolist() == [0, 1] and columns.tolist() == [1, 0]
    shapes = layers.shapes_to_tensor([4, torch.tensor(5)], device=device)
    assert shapes.tolist() == [4, 5] and shapes.device.type == device
    assert not shapes.is_floating_point()
    assert layers.move_device_like(torch.ones(1), shapes).device.type == device


# --------------------------------------------------------------------------------------- blocks
class Block(CNNBlockBase):
    def __init__(self):
        super().__init__(3, 4, 2)
        self.conv = Conv2d(3, 4, 1, norm=nn.BatchNorm2d(4))
        self.gn = nn.GroupNorm(2, 4)


def test_freeze_stops_gradients_and_converts():
    block = Block()
    assert (block.in_channels, block.out_channels, block.stride) == (3, 4, 2)
    assert block.freeze() is block
    assert not any(p.requires_grad for p in block.parameters())
    assert isinstance(block.conv.norm, FrozenBatchNorm2d) and isinstance(block.gn, nn.GroupNorm)


def test_depthwise_separable_conv():
    torch.manual_seed(0)
    conv = DepthwiseSeparableConv2d(4, 6, 5, padding=4, dilation=2, norm1="BN", activation2=F.relu)
    shapes = {k: tuple(v.shape) for k, v in conv.named_parameters()}
    assert shapes == {
        "depthwise.weight": (4, 1, 5, 5),
        "depthwise.norm.weight": (4,),
        "depthwise.norm.bias": (4,),
        "pointwise.weight": (6, 4, 1, 1),
        "pointwise.bias": (6,),  # bias only without norm
    }
    assert conv.pointwise.bias.abs().sum() == 0  # msra fill
    x = torch.randn(2, 4, 7, 8)
    depth = conv.depthwise.norm(F.conv2d(x, conv.depthwise.weight, None, 1, 4, 2, groups=4))
    expected = F.relu(F.conv2d(depth, conv.pointwise.weight, conv.pointwise.bias))
    torch.testing.assert_close(conv(x), expected)
    # kaiming normal, fan out: std = sqrt(2 / (channels * k * k)), 64 * 9 weights
    torch.manual_seed(0)
    big = DepthwiseSeparableConv2d(64, 64)
    assert big.depthwise.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)
    assert big.pointwise.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)


# ------------------------------------------------------------------------------- ROIAlign and NMS
def test_roi_align_is_aligned_to_pixel_centres(device):
    # x[h, w] = w: a box [1, 3] in columns has its two bins centred on pixels 1 and 2
    x = torch.arange(6.0, device=device).expand(1, 1, 6, 6).contiguous()
    rois = torch.tensor([[0, 1.0, 1.0, 3.0, 3.0]], device=device, dtype=torch.float64)
    out = ROIAlign((2, 2), 1.0, 0)(x, rois)  # double rois are cast to the input's dtype
    assert out.tolist() == [[[[1, 2], [1, 2]]]]
    assert ROIAlign((2, 2), 1.0, 0, aligned=False)(x, rois)[0, 0].tolist() == [[1.5, 2.5]] * 2
    # stride 2: pixels 2..6 are cells 1..3
    assert torch.equal(ROIAlign((2, 2), 0.5, 0)(x, rois * 2), out)


def test_roi_align_sampling_ratio_and_batch_index():
    x = torch.zeros(2, 1, 1, 4)
    x[1, 0, 0] = torch.tensor([4.0, 0, 0, 8])
    rois = torch.tensor([[1, 0.0, 0, 4, 1]])
    assert ROIAlign((1, 1), 1.0, 0)(x, rois).item() == 3  # 4 samples: (4 + 0 + 0 + 8) / 4
    assert ROIAlign((1, 1), 1.0, 1)(x, rois).item() == 0  # one sample, between pixels 1 and 2


def test_roi_align_of_nothing_and_repr():
    pool = ROIAlign(output_size=(14, 14), spatial_scale=0.25, sampling_ratio=0)
    text = "ROIAlign(output_size=(14, 14), spatial_scale=0.25, sampling_ratio=0, aligned=True)"
    assert repr(pool) == text
    for n in (0, 2):
        x = torch.zeros(n, 3, 8, 8, requires_grad=True)
        out = pool(x, torch.zeros(0, 5))
        assert out.shape == (0, 3, 14, 14)
        out.sum().backward()
    with pytest.raises(AssertionError):
        pool(torch.zeros(1, 3, 8, 8), torch.zeros(1, 4))


@pytest.mark.embedded_only
def test_roi_align_message():
    with pytest.raises(AssertionError, match=r"\(R, 5\) rois"):
        ROIAlign(7, 1.0, 0)(torch.zeros(1, 3, 8, 8), torch.zeros(1, 4))


def test_batched_nms(device):
    # boxes 0 and 1 overlap by 9/11, box 2 equals box 0 but is of another class
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10]], device=device)
    scores = torch.tensor([0.5, 0.9, 0.7], device=device)
    classes = torch.tensor([0, 0, 1], device=device)
    for b in (boxes, boxes.half(), boxes.double()):
        assert batched_nms(b, scores, classes, 0.8).tolist() == [1, 2]
    assert batched_nms(boxes, scores, classes, 0.82).tolist() == [1, 2, 0]  # 9/11 = 0.818
    assert batched_nms(boxes[:0], scores[:0], classes[:0], 0.5).tolist() == []


# --------------------------------------------------------------------------------------- losses
# IoU 1/9 (overlap 1, areas 4 and 6). Centres (1, 1) and (2, 2.5): distance^2 3.25. Enclosing box
# 3 x 4: diagonal^2 25. diou = 1 - 1/9 + 0.13. v = 4/pi^2 (atan(2/3) - atan(1))^2 = 0.0157918,
# alpha = v / (8/9 + v) = 0.0174559, ciou = diou + alpha * v.
PAIR = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 4]])
DIOU, CIOU = 1 - 1 / 9 + 0.13, 1 - 1 / 9 + 0.13 + 0.0174559 * 0.0157918


@pytest.mark.parametrize("loss, expected", [(diou_loss, DIOU), (ciou_loss, CIOU)])
def test_iou_losses_by_hand(loss, expected):
    assert loss(*PAIR).tolist() == [pytest.approx(expected, abs=1e-6)]
    both = [torch.cat([box, PAIR[0]]) for box in PAIR]  # a perfect pair adds 0
    assert loss(*both, reduction="mean").item() == pytest.approx(expected / 2, abs=1e-6)
    assert loss(*both, reduction="sum").item() == pytest.approx(expected, abs=1e-6)
    stacked = loss(PAIR[0].expand(2, 3, 4), PAIR[1].expand(2, 3, 4))
    assert stacked.shape == (2, 3) and stacked[1, 2].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", [diou_loss, ciou_loss])
def test_iou_losses_of_nothing(loss):
    boxes = torch.zeros(0, 4, requires_grad=True)
    out = loss(boxes, torch.zeros(0, 4), reduction="mean")
    assert out.item() == 0
    out.backward()
    assert boxes.grad.shape == (0, 4) and loss(boxes, torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize("loss", [diou_loss, ciou_loss])
@pytest.mark.parametrize("bad", [[3.0, 0, 2, 2], [0.0, 3, 2, 2]])
def test_iou_losses_assert_the_first_boxes_only(loss, bad):
    with pytest.raises(AssertionError, match="x2 >= x1|larger than"):
        loss(torch.tensor([bad]), PAIR[1])
    assert loss(PAIR[0], torch.tensor([bad])).isfinite().all()


def test_ciou_alpha_has_no_gradient():
    boxes = PAIR[0].double().requires_grad_()
    (grad,) = torch.autograd.grad(ciou_loss(boxes, PAIR[1].double()).sum(), boxes)

    def with_fixed_alpha(b):
        w, h = (b[:, 2:] - b[:, :2]).unbind(1)
        v = 4 / torch.pi**2 * (torch.atan(torch.tensor(2 / 3)) - torch.atan(w / h)) ** 2
        return diou_loss(b, PAIR[1].double()) + 0.0174559 * v

    (expected,) = torch.autograd.grad(with_fixed_alpha(boxes).sum(), boxes)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-7)
