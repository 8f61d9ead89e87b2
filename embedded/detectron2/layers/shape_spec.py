"""What a module tells the next one about a feature map."""

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Channels, size in cells and stride in pixels per cell; None where unknown."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
