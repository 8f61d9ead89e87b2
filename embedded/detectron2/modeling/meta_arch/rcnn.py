"""Detectors in two stages, and their first stage alone. N: images of the batch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage

from ..backbone import Backbone, build_backbone
from ..postprocessing import detector_postprocess
from ..proposal_generator import build_proposal_generator
from ..roi_heads import build_roi_heads
from .build import META_ARCH_REGISTRY


class _ProposalDetector(nn.Module):
    """What both have: a backbone and a proposal generator on normalised images.

    pixel_mean, pixel_std: per channel, in the input's order of channels, of 0-255.
    """

    def __init__(self, backbone, proposal_generator, pixel_mean, pixel_std):
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            values = torch.tensor(list(values)).view(-1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images, and pad them with zeros to a common size."""
        images = [x["image"].to(self.device) for x in batched_inputs]
        return ImageList.from_tensors(
            [(x - self.pixel_mean) / self.pixel_std for x in images],
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    def _propose(self, batched_inputs: list[dict]):
        """Returns images, features, ground truth (None if there is none), proposals per image
        and the proposal generator's losses."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        gt_instances = None
        if self.training and "instances" in batched_inputs[0]:
            gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
        if self.proposal_generator is None:
            proposals, losses = [x["proposals"].to(self.device) for x in batched_inputs], {}
        else:
            proposals, losses = self.proposal_generator(images, features, gt_instances)
        return images, features, gt_instances, proposals, losses


@META_ARCH_REGISTRY.register()
class GeneralizedRCNN(_ProposalDetector):
    """Backbone, proposals, RoI heads.

    Args:
        proposal_generator: None takes each input's "proposals".
        input_format: "RGB", "BGR", ...: needed for the images of vis_period alone.
        vis_period: iterations between images of the proposals; 0: none.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module | None,
        roi_heads: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str | None = None,
        vis_period: int = 0,
    ):
        super().__init__(backbone, proposal_generator, pixel_mean, pixel_std)
        self.roi_heads = roi_heads
        self.input_format = input_format
        self.vis_period = vis_period
        assert vis_period == 0 or input_format is not None, "vis_period > 0 needs input_format."

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        return {
            **ret,
            "roi_heads": build_roi_heads(cfg, ret["backbone"].output_shape()),
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, else what `inference` returns.

        Args:
            batched_inputs: per image a dict with `image` (C, H, W) of 0-255; in training
                `instances` (gt_boxes, gt_classes and what the heads want); at inference `height`
                and `width`, the size of the output (default: the image's).
        """
        if not self.training:
            return self.inference(batched_inputs)
        images, features, gt_instances, proposals, rpn_losses = self._propose(batched_inputs)
        _, losses = self.roi_heads(images, features, proposals, gt_instances)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return {**losses, **rpn_losses}

    def inference(
        self, batched_inputs: list[dict], detected_instances: list[Instances] | None = None, do_postprocess: bool = True
    ) -> list[dict] | list[Instances]:
        """Detect, or complete `detected_instances` (pred_boxes, pred_classes) with the heads that
        take given boxes. Returns [{"instances": Instances}] at the output's size; without
        do_postprocess Instances in the coordinates of the input image."""
        assert not self.training, "inference() needs eval()."
        if detected_instances is None:
            images, features, _, proposals, _ = self._propose(batched_inputs)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            images = self.preprocess_image(batched_inputs)
            features = self.backbone(images.tensor)
            given = [x.to(self.device) for x in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, given)
        if not do_postprocess:
            return results
        return self._postprocess(results, batched_inputs, images.image_sizes)

    @staticmethod
    def _postprocess(
        instances: list[Instances], batched_inputs: list[dict], image_sizes, key: str = "instances"
    ) -> list[dict]:
        """Every image's results at its output's size, under `key`."""
        return [
            {key: detector_postprocess(r, x.get("height", h), x.get("width", w))}
            for r, x, (h, w) in zip(instances, batched_inputs, image_sizes)
        ]

    def visualize_training(self, batched_inputs: list[dict], proposals: list[Instances]) -> None:
        """Put a picture of the first image with its ground truth, beside it with 20 proposals."""
        from detectron2.utils.visualizer import Visualizer  # imports matplotlib

        image = batched_inputs[0]["image"].permute(1, 2, 0)
        image = convert_image_to_rgb(image, self.input_format)
        truth = batched_inputs[0]["instances"].gt_boxes
        proposed = proposals[0].proposal_boxes[:20].to("cpu")
        pictures = [Visualizer(image, None).overlay_instances(boxes=boxes).get_image() for boxes in (truth, proposed)]
        get_event_storage().put_image(
            "Left: GT bounding boxes;  Right: Predicted proposals", np.concatenate(pictures, axis=1).transpose(2, 0, 1)
        )


@META_ARCH_REGISTRY.register()
class ProposalNetwork(_ProposalDetector):
    """The first stage alone."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        super().__init__(backbone, proposal_generator, pixel_mean, pixel_std)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, else [{"proposals": Instances}]; inputs as in GeneralizedRCNN."""
        images, _, _, proposals, losses = self._propose(batched_inputs)
        if self.training:
            return losses
        sizes = images.image_sizes
        return GeneralizedRCNN._postprocess(proposals, batched_inputs, sizes, "proposals")
