"""paste_masks_in_image."""

import pytest
import torch

from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes


def paste_slowly(mask, box, height, width):
    """Bilinear lookup of every pixel centre, in doubles; outside of the mask is 0."""
    side = mask.shape[0]
    x0, y0, x1, y1 = box.tolist()
    out = torch.zeros(height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            u = (j + 0.5 - x0) / (x1 - x0) * side - 0.5
            v = (i + 0.5 - y0) / (y1 - y0) * side - 0.5
            for r in range(side):
                for c in range(side):
                    out[i, j] += mask[r, c] * max(0, 1 - abs(u - c)) * max(0, 1 - abs(v - r))
    return out


@pytest.mark.parametrize("threshold", [0.5, 0.2, -1])
def test_equals_the_slow_reference(device, threshold):
    g = torch.Generator().manual_seed(0)
    masks = torch.rand(3, 4, 4, generator=g)
    boxes = torch.tensor([[1.3, 0.4, 7.9, 6.2], [-2.5, 3.1, 4.2, 12.7], [5.0, 5.0, 5.8, 9.0]])
    out = paste_masks_in_image(masks.to(device), boxes.to(device), (8, 9), threshold).cpu()
    values = torch.stack([paste_slowly(m, b, 8, 9) for m, b in zip(masks.double(), boxes)])
    if threshold < 0:
        assert out.dtype == torch.uint8
        assert (out.double() - values * 255).abs().max() <= 1  # truncated
        assert out.max() > 100
    else:
        assert torch.equal(out, values >= threshold)
        assert out.dtype == torch.bool and 0 < out.sum() < out.numel()


def test_by_hand(device):
    # box of one pixel per cell: the mask itself, at (1, 2); 0.5 counts as inside
    mask = torch.tensor([[[0.5, 0.4], [0.0, 0.9]]], device=device)
    box = torch.tensor([[2.0, 1.0, 4.0, 3.0]], device=device)
    out = paste_masks_in_image(mask, Boxes(box), (4, 5))
    assert out[0].nonzero().tolist() == [[1, 2], [2, 3]]
    gray = paste_masks_in_image(mask, box, (4, 5), threshold=-1)
    assert gray[0, 1:3, 2:4].tolist() == [[127, 102], [0, 229]]  # int(255 * value)
    assert torch.equal(out, paste_masks_in_image(mask, box, (4, 5)))


def test_no_masks_give_uint8(device):
    out = paste_masks_in_image(torch.zeros(0, 7, 7, device=device), Boxes([]), (4, 5))
    assert out.shape == (0, 4, 5) and out.dtype == torch.uint8 and out.device.type == device


def test_boxes_without_area_paste_nothing(device):
    boxes = torch.tensor([[2.0, 1, 2, 3], [2.5, 1, 2.5, 3], [1, 1, 3, 1]], device=device)
    assert not paste_masks_in_image(torch.ones(3, 4, 4, device=device), boxes, (4, 4)).any()


@pytest.mark.embedded_only
def test_boxes_outside_of_the_image_paste_nothing(device):
    boxes = torch.tensor([[20.0, 1, 22, 3], [-20, 1, -12, 3], [1, 9, 3, 12]], device=device)
    assert not paste_masks_in_image(torch.ones(3, 4, 4, device=device), boxes, (4, 4)).any()


def test_other_dtypes(device):
    box = torch.tensor([[0.0, 0, 2, 2]], device=device)
    for dtype in (torch.bool, torch.uint8, torch.float64, torch.float16):
        out = paste_masks_in_image(torch.ones(1, 2, 2, device=device, dtype=dtype), box, (3, 3))
        assert out[0].int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_refuses():
    with pytest.raises(AssertionError, match="square"):
        paste_masks_in_image(torch.ones(1, 4, 3), torch.zeros(1, 4), (4, 4))
    with pytest.raises(AssertionError, match="2"):
        paste_masks_in_image(torch.ones(1, 3, 3), torch.zeros(2, 4), (4, 4))


@pytest.mark.embedded_only
def test_gpu_chunks_cover_all_masks(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    masks, boxes = torch.rand(5, 4, 4), torch.rand(5, 4) * 4
    boxes[:, 2:] += 5
    whole = paste_masks_in_image(masks, boxes, (9, 9))
    monkeypatch.setattr("detectron2.layers.mask_ops.GPU_CHUNK_BYTES", 2 * 9 * 9 * 4)
    assert torch.equal(paste_masks_in_image(masks.cuda(), boxes.cuda(), (9, 9)).cpu(), whole)
