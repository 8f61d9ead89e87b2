"""Images of different sizes in one padded tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor


class ImageList:
    """`tensor` (N, ..., H, W), each image top-left; `image_sizes`: its (h, w) before padding."""

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]):
        self.tensor, self.image_sizes = tensor, image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> Tensor:
        """Image `idx` without its padding."""
        h, w = self.image_sizes[idx]
        return self.tensor[idx, ..., :h, :w]

    def to(self, *args, **kwargs) -> "ImageList":
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor], size_divisibility: int = 0, pad_value: float = 0.0, padding_constraints=None
    ) -> "ImageList":
        """Pad images (..., H, W) with equal leading dimensions to one size and stack them.
        `padding_constraints`, a dict: "square_size" > 0 sets both sides, "size_divisibility" replaces the argument;
        then both sides are rounded up to a multiple of the divisibility."""
        assert len(tensors) > 0, "ImageList.from_tensors needs at least one image."
        leading = tensors[0].shape[:-2]
        for t in tensors:
            assert t.shape[:-2] == leading, f"Cannot stack {tuple(t.shape)} with {tuple(leading)}."
        constraints = padding_constraints or {}
        sizes = [(int(t.shape[-2]), int(t.shape[-1])) for t in tensors]
        target = [max(side) for side in zip(*sizes)]
        if (square := constraints.get("square_size", 0)) > 0:
            assert max(target) <= square, f"square_size {square} is below the image size {target}."
            target = [square, square]
        stride = max(1, constraints.get("size_divisibility", size_divisibility))
        h, w = (-(-side // stride) * stride for side in target)
        batch = tensors[0].new_full((len(tensors), *leading, h, w), pad_value)
        for i, (h, w) in enumerate(sizes):
            batch[i, ..., :h, :w].copy_(tensors[i])
        return ImageList(batch, sizes)
