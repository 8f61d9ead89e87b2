"""The padding of a batch: what is image, what is not, for DEPLA and for the detector around it.

Detectron2 pads images at the right and bottom to a common size. In DEPLA padded cells would take part in softmaxes over
all positions. Elsewhere padding enters, too: a convolution reads what norms with a shift, and the image's own halo,
leave in it, RoIAlign interpolates with it, and anchors lie in it. `PaddingMaskRCNN` keeps all of it out, so that an
image's detections do not depend on the images beside it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import ImageList


@dataclass(frozen=True)
class _Batch:
    sizes: tuple[tuple[int, int], ...]
    padded: tuple[int, int]


_BATCH: ContextVar[_Batch | None] = ContextVar("padded_batch", default=None)


def _set_batch(sizes: Sequence[tuple[int, int]], padded: tuple[int, int]) -> None:
    _BATCH.set(_Batch(tuple((int(h), int(w)) for h, w in sizes), (int(padded[0]), int(padded[1]))))


@contextmanager
def _batch_restored() -> Iterator[None]:
    token = _BATCH.set(_BATCH.get())
    try:
        yield
    finally:
        _BATCH.reset(token)


@contextmanager
def image_sizes(sizes: Sequence[tuple[int, int]], padded: tuple[int, int]) -> Iterator[None]:
    """Within it, modules know the (height, width) in pixels of each image of the batch, and of the padded batch."""
    with _batch_restored():
        _set_batch(sizes, padded)
        yield


def valid_cells(x: Tensor) -> list[tuple[int, int]]:
    """Rows and columns of each image of the map x, (N, C, H, W), that hold a pixel of the image.

    A map of stride s has ceil(side / s) cells; s is the least power of two that the sides allow.
    ValueError: the sizes are unknown, or those of another batch.
    """
    batch = _BATCH.get()
    if batch is None:
        raise ValueError(
            "DEPLA with mask_padding needs the sizes of the images: use PaddingMaskRCNN as the meta-architecture, "
            "call the backbone within projects.DEPLA.image_sizes(...), or set mask_padding to False."
        )
    if len(batch.sizes) != len(x):
        raise ValueError(f"DEPLA: {len(batch.sizes)} image sizes for a batch of {len(x)}.")
    cells = [int(n) for n in x.shape[2:]]  # int: also when traced
    strides = [_stride(int(side), n) for side, n in zip(batch.padded, cells)]
    return [tuple(-(-int(side) // stride) for side, stride in zip(size, strides)) for size in batch.sizes]


def _stride(pixels: int, cells: int) -> int:
    return 1 << (-(-pixels // cells) - 1).bit_length()


def cell_mask(x: Tensor) -> Tensor:
    """(N, H, W) bool, True where a cell of x, (N, C, H, W), holds a pixel of its image."""
    mask = torch.zeros((len(x), *x.shape[2:]), dtype=torch.bool, device=x.device)
    for image, (rows, columns) in zip(mask, valid_cells(x)):
        image[:rows, :columns] = True
    return mask


def extend_border(x: Tensor) -> Tensor:
    """Every padded cell becomes a copy of the nearest valid one, so that an interpolation reads no padding."""
    if len(x) == 0:
        return x
    images = []
    for image, cells in zip(x, valid_cells(x)):
        rows, columns = (torch.arange(n, device=x.device).clamp(max=c - 1) for n, c in zip(image.shape[1:], cells))
        images.append(image[:, rows][:, :, columns])
    return torch.stack(images)


def _without_padding(x: Tensor) -> Tensor:
    return x.masked_fill(~cell_mask(x)[:, None], 0)


def _before_conv(conv: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (_without_padding(inputs[0]),)


def _after_conv(conv: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return _without_padding(output)  # a pooling may follow


def _after_backbone(backbone: nn.Module, inputs: tuple[Tensor], output: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: extend_border(x) for name, x in output.items()}  # for RoIAlign


def _after_objectness(conv: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    if conv.training:
        return output
    return output.masked_fill(~cell_mask(output)[:, None], float("-inf"))  # the RPN drops such anchors


@META_ARCH_REGISTRY.register()
class PaddingMaskRCNN(GeneralizedRCNN):
    """GeneralizedRCNN that tells DEPLA modules with `mask_padding` what is image and what is padding.

    If there is such a module, convolutions of more than one cell in backbone and RPN also see 0 in padding, as at the
    image's edge, the pooled maps go on there as they end, and in eval mode no anchor lies there. Means over all cells
    (gates of SE-ResNet, FishNet's bridge) still count it. Without such a module it is GeneralizedRCNN.
    """

    @configurable
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        specs = [getattr(module, "spec", None) for module in self.backbone.modules()]
        self.masks_padding = any(getattr(spec, "mask_padding", False) for spec in specs)
        if not self.masks_padding:
            return
        for part in (self.backbone, self.proposal_generator or nn.Identity()):
            for module in part.modules():
                if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
                    module.register_forward_pre_hook(_before_conv)
                    module.register_forward_hook(_after_conv)
        self.backbone.register_forward_hook(_after_backbone)
        head = getattr(self.proposal_generator, "rpn_head", None)
        if head is not None:
            head.objectness_logits.register_forward_hook(_after_objectness)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        images = super().preprocess_image(batched_inputs)
        _set_batch(images.image_sizes, images.tensor.shape[-2:])
        return images

    def forward(self, batched_inputs: list[dict]):
        with _batch_restored():
            return super().forward(batched_inputs)

    def inference(self, batched_inputs: list[dict], *args, **kwargs):
        with _batch_restored():
            return super().inference(batched_inputs, *args, **kwargs)
