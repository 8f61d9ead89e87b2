"""Optimal transport between the stages of a classifier ("Feature Intertwiner for Object Detection", ICLR 2019,
arXiv:1903.11851, Sec. 6.3: CIFAR-10). The paper names neither network nor weights; both are ours."""

from torch import Tensor

from shared.classification import ImageClassifier

from .transport import ScaleOT


class StageAlignedClassifier(ImageClassifier):
    """An ImageClassifier whose neighbouring stages are aligned in training, by the loss of a `ScaleOT`.

    A stage is a level, the finest first, each channel a sample. At inference it is the plain classifier, bit for bit.
    """

    training_only = ("transport",)

    def __init__(self, *, transport: ScaleOT, **classifier):
        """transport: one level for each output of the backbone, in their order. classifier: ImageClassifier's."""
        super().__init__(**classifier)
        shapes = self.backbone.output_shape()
        if len(shapes) != transport.num_levels:
            raise ValueError(
                f"StageAlignedClassifier: the backbone's outputs are {', '.join(shapes)}, but transport has num_levels "
                f"{transport.num_levels}: set model.backbone.out_features and model.transport alike."
            )
        self.transport = transport
        self._strides = [shape.stride for shape in shapes.values()]

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """As ImageClassifier; in training also "loss_ot"."""
        if not self.training:
            return super().forward(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images)
        sizes = [tuple(images.shape[-2:])] * len(images)
        maps = [features[name] for name in self.backbone.output_shape()]
        _, losses = self.transport(maps, sizes, self._strides, "none")
        return {"loss_cls": self.loss(self.head(features), batched_inputs), **losses}
