"""A bottleneck block's forward in pieces, so that the methods of several papers can change one block together.

N: images, H x W: cells of the block's input.
"""

import functools

import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.modeling.backbone.resnet import BottleneckBlock, DeformBottleneckBlock


class BottleneckPieces:
    """Before a block with conv1, conv2, conv3 (each with its norm) and shortcut, a convolution or None:

        y = relu(merge(identity(x), residual(x))),   residual = expand(spatial(reduce(x)))

    A method is a mixin that overrides pieces and calls `super()` in them. Each has its own place, so the order in which
    methods come to a block changes nothing:

        reduce, spatial   what they return passes the method's module (MSFM's positions 1 and 2)
        spatial, identity their input is pooled (LIP; the convolutions then have no stride)
        expand            conv3 and its norm (MSFM's position 3)
        residual          the whole branch (squeeze-and-excitation's gate)
        merge             the sum itself (DEPLA)

    `common` is what both branches take from x besides (LIP's logits): a tuple, handed on to each piece that reads it.
    """

    def common(self, x: Tensor) -> tuple[Tensor, ...]:
        return ()

    def reduce(self, x: Tensor) -> Tensor:
        """The first 1x1 convolution and its ReLU."""
        return F.relu_(self.conv1(x))

    def spatial(self, y: Tensor, *common: Tensor) -> Tensor:
        """The 3x3 convolution and its ReLU."""
        return F.relu_(self.conv2(y))

    def expand(self, y: Tensor) -> Tensor:
        """The last 1x1 convolution."""
        return self.conv3(y)

    def residual(self, x: Tensor, *common: Tensor) -> Tensor:
        """What is added to the shortcut: (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        return self.expand(self.spatial(self.reduce(x), *common))

    def identity(self, x: Tensor, *common: Tensor) -> Tensor:
        """The shortcut's output, of the residual's shape."""
        return x if self.shortcut is None else self.shortcut(x)

    def merge(self, identity: Tensor, residual: Tensor) -> Tensor:
        # not in place: a folded MSFM returns a view, and autograd copies the whole map to write into one
        return residual + identity

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), rounded up."""
        common = self.common(x)
        residual = self.residual(x, *common)
        return F.relu_(self.merge(self.identity(x, *common), residual))


class DeformPieces(BottleneckPieces):
    """The same with a deformable 3x3 convolution, plain or modulated; an ordinary one where conv2_offset is None."""

    def spatial(self, y: Tensor, *common: Tensor) -> Tensor:
        if self.conv2_offset is None:
            return super().spatial(y, *common)
        offset = self.conv2_offset(y)
        if not self.deform_modulated:
            return F.relu_(self.conv2(y, offset))
        cells = offset.shape[1] // 3  # x and y offsets, two thirds, lie before the masks
        offset, mask = offset.split([2 * cells, cells], dim=1)
        return F.relu_(self.conv2(y, offset, mask.sigmoid()))


def add_method(block: nn.Module, method: type[BottleneckPieces]) -> None:
    """Give a built block the pieces of `method`; layers and weights stay, what the pieces need is the caller's to add.

    Its class is swapped in place. ValueError: no bottleneck block, or one that has the method.
    """
    if isinstance(block, method):
        raise ValueError(f"the block has {method.__name__} already")
    if not isinstance(block, BottleneckPieces | BottleneckBlock | DeformBottleneckBlock):
        raise ValueError(f"{type(block).__name__} is no bottleneck block: take a ResNet of depth 50 or more")
    block.__class__ = _with_method(type(block), method)


@functools.cache
def _with_method(block_class: type, method: type[BottleneckPieces]) -> type:
    bases: tuple[type, ...] = (method, block_class)
    if issubclass(block_class, DeformBottleneckBlock) and not issubclass(block_class, DeformPieces):
        bases = (method, DeformPieces, block_class)
    return type(f"{method.__name__}{block_class.__name__}", bases, {})
