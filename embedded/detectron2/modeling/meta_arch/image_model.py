"""What all detectors do with their inputs and outputs."""

from collections.abc import Sequence

import torch
from torch import nn

from detectron2.structures import ImageList, Instances

from ..postprocessing import detector_postprocess


class ImageModel(nn.Module):
    """Normalises images for `self.backbone`, and scales results to the wanted size."""

    def __init__(self, pixel_mean: Sequence[float], pixel_std: Sequence[float]):
        """pixel_mean, pixel_std: per channel, of values in 0-255."""
        super().__init__()
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            values = torch.tensor(list(values)).view(-1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise, then pad with 0 to a common size that suits the backbone."""
        images = [x["image"].to(self.device) for x in batched_inputs]
        return ImageList.from_tensors(
            [(x - self.pixel_mean) / self.pixel_std for x in images],
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    @staticmethod
    def _postprocess(
        instances: list[Instances],
        batched_inputs: list[dict],
        image_sizes: list[tuple[int, int]],
        key: str = "instances",
    ) -> list[dict]:
        """Results under `key`, at each input's `height` x `width` (default: the image's)."""
        return [
            {key: detector_postprocess(r, x.get("height", h), x.get("width", w))}
            for r, x, (h, w) in zip(instances, batched_inputs, image_sizes)
        ]
