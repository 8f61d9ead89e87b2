"""A model as a function from one image to tensors. C x H x W: the image, R: detections, K: classes."""

import torch
from torch import Tensor, nn

from detectron2.structures import Instances
from shared.classification import ImageClassifier

PARTS = ("model", "backbone")


class ExportProgram(nn.Module):
    """`forward(image)`, a (C, H, W) image in 0-255 as the config's test mapper makes it, to a tuple of tensors.

    A detector gives `boxes` (R, 4), xyxy in pixels of that image, `scores` (R,), `classes` (R,) int64 and, with a mask
    head, `masks` (R, M, M), probabilities within each box; a classifier `scores` (K,); the part "backbone" its maps
    (1, channels, height, width), of the padded image. `output_names` are set by each call.
    """

    def __init__(self, model: nn.Module, part: str = "model"):
        super().__init__()
        self.model, self.part = model.eval(), part
        self.output_names: tuple[str, ...] = ()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if self.part == "backbone":
            outputs = self._maps(image)
        elif isinstance(self.model, ImageClassifier):
            outputs = {"scores": self.model([{"image": image}])[0]["scores"]}
        else:
            outputs = self._detect(image)
        self.output_names = tuple(outputs)
        return tuple(outputs.values())

    def _maps(self, image: Tensor) -> dict[str, Tensor]:
        images = self.model.preprocess_image([{"image": image}])
        return dict(self.model.backbone(images if isinstance(images, Tensor) else images.tensor))

    def _detect(self, image: Tensor) -> dict[str, Tensor]:
        inputs = [{"image": image}]
        if not hasattr(self.model, "roi_heads"):
            return _flat(self.model(inputs)[0]["instances"])
        # At the image's own size, postprocessing would only drop empty boxes and paste the masks.
        found = _flat(self.model.inference(inputs, do_postprocess=False)[0])
        sides = found["boxes"][:, 2:] - found["boxes"][:, :2]
        rows = (sides > 0).all(dim=1).nonzero()[:, 0]
        return {name: value[rows] for name, value in found.items()}


def _flat(instances: Instances) -> dict[str, Tensor]:
    fields = {"boxes": instances.pred_boxes.tensor, "scores": instances.scores, "classes": instances.pred_classes}
    if instances.has("pred_masks"):
        fields["masks"] = instances.pred_masks[:, 0]
    return fields


def largest_difference(names: tuple[str, ...], expected: tuple[Tensor, ...], got: tuple[Tensor, ...]) -> float:
    """Of any number of two results; infinite where they have other shapes.

    Detections are compared with the most similar one of the same class, each taken once: scores that differ by a
    rounding error may stand in another order.
    """
    if [a.shape for a in expected] != [b.shape for b in got]:
        return float("inf")
    if "classes" in names:
        got = tuple(b[_partners(dict(zip(names, expected)), dict(zip(names, got)))] for b in got)
        classes = names.index("classes")
        if not torch.equal(expected[classes], got[classes].to(expected[classes])):
            return float("inf")
    pairs = [(a, b) for a, b in zip(expected, got) if a.numel()]
    return max((float((a.double() - b.double()).abs().max()) for a, b in pairs), default=0.0)


def _partners(expected: dict[str, Tensor], got: dict[str, Tensor]) -> Tensor:
    """For each of the R expected detections the index of its partner among R others."""
    boxes = (expected["boxes"][:, None] - got["boxes"]).abs().amax(dim=2)
    cost = boxes + (expected["scores"][:, None] - got["scores"]).abs()
    cost = cost.masked_fill(expected["classes"][:, None] != got["classes"], float("inf"))
    partners = torch.zeros(len(cost), dtype=torch.int64)
    for row in range(len(cost)):
        partners[row] = cost[row].argmin()
        cost[:, partners[row]] = float("inf")
    return partners
