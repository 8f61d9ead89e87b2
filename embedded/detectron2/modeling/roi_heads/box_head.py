"""Box heads: from pooled RoI features to one vector per RoI."""

from collections.abc import Sequence

from fvcore.nn import weight_init
from torch import nn

from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.utils.registry import Registry

ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")


def build_box_head(cfg, input_shape: ShapeSpec) -> nn.Module:
    """Build `cfg.MODEL.ROI_BOX_HEAD.NAME`."""
    return ROI_BOX_HEAD_REGISTRY.get(cfg.MODEL.ROI_BOX_HEAD.NAME)(cfg, input_shape)


def conv3x3(in_channels: int, out_channels: int, norm) -> Conv2d:
    """3x3 convolution, norm (then without bias) and ReLU, as box and mask heads have them."""
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        padding=1,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=nn.ReLU(),
    )


@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNNConvFCHead(nn.Sequential):
    """3x3 convs (norm, ReLU), then fully connected layers (ReLU); at least one layer.

    x (R, C, H, W), R may be 0 -> (R, fc_dims[-1]), or (R, conv_dims[-1], H, W) without fc layers.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, conv_dims: Sequence[int], fc_dims: Sequence[int], conv_norm=""):
        super().__init__()
        assert len(conv_dims) + len(fc_dims) > 0, "FastRCNNConvFCHead needs a conv or an fc layer."
        channels, height, width = input_shape.channels, input_shape.height, input_shape.width
        convs, fcs = [], []
        for k, dim in enumerate(conv_dims, 1):
            conv = conv3x3(channels, dim, conv_norm)
            self.add_module(f"conv{k}", conv)
            convs.append(conv)
            channels = dim
        self._output_shape = ShapeSpec(channels=channels, height=height, width=width)
        if fc_dims:
            self.add_module("flatten", nn.Flatten())
            channels *= height * width
        for k, dim in enumerate(fc_dims, 1):
            fc = nn.Linear(channels, dim)
            self.add_module(f"fc{k}", fc)
            self.add_module(f"fc_relu{k}", nn.ReLU())
            fcs.append(fc)
            channels = dim
            self._output_shape = ShapeSpec(channels=dim)
        for conv in convs:
            weight_init.c2_msra_fill(conv)
        for fc in fcs:
            weight_init.c2_xavier_fill(fc)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dims": [head.CONV_DIM] * head.NUM_CONV,
            "fc_dims": [head.FC_DIM] * head.NUM_FC,
            "conv_norm": head.NORM,
        }

    @property
    def output_shape(self) -> ShapeSpec:
        """Channels of the vectors, or channels and size of the maps if there are no fc layers."""
        return self._output_shape
