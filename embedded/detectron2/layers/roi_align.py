"""RoIAlign (arXiv:1703.06870) as a module."""

from torch import Tensor
from torchvision.ops import RoIAlign, roi_align  # noqa: F401


class ROIAlign(RoIAlign):
    """Pool each RoI of a feature map to `output_size` by bilinear sampling. `spatial_scale` is cells per pixel;
    `sampling_ratio` 0 takes ceil(RoI side / bins) samples. `aligned` puts the samples at pixel centres, half a cell
    left of the original formula."""

    def __init__(self, output_size, spatial_scale: float, sampling_ratio: int, aligned: bool = True):
        super().__init__(output_size, spatial_scale, sampling_ratio, aligned)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """input: (N, C, H, W); rois: (R, 5) batch index, x0, y0, x1, y1. Returns (R, C, *size)."""
        expected = "(R, 5) rois (batch index, x0, y0, x1, y1)"
        assert rois.dim() == 2 and rois.size(1) == 5, f"ROIAlign takes {expected}, got {tuple(rois.shape)}."
        return super().forward(input, rois.to(dtype=input.dtype))
