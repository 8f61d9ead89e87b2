"""What every backbone offers."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from detectron2.layers import ShapeSpec


class Backbone(nn.Module, ABC):
    """Subclasses fill `_out_features` (names), `_out_feature_channels` and `_out_feature_strides` (dicts by name)."""

    @abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W) -> maps (N, Ci, H / stride, W / stride) by name."""

    @property
    def size_divisibility(self) -> int:
        """The input's sides must be multiples of this; 0: no requirement."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further wishes to `ImageList.from_tensors`: "size_divisibility", "square_size"."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        channels, strides = self._out_feature_channels, self._out_feature_strides
        return {name: ShapeSpec(channels=channels[name], stride=strides[name]) for name in self._out_features}
