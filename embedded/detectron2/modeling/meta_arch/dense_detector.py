"""Base of detectors that predict at every cell of the feature maps, without proposals.

N: images, A: anchors per cell, R: anchors of all levels, K: classes.
"""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from detectron2.layers import batched_nms
from detectron2.structures import Boxes, ImageList, Instances

from ..backbone import Backbone
from .image_model import ImageModel


def permute_to_N_HWA_K(x: Tensor, K: int) -> Tensor:
    """(N, A*K, H, W) -> (N, H*W*A, K), in the order of the anchors."""
    assert x.dim() == 4, f"Dense predictions must be (N, A*K, H, W), got {tuple(x.shape)}."
    return x.unflatten(1, (-1, K)).permute(0, 3, 4, 1, 2).flatten(1, 3)


class DenseDetector(ImageModel):
    """Backbone, head, and everything that dense detectors share.

    Subclasses implement `forward_training` and `forward_inference`; for `inference_single_image`
    they set box2box_transform, test_score_thresh, test_topk_candidates, test_nms_thresh and
    max_detections_per_image.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str] | None = None,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        """
        Args:
            head: called with the list of maps; returns a tuple of lists of maps.
            head_in_features: names of the backbone's maps; default all, by rising stride.
        """
        super().__init__(pixel_mean, pixel_std)
        self.backbone = backbone
        self.head = head
        if head_in_features is None:
            shapes = backbone.output_shape()
            head_in_features = sorted(shapes, key=lambda name: shapes[name].stride)
        self.head_in_features = list(head_in_features)

    def forward(self, batched_inputs: list[dict]):
        """Dicts with `image` (C, H, W) in 0-255; `instances` in training; optionally `height`,
        `width` of the output. Returns a dict of losses, or `[{"instances": Instances}]`."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        features = [features[name] for name in self.head_in_features]
        predictions = self.head(features)
        if self.training:
            assert "instances" in batched_inputs[0], (
                f"{type(self).__name__} in training needs `instances` in every input."
            )
            gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
            return self.forward_training(images, features, predictions, gt_instances)
        results = self.forward_inference(images, features, predictions)
        return self._postprocess(results, batched_inputs, images.image_sizes)

    @abstractmethod
    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: tuple[list[Tensor], ...],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Losses by name."""

    @abstractmethod
    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: tuple[list[Tensor], ...]
    ) -> list[Instances]:
        """Detections per image, in pixels of the input."""

    def _transpose_dense_predictions(
        self, predictions: tuple[list[Tensor], ...], dims_per_anchor: list[int]
    ) -> list[list[Tensor]]:
        """Per kind of prediction and level: (N, A*K, H, W) -> (N, H*W*A, K)."""
        assert len(predictions) == len(dims_per_anchor), (
            f"The head returned {len(predictions)} predictions, expected {len(dims_per_anchor)}."
        )
        return [[permute_to_N_HWA_K(x, dim) for x in maps] for maps, dim in zip(predictions, dims_per_anchor)]

    def _ema_update(self, name: str, value: float, initial_value: float, momentum: float = 0.9) -> float:
        """Moving average kept as a plain attribute: a resumed run starts at `initial_value`."""
        value = getattr(self, name, initial_value) * momentum + value * (1 - momentum)
        setattr(self, name, value)
        return value

    def _decode_per_level_predictions(
        self,
        anchors: Boxes,
        pred_scores: Tensor,
        pred_deltas: Tensor,
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int],
    ) -> Instances:
        """The best (anchor, class) pairs of one level above `score_thresh`, decoded.

        pred_scores: (H*W*A, K) in [0, 1]. pred_deltas: (H*W*A, 4).
        """
        keep = pred_scores > score_thresh
        pairs = keep.nonzero()
        scores, order = pred_scores[keep].topk(min(topk_candidates, len(pairs)))
        rows, classes = pairs[order].unbind(dim=1)
        boxes = self.box2box_transform.apply_deltas(pred_deltas[rows], anchors.tensor[rows])
        return Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)

    def _decode_multi_level_predictions(
        self,
        anchors: list[Boxes],
        pred_scores: list[Tensor],
        pred_deltas: list[Tensor],
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int],
    ) -> Instances:
        """`_decode_per_level_predictions` of all levels, concatenated."""
        args = score_thresh, topk_candidates, image_size
        levels = zip(anchors, pred_scores, pred_deltas)
        return Instances.cat([self._decode_per_level_predictions(*x, *args) for x in levels])

    def inference_single_image(
        self, anchors: list[Boxes], pred_scores: list[Tensor], pred_deltas: list[Tensor], image_size: tuple[int, int]
    ) -> Instances:
        """Detections of one image from scores (Ri, K) and deltas (Ri, 4) per level, after NMS."""
        limits = self.test_score_thresh, self.test_topk_candidates
        found = self._decode_multi_level_predictions(anchors, pred_scores, pred_deltas, *limits, image_size)
        keep = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, self.test_nms_thresh)
        return found[keep[: self.max_detections_per_image]]
