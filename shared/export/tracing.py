"""What a program's recorder cannot follow, written so that it can.

A recorder (torch.jit.trace, torch.export) sees tensors, not Python's integers: `len(boxes)` of the example image would
be every image's. Within `traceable` both engines' code runs with replacements that compute the same values.
"""

import builtins
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from detectron2.layers import batched_nms
from detectron2.structures import Boxes, ImageList, Instances

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


def _top_proposals(batched_nms: Callable):
    """`find_top_rpn_proposals` of a single image, without a branch on how many boxes are finite or large enough."""

    def find_top_rpn_proposals(
        proposals, pred_objectness_logits, image_sizes, nms_thresh, pre_nms_topk, post_nms_topk, min_box_size, training
    ) -> list[Instances]:
        found = []
        for level, (boxes, logits) in enumerate(zip(proposals, pred_objectness_logits)):
            scores, index = logits[0].topk(min(logits.shape[1], pre_nms_topk))
            found.append((boxes[0][index], scores, torch.full_like(index, level)))
        boxes, scores, levels = map(torch.cat, zip(*found))
        finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores)
        boxes, scores, levels = Boxes(boxes[finite]), scores[finite], levels[finite]
        boxes.clip(image_sizes[0])
        large = boxes.nonempty(threshold=min_box_size)
        boxes, scores, levels = boxes.tensor[large], scores[large], levels[large]
        keep = batched_nms(boxes, scores, levels, nms_thresh)[:post_nms_topk]
        return [Instances(image_sizes[0], proposal_boxes=Boxes(boxes[keep]), objectness_logits=scores[keep])]

    return find_top_rpn_proposals


def _rois(box_lists: list[Boxes]) -> Tensor:
    """`convert_boxes_to_pooler_format` of a single image: (N, 5), each the image's index 0 and a box."""
    (boxes,) = box_lists
    return torch.cat([torch.zeros_like(boxes.tensor[:, :1]), boxes.tensor], dim=1)


def _not_all(self: Tensor, *args, **kwargs) -> Tensor | bool:
    """`Tensor.all` that leaves `if not finite.all(): boxes = boxes[finite]` no choice but to select."""
    caller = sys._getframe(1).f_globals.get("__name__", "")
    if args or kwargs or caller.partition(".")[0] not in PACKAGES:
        return _ALL(self, *args, **kwargs)
    return False


_ALL = Tensor.all


@contextlib.contextmanager
def traceable(nms_dtype: torch.dtype | None = None) -> Iterator[None]:
    """Sizes of tensors can be recorded in the code of both engines and of the projects, for one image of a fixed size.

    nms_dtype: of the boxes in NMS by class; None leaves torchvision's, whose branches TorchScript knows. Offsets of
        many classes need float64, or neighbours are told apart less well than one by one.
    """
    nms_by_class = batched_nms if nms_dtype is None else _class_nms(nms_dtype)
    replaced = {"batched_nms": nms_by_class, "find_top_rpn_proposals": _top_proposals(nms_by_class)}
    replaced["convert_boxes_to_pooler_format"] = _rois
    builtin = {"len": _length, "min": _extreme("min"), "max": _extreme("max")}
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (Boxes, "__init__", _make_boxes),
            (Boxes, "clip", _clip),
            (ImageList, "from_tensors", staticmethod(_one_image)),
            (Tensor, "all", _not_all),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] not in PACKAGES or name == __name__:
                continue
            for key, value in builtin.items():
                if key not in vars(module):  # a module's global comes before the builtin
                    stack.enter_context(mock.patch.object(module, key, value, create=True))
            for key in replaced.keys() & vars(module).keys():
                stack.enter_context(mock.patch.object(module, key, replaced[key]))
        yield
