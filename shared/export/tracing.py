"""What a program's recorder cannot follow, written so that it can.

A recorder (torch.jit.trace, torch.export) sees tensors, not Python's integers: `len(boxes)` of the example image would
be every image's. Within `traceable` both engines' code runs with replacements that compute the same values.
"""

import builtins
import contextlib
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from detectron2.structures import Boxes, ImageList

PACKAGES = ("detectron2", "projects", "shared")


def _length(x: Any) -> Any:
    """`len` that keeps a recorded size: the builtin makes it an int."""
    return x.__len__()


def _extreme(name: str):
    builtin = getattr(builtins, name)
    of_tensors = {"min": torch.minimum, "max": torch.maximum}[name]
    of_symbols = {"min": torch.sym_min, "max": torch.sym_max}[name]

    def extreme(*values, **kwargs):
        if len(values) == 2:
            if any(isinstance(v, Tensor) for v in values):
                return of_tensors(*(torch.as_tensor(v) for v in values))
            if any(isinstance(v, torch.SymInt) for v in values):
                return of_symbols(*values)
        return builtin(*values, **kwargs)

    return extreme


def _make_boxes(self: Boxes, tensor: Any) -> None:
    self.tensor = torch.as_tensor(tensor).to(torch.float32)


def _clip(self: Boxes, box_size: tuple[int, int]) -> None:
    h, w = box_size
    limits = (w, h, w, h)
    self.tensor = torch.stack([x.clamp(0, side) for x, side in zip(self.tensor.unbind(1), limits)], dim=1)


def _one_image(tensors, size_divisibility: int = 0, pad_value: float = 0.0, padding_constraints=None) -> ImageList:
    """`ImageList.from_tensors` of a single image, whose size is a constant of the program."""
    (image,) = tensors
    h, w = (int(side) for side in image.shape[-2:])
    constraints = padding_constraints or {}
    target = [max(side, constraints.get("square_size", 0)) for side in (h, w)]
    stride = max(1, constraints.get("size_divisibility", size_divisibility))
    height, width = (-(-side // stride) * stride for side in target)
    return ImageList(F.pad(image, (0, width - w, 0, height - h), value=pad_value)[None], [(h, w)])


def _class_nms(dtype: torch.dtype):
    """`batched_nms` without a branch on the number of boxes: every class is moved to a place of its own."""

    def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
        boxes = boxes.to(dtype)
        span = torch.cat([boxes.new_zeros(1), boxes.flatten()]).max() + 1
        return nms(boxes + (idxs.to(dtype) * span)[:, None], scores.to(dtype), iou_threshold)

    return batched_nms


@contextlib.contextmanager
def traceable(nms_dtype: torch.dtype | None = None) -> Iterator[None]:
    """Sizes of tensors can be recorded in the code of both engines and of the projects, for one image of a fixed size.

    nms_dtype: of the boxes in NMS by class; None leaves torchvision's, whose branches TorchScript knows. Offsets of
        many classes need float64, or neighbours are told apart less well than one by one.
    """
    builtin = {"len": _length, "min": _extreme("min"), "max": _extreme("max")}
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (Boxes, "__init__", _make_boxes),
            (Boxes, "clip", _clip),
            (ImageList, "from_tensors", staticmethod(_one_image)),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] not in PACKAGES or name == __name__:
                continue
            for key, value in builtin.items():
                if key not in vars(module):  # a module's global comes before the builtin
                    stack.enter_context(mock.patch.object(module, key, value, create=True))
            if nms_dtype is not None and "batched_nms" in vars(module):
                stack.enter_context(mock.patch.object(module, "batched_nms", _class_nms(nms_dtype)))
        yield
