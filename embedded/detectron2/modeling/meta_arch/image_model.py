"""What all detectors do with their inputs and outputs."""

from collections.abc import Sequence

import torch
from torch import nn

from detectron2.structures import ImageList, Instances

from ..backbone import Backbone
from ..postprocessing import detector_postprocess


class ImageModel(nn.Module):
    """A backbone on normalised images, and results at the wanted size."""

    def __init__(self, backbone: Backbone, pixel_mean: Sequence[float], pixel_std: Sequence[float]):
        """pixel_mean, pixel_std: per channel, in the input's order of channels, of values in 0-255."""
        super().__init__()
        self.backbone = backbone
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(list(values)).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise, then pad with 0 to a common size that suits the backbone."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        constraints = self.backbone.padding_constraints
        return ImageList.from_tensors(images, self.backbone.size_divisibility, padding_constraints=constraints)

    @staticmethod
    def _postprocess(
        instances: list[Instances], batched_inputs: list[dict], image_sizes, key="instances"
    ) -> list[dict]:
        """Results under `key`, at each input's `height` x `width` (default: the image's)."""
        return [
            {key: detector_postprocess(r, x.get("height", h), x.get("width", w))}
            for r, x, (h, w) in zip(instances, batched_inputs, image_sizes)
        ]
