"""FPN-DEPLA ("Aggregation with Feature Detection", sec. 4.3 and Figure 7): DEPLA between every two adjacent levels.

X is the lateral map of a level, Y the merged map of the next coarser one before its output convolution.
"""

from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.modeling.backbone import FPN, Backbone

from .depla import DEPLA, DEPLASpec

FPN_SPEC = DEPLASpec(back_filling="adaptive", temperature=0.5, keep_sum=True)


class DEPLAFPN(FPN):
    """FPN whose levels are merged by DEPLA; `fpn_depla{s}` makes the level of stride 2**s. Other names are FPN's.

    Differs from the paper, as far as its text goes: FPN_SPEC keeps FPN's sum (see the project's README).
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: list[str],
        out_channels: int,
        norm: str = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
        *,
        depla: DEPLASpec | None = FPN_SPEC,
    ):
        """depla: None for the plain FPN; the others are FPN's."""
        super().__init__(bottom_up, in_features, out_channels, norm=norm, top_block=top_block, fuse_type=fuse_type)
        names = []  # of the modules, coarsest first
        for feature in in_features[:-1] if depla is not None else []:
            level = bottom_up.output_shape()[feature].stride.bit_length() - 1
            names.insert(0, f"fpn_depla{level}")
            self.add_module(names[0], DEPLA(out_channels, out_channels, spec=depla, fill=weight_init.c2_xavier_fill))
        self.depla_names = tuple(names)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W) -> {"p2": ..., "p3": ...}, finest first. Sizes need not be multiples of the strides."""
        if not self.depla_names:
            return super().forward(x)
        bottom_up = self.bottom_up(x)
        results, merged = [], None
        names = (None, *self.depla_names)
        for feature, lateral, output, name in zip(
            self.in_features[::-1], self.lateral_convs, self.output_convs, names, strict=True
        ):
            current = lateral(bottom_up[feature])
            merged = current if name is None else self._merge(getattr(self, name), current, merged)
            results.insert(0, output(merged))
        if self.top_block is not None:
            source = self.top_block.in_feature
            top = bottom_up[source] if source in bottom_up else results[self._out_features.index(source)]
            results.extend(self.top_block(top))
        return dict(zip(self._out_features, results, strict=True))

    def _merge(self, depla: DEPLA, current: Tensor, above: Tensor) -> Tensor:
        merged = depla(current, above)
        return merged / 2 if self._fuse_type == "avg" else merged
