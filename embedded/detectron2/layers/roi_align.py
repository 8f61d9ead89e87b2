"""RoIAlign (arXiv:1703.06870) as a module."""

from torch import Tensor, nn
from torchvision.ops import roi_align


class ROIAlign(nn.Module):
    """Pool each RoI of a feature map to `output_size` by bilinear sampling.

    `spatial_scale` is cells per pixel; `sampling_ratio` 0 takes ceil(RoI side / bins) samples.
    `aligned` puts the samples at pixel centres, half a cell left of the original formula.
    """

    def __init__(self, output_size, spatial_scale: float, sampling_ratio: int, aligned: bool = True):
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """input: (N, C, H, W); rois: (R, 5) batch index, x0, y0, x1, y1. Returns (R, C, *size)."""
        assert rois.dim() == 2 and rois.size(1) == 5, (
            f"ROIAlign takes (R, 5) rois (batch index, x0, y0, x1, y1), got {tuple(rois.shape)}."
        )
        options = (self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)
        return roi_align(input, rois.to(dtype=input.dtype), *options)

    def extra_repr(self) -> str:
        names = ("output_size", "spatial_scale", "sampling_ratio", "aligned")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
