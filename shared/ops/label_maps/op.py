"""The label maps that LabelEnc's encoder reads (arXiv:2007.03282, sec. 3.2), without the classes that are absent."""

import torch
from torch import Tensor

from shared.ops import library
from shared.ops.label_maps.reference import render_label_maps_reference

OP = "render_label_maps"


@torch.no_grad()
def render_label_maps(
    boxes: list[Tensor],
    classes: list[Tensor],
    size: tuple[int, int],
    *,
    num_classes: int,
    intensities: list[Tensor] | None = None,
    masks: list[Tensor] | None = None,
    pixel_offset: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Ground truth as maps: every object is a pyramid in its class's channel, 1 at its centre and 0.5 on its border.

    p(u, v) = 1 - max(|u - cx| / w, |v - cy| / h) where that is at least 0.5, else 0;   map = max over m p, at least 0

    over the objects of a class, at the points (column + pixel_offset, row + pixel_offset). Equal to the formula over
    the full canvas to the bit, in float32 (float64 for float64 maps); half types are rounded once, at the end.

    boxes: one (n, 4) an image, n may be 0: xyxy in pixels of the padded batch. A box may reach over the canvas; one
        without width or height, or around no point, renders nothing.
    classes: one (n,) int64 an image, in [0, num_classes).
    size: (H, W) of the padded batch.
    intensities: one (n,) an image, the factors m in [0, 1]; 1 without. The maximum is taken over m p.
    masks: one (n, H, W) bool an image: an object's pyramid is 0 outside its mask.
    pixel_offset: 0.5 for continuous boxes; 0 samples at the pixels' indices.

    Returns maps (N, U, H, W), and present (U,) int64: the classes in the batch, ascending, or class 0 where there is
    no object at all (a stem weight gathered by `present` then still gets a gradient). U depends on the data: CUDA waits
    for it. Where a large batch makes U large, call it for each image. No gradient. Raises ValueError or TypeError
    naming the argument; for NaN or infinite boxes and intensities on the CPU (on CUDA with SHARED_OPS_CHECK=1: without,
    such a box renders nothing there).
    """
    _check_lists(boxes, classes, size, intensities, masks)
    flat = torch.cat(classes)
    present = flat.unique()
    if len(present) == 0:
        present = present.new_zeros(1)
    low, high = present[0].item(), present[-1].item()
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{OP}: classes holds {low if low < 0 else high}; expected 0 to {num_classes - 1} (num_classes)."
        )
    if library.use_reference():
        options = {"intensities": intensities, "masks": masks, "pixel_offset": pixel_offset, "dtype": dtype}
        return render_label_maps_reference(boxes, classes, size, num_classes=num_classes, **options)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    image = torch.tensor([i for i, c in enumerate(classes) for _ in range(len(c))], device=flat.device)
    slots = image.long() * len(present) + torch.searchsorted(present, flat)
    xyxy = torch.cat(boxes).to(compute)
    factors = torch.ones_like(xyxy[:, 0]) if intensities is None else torch.cat(intensities).to(compute)
    one_each = [] if masks is None else [mask for group in masks for mask in group]
    shape = (len(boxes), len(present), *size)
    maps = torch.ops.d2ops.render_label_maps(
        xyxy, slots, factors, one_each, shape[0] * shape[1], *size, pixel_offset, dtype
    )
    return maps.view(shape), present


def _check_lists(boxes, classes, size, intensities, masks) -> None:
    """One tensor an image in every list, of the right rank, length, kind and device. The op checks the values."""
    if len(boxes) == 0:
        raise ValueError(f"{OP}: boxes is an empty list; expected one tensor an image.")
    floating = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    expected = {
        "boxes": (boxes, (4,), floating),
        "classes": (classes, (), (torch.int64,)),
        "intensities": (intensities, (), floating),
        "masks": (masks, tuple(size), (torch.bool,)),
    }
    for name, (tensors, inner, dtypes) in expected.items():
        if tensors is None:
            continue
        if len(tensors) != len(boxes):
            raise ValueError(f"{OP}: {name} has {len(tensors)} tensors and boxes {len(boxes)}; expected one an image.")
        for i, (tensor, box) in enumerate(zip(tensors, boxes)):
            shape = (len(box) if box.dim() else 0, *inner)
            if tensor.shape != shape:
                raise ValueError(f"{OP}: {name}[{i}] has shape {tuple(tensor.shape)}; expected {shape}.")
            if tensor.dtype not in dtypes:
                kinds = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
                raise TypeError(f"{OP}: {name}[{i}] has dtype {tensor.dtype}; expected {kinds}.")
            if tensor.device != boxes[0].device:
                raise ValueError(
                    f"{OP}: {name}[{i}] is on {tensor.device} and boxes[0] on {boxes[0].device};"
                    " they must be on one device."
                )


if library.available:

    @torch.library.register_fake("d2ops::render_label_maps")
    def _(boxes, slots, factors, masks, planes, height, width, offset, dtype):
        return boxes.new_empty((planes, height, width), dtype=dtype)
