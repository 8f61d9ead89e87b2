"""An image classifier around any backbone. N: images, C: channels, H x W: pixels or cells, K: classes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from shared.config import register_project_config


@register_project_config
def add_classifier_config(cfg: CfgNode) -> None:
    """Keys of `MODEL.META_ARCHITECTURE: ImageClassifier`; the arguments of the class."""
    cfg.MODEL.CLASSIFIER = CfgNode()
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 1000
    cfg.MODEL.CLASSIFIER.IN_FEATURE = ""
    cfg.MODEL.CLASSIFIER.DROPOUT = 0.0
    cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING = 0.0


@META_ARCH_REGISTRY.register()
class ImageClassifier(nn.Module):
    """Backbone, mean over the cells of one feature map, dropout, linear layer, cross entropy.

    Its state dict holds `backbone.*` and the head, `fc.*`; `shared.classification.weights` brings the
    former into a detector.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        in_feature: str = "",
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
    ):
        """
        Args:
            pixel_mean, pixel_std: per channel, of values in 0-255, in the order of the input's channels.
            in_feature: name of the backbone's output that is classified; "" takes its last one.
            label_smoothing: share of each training label that is spread evenly over all K classes.
        Raises:
            ValueError: num_classes below 1; in_feature is no output of the backbone.
        """
        super().__init__()
        shapes = backbone.output_shape()
        in_feature = in_feature or list(shapes)[-1]
        if in_feature not in shapes:
            raise ValueError(
                f"ImageClassifier: in_feature {in_feature!r} is none of the backbone's outputs ({', '.join(shapes)}): "
                f"set model.in_feature to one of them, or add it to the backbone's out_features."
            )
        if num_classes is None or num_classes < 1:
            raise ValueError(f"ImageClassifier: num_classes must be at least 1, got {num_classes}.")
        self.backbone = backbone
        self.in_feature, self.num_classes, self.label_smoothing = in_feature, num_classes, label_smoothing
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(shapes[in_feature].channels, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(list(values)).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        head = cfg.MODEL.CLASSIFIER
        return {
            "backbone": build_backbone(cfg),
            "num_classes": head.NUM_CLASSES,
            "in_feature": head.IN_FEATURE,
            "dropout": head.DROPOUT,
            "label_smoothing": head.LABEL_SMOOTHING,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Classify images, all of one size.

        Args:
            batched_inputs: per image "image", (C, H, W) in 0-255, and for training "label", a class index or
                the K probabilities of a mixed image.
        Returns:
            {"loss_cls": mean cross entropy} in training; else per image {"scores": (K,) softmax,
            "pred_class": index of the largest}.
        """
        logits = self.classify(self.preprocess_image(batched_inputs))
        if self.training:
            return {"loss_cls": self.loss(logits, batched_inputs)}
        scores = logits.float().softmax(dim=1)
        return [{"scores": s, "pred_class": p} for s, p in zip(scores, scores.argmax(dim=1))]

    def preprocess_image(self, batched_inputs: list[dict]) -> Tensor:
        """Normalised (N, C, H, W). Not padded: the mean over cells would count what was added."""
        sizes = sorted({tuple(map(int, x["image"].shape[-2:])) for x in batched_inputs})  # int: also when traced
        if len(sizes) > 1:
            raise ValueError(
                f"ImageClassifier needs images of one size in a batch, got {sizes}: end the mapper's transforms "
                f"with a crop, such as CenterCrop."
            )
        divisor = self.backbone.size_divisibility or 1
        if any(side % divisor for side in sizes[0]):
            raise ValueError(
                f"ImageClassifier: the backbone needs sides that {divisor} divides, got {sizes[0]}: change the size "
                f"that the mapper's transforms crop to."
            )
        images = torch.stack([x["image"].to(self.device) for x in batched_inputs])
        return (images - self.pixel_mean) / self.pixel_std

    def classify(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) -> logits (N, K)."""
        return self.head(self.backbone(images))

    def head(self, features: dict[str, Tensor]) -> Tensor:
        """The backbone's maps -> logits (N, K)."""
        return self.fc(self.dropout(features[self.in_feature].mean(dim=(2, 3))))

    def loss(self, logits: Tensor, batched_inputs: list[dict]) -> Tensor:
        """Cross entropy (nats), mean over the images."""
        labels = torch.stack([torch.as_tensor(x["label"]) for x in batched_inputs]).to(self.device)
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
