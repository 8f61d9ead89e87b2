"""Detectors in two stages, and their first stage alone. N: images of the batch."""

import numpy as np
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage

from ..backbone import build_backbone
from ..proposal_generator import build_proposal_generator
from ..roi_heads import build_roi_heads
from .build import META_ARCH_REGISTRY
from .image_model import ImageModel


class _ProposalDetector(ImageModel):
    """What both have. proposal_generator: None takes each input's "proposals"; kwargs: backbone and pixel_*."""

    @configurable
    def __init__(self, *, proposal_generator: nn.Module | None, **kwargs):
        super().__init__(**kwargs)
        self.proposal_generator = proposal_generator

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        proposal_generator = build_proposal_generator(cfg, backbone.output_shape())
        pixels = {"pixel_mean": cfg.MODEL.PIXEL_MEAN, "pixel_std": cfg.MODEL.PIXEL_STD}
        return {"backbone": backbone, "proposal_generator": proposal_generator, **pixels}

    def _propose(self, batched_inputs: list[dict]):
        """Returns images, features, ground truth (None if there is none), proposals per image and the proposal
        generator's losses."""
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
    """Backbone, proposals, RoI heads. vis_period: iterations between images of the proposals (which alone need the
    input_format, "RGB", "BGR", ...); 0: none. kwargs: backbone, proposal_generator, pixel_mean, pixel_std."""

    @configurable
    def __init__(self, *, roi_heads: nn.Module, input_format: str | None = None, vis_period: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.roi_heads, self.input_format, self.vis_period = roi_heads, input_format, vis_period
        assert vis_period == 0 or input_format is not None, "vis_period > 0 needs input_format."

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        ret["roi_heads"] = build_roi_heads(cfg, ret["backbone"].output_shape())
        return {**ret, "input_format": cfg.INPUT.FORMAT, "vis_period": cfg.VIS_PERIOD}

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, else what `inference` returns.
        batched_inputs: per image a dict with `image` (C, H, W) of 0-255; in training `instances` (gt_boxes,
        gt_classes and what the heads want); at inference `height` and `width` of the output (default: the image's)."""
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
        """Detect, or complete `detected_instances` (pred_boxes, pred_classes) with the heads that take given boxes.
        Returns [{"instances": Instances}] at the output's size; without do_postprocess Instances at the input's."""
        assert not self.training, "inference() needs eval()."
        if detected_instances is None:
            images, features, _, proposals, _ = self._propose(batched_inputs)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            images = self.preprocess_image(batched_inputs)
            given = [x.to(self.device) for x in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(self.backbone(images.tensor), given)
        return self._postprocess(results, batched_inputs, images.image_sizes) if do_postprocess else results

    def visualize_training(self, batched_inputs: list[dict], proposals: list[Instances]) -> None:
        """Put a picture of the first image with its ground truth, beside it with 20 proposals."""
        from detectron2.utils.visualizer import Visualizer  # imports matplotlib

        image = convert_image_to_rgb(batched_inputs[0]["image"].permute(1, 2, 0), self.input_format)
        both = batched_inputs[0]["instances"].gt_boxes, proposals[0].proposal_boxes[:20].to("cpu")
        pictures = [Visualizer(image, None).overlay_instances(boxes=boxes).get_image() for boxes in both]
        picture = np.concatenate(pictures, axis=1).transpose(2, 0, 1)
        get_event_storage().put_image("Left: GT bounding boxes;  Right: Predicted proposals", picture)


@META_ARCH_REGISTRY.register()
class ProposalNetwork(_ProposalDetector):
    """The first stage alone."""

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, else [{"proposals": Instances}]; inputs as in GeneralizedRCNN."""
        images, _, _, proposals, losses = self._propose(batched_inputs)
        if self.training:
            return losses
        return self._postprocess(proposals, batched_inputs, images.image_sizes, "proposals")
