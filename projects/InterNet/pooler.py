"""RoI pooling with levels that are known beforehand. N: images, C: channels, R: RoIs of the whole batch."""

from collections.abc import Sequence

from torch import Tensor

from detectron2.layers import nonzero_tuple
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.structures import Boxes

from .assign import LevelAssigner


class InterNetROIPooler(ROIPooler):
    """Detectron2's ROIPooler with a LevelAssigner instead of its own rule, and a second way in for large objects.

    `pooler(maps, boxes)` is that of ROIPooler, so that any ROI heads can use the assigner.
    """

    def __init__(
        self,
        output_size: int,
        scales: Sequence[float],
        sampling_ratio: int,
        pooler_type: str = "ROIAlignV2",
        *,
        assigner: LevelAssigner,
    ):
        """scales: 1 / stride per level, finest first. The rest as ROIPooler's."""
        scales = tuple(scales)
        if len(scales) != assigner.num_levels:
            raise ValueError(
                f"InterNetROIPooler got {len(scales)} scales and an assigner of {assigner.num_levels} levels; "
                f"set num_levels (MODEL.INTERNET.NUM_LEVELS) to the number of feature maps."
            )
        super().__init__(output_size, scales, sampling_ratio, pooler_type)
        self.assigner = assigner
        self.strides = [round(1 / scale) for scale in scales]

    def forward(self, x: list[Tensor], box_lists: list[Boxes], levels: Tensor | None = None) -> Tensor:
        """Maps (N, C, H_l, W_l) per level, boxes per image -> (R, C, h, w) in the images' order.
        levels: index of each box's map, (R,); by default the assigner's."""
        if levels is None:
            levels = self.assigner(box_lists)
        return self.pool_from(x, range(len(x)), convert_boxes_to_pooler_format(box_lists), levels)

    def pool_from(self, maps: Sequence[Tensor], map_levels: Sequence[int], rois: Tensor, index: Tensor) -> Tensor:
        """Pool RoI r from maps[index[r]], which has the cells of level map_levels[index[r]].

        maps: (N, C, H, W) each; rois: (R, 5) image, x0, y0, x1, y1 in pixels; index: (R,). Returns (R, C, h, w).
        """
        output = maps[0].new_zeros(len(rois), maps[0].shape[1], *self.output_size)
        # A map without RoIs is pooled too: it then gets a gradient (of zeros).
        for i, (x, level) in enumerate(zip(maps, map_levels)):
            rows = nonzero_tuple(index == i)[0]
            output.index_put_((rows,), self.level_poolers[level](x, rois[rows]).to(output.dtype))
        return output
