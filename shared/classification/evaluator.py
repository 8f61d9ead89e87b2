"""Accuracy of a classifier."""

import numpy as np

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm


class ClassificationEvaluator(DatasetEvaluator):
    """Top-1, top-5 and per-class accuracy in percent, of all processes' images together.

    Every image counts once as long as the sampler deals each out once (Detectron2's InferenceSampler does).
    """

    def __init__(self, dataset_name: str):
        """dataset_name: its metadata have the class names, `thing_classes`."""
        self._classes = list(MetadataCatalog.get(dataset_name).thing_classes)
        self.reset()

    def reset(self) -> None:
        # rows: images, those right, those with the class among the five best; columns: classes
        self._counts = np.zeros((3, len(self._classes)), dtype=np.int64)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """inputs with "label", outputs with "scores", (K,)."""
        for x, y in zip(inputs, outputs):
            label, scores = int(x["label"]), y["scores"]
            if len(scores) != len(self._classes):
                raise ValueError(
                    f"The model scores {len(scores)} classes, the data set has {len(self._classes)}: "
                    f"set model.num_classes={len(self._classes)}."
                )
            best = scores.topk(min(5, len(scores))).indices.tolist()
            self._counts[:, label] += (1, best[0] == label, label in best)

    def evaluate(self) -> dict | None:
        """{"classification": {"top1", "top5" (of 5 classes or more), "class_mean", "accuracy-<class>"}}.

        class_mean: mean of the accuracies of the classes that have images. Main process only.
        """
        gathered = comm.gather(self._counts)
        if not comm.is_main_process():
            return None
        images, right, among_five = np.sum(gathered, axis=0)
        if not images.any():
            raise ValueError("ClassificationEvaluator has seen no image: the data set is empty.")
        metrics = {"top1": 100 * right.sum() / images.sum()}
        if len(self._classes) >= 5:
            metrics["top5"] = 100 * among_five.sum() / images.sum()
        per_class = {
            f"accuracy-{name}": 100 * r / n for name, r, n in zip(self._classes, right, images, strict=True) if n
        }
        metrics["class_mean"] = np.mean(list(per_class.values()))
        return {"classification": {k: float(v) for k, v in {**metrics, **per_class}.items()}}
