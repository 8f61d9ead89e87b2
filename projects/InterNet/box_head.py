"""Box head that mixes in the critic's feature ("Feature Intertwiner for Object Detection", ICLR 2019,
arXiv:1903.11851, Sec. 4.2, Table 2c). R: RoIs of the whole batch, C: channels, S x S: pooled size."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead

FUSIONS = ("linear", "separate", "add")


@ROI_BOX_HEAD_REGISTRY.register()
class InterNetConvFCHead(FastRCNNConvFCHead):
    """Average pooling, then FastRCNNConvFCHead with the critic's feature f mixed in after the first fc layer's ReLU:

        "linear"    h = (1 - w) fc1(x) + w f
        "separate"  h = fc1(x)
        "add"       h = fc1(x) + f; the paper reports that it diverges

    for all RoIs, in training and at inference. Pooling 14 x 14 by 2 leaves the baseline's 7 x 7 and its parameters:
    RoIAlign with s samples a bin and axis becomes the one with 2s. (The paper does not say how 14 x 14 reach fc1,
    which would have 51 M parameters; its code mixes only ground truth foreground in training, a label leak.)
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        fc_dims: Sequence[int],
        conv_dims: Sequence[int] = (),
        conv_norm: str = "",
        pool: int = 2,
        fusion: str = "linear",
        fusion_weight: float = 0.5,
    ):
        """input_shape: (C, S, S) of the made-up features. pool: side of the averaged windows, a divisor of S.
        fc_dims[0] must be the width of f unless fusion is "separate". The rest as FastRCNNConvFCHead's."""
        if fusion not in FUSIONS:
            raise ValueError(
                f"InterNetConvFCHead: fusion (MODEL.INTERNET.FUSION) is {fusion!r}, choose one of {', '.join(FUSIONS)}."
            )
        if len(fc_dims) == 0:
            raise ValueError("InterNetConvFCHead: fc_dims is empty (MODEL.ROI_BOX_HEAD.NUM_FC): set one at least.")
        side = input_shape.height
        if pool < 1 or side % pool:
            raise ValueError(
                f"InterNetConvFCHead: RoIs of {side} x {side} cannot be averaged to an even size: make ROI_SIZE a "
                f"multiple of MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION, or pool a divisor of input_shape.height."
            )
        pooled = ShapeSpec(channels=input_shape.channels, height=side // pool, width=input_shape.width // pool)
        super().__init__(pooled, conv_dims=list(conv_dims), fc_dims=list(fc_dims), conv_norm=conv_norm)
        self.pool, self.fusion, self.fusion_weight = pool, fusion, fusion_weight

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        node = cfg.MODEL.INTERNET
        side, wanted = input_shape.height, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        return {
            **super().from_config(cfg, input_shape),
            "pool": side // wanted if side % wanted == 0 else 0,
            "fusion": node.FUSION if node.ENABLED else "separate",
            "fusion_weight": node.FUSION_WEIGHT,
        }

    def forward(self, x: Tensor, critic_feature: Tensor | None = None) -> Tensor:
        """x: (R, C, S, S), R may be 0; critic_feature: (R, fc_dims[0]), None if "separate".
        Returns (R, fc_dims[-1])."""
        if self.pool > 1:
            x = F.avg_pool2d(x, self.pool)
        for name, layer in self.named_children():
            x = layer(x)
            if name == "fc_relu1":
                x = self._fuse(x, critic_feature)
        return x

    def _fuse(self, x: Tensor, critic_feature: Tensor | None) -> Tensor:
        if self.fusion == "separate":
            return x
        critic_feature = critic_feature.to(x.dtype)
        if self.fusion == "add":
            return x + critic_feature
        return (1 - self.fusion_weight) * x + self.fusion_weight * critic_feature
