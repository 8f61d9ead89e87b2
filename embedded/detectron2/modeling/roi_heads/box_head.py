"""Box heads: from pooled RoI features to one vector per RoI."""

from collections.abc import Sequence

from fvcore.nn import weight_init
from torch import nn

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

from ..convs import head_conv

ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")


def build_box_head(cfg, input_shape: ShapeSpec) -> nn.Module:
    """Build `cfg.MODEL.ROI_BOX_HEAD.NAME`."""
    return ROI_BOX_HEAD_REGISTRY.get(cfg.MODEL.ROI_BOX_HEAD.NAME)(cfg, input_shape)


@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNNConvFCHead(nn.Sequential):
    """3x3 convs (norm, ReLU), then fully connected layers (ReLU); at least one layer.
    x (R, C, H, W), R may be 0 -> (R, fc_dims[-1]), or (R, conv_dims[-1], H, W) without fc layers."""

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, conv_dims: Sequence[int], fc_dims: Sequence[int], conv_norm=""):
        super().__init__()
        assert len(conv_dims) + len(fc_dims) > 0, "FastRCNNConvFCHead needs a conv or an fc layer."
        channels, height, width = input_shape.channels, input_shape.height, input_shape.width
        for k, dim in enumerate(conv_dims, 1):
            self.add_module(f"conv{k}", head_conv(channels, dim, conv_norm))
            channels = dim
        self._output_shape = ShapeSpec(channels=channels, height=height, width=width)
        if fc_dims:
            self.add_module("flatten", nn.Flatten())
            self._output_shape = ShapeSpec(channels=fc_dims[-1])
            channels *= height * width
        for k, dim in enumerate(fc_dims, 1):
            self.add_module(f"fc{k}", nn.Linear(channels, dim))
            self.add_module(f"fc_relu{k}", nn.ReLU())
            channels = dim
        for name, layer in self.named_children():
            if name.startswith("conv"):
                weight_init.c2_msra_fill(layer)
            elif isinstance(layer, nn.Linear):
                weight_init.c2_xavier_fill(layer)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        head = cfg.MODEL.ROI_BOX_HEAD
        conv_dims, fc_dims = [head.CONV_DIM] * head.NUM_CONV, [head.FC_DIM] * head.NUM_FC
        return {"input_shape": input_shape, "conv_dims": conv_dims, "fc_dims": fc_dims, "conv_norm": head.NORM}

    @property
    def output_shape(self) -> ShapeSpec:
        """Channels of the vectors, or channels and size of the maps if there are no fc layers."""
        return self._output_shape
