"""COCO's average precision for boxes and masks, by pycocotools."""

import io
import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import redirect_stdout

import numpy as np
import pycocotools.mask as mask_util
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from .evaluator import DatasetEvaluator

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # the first six stats of COCOeval
TASKS = ("bbox", "segm")

logger = logging.getLogger(__name__)


class COCOEvaluator(DatasetEvaluator):
    """Box and mask AP (in percent) of a dataset registered with COCO ids or convertible to them.

    {"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-<class>"...}, "segm": {...}}; nan
    where there is no ground truth of a size or class.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        allow_cached_coco: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
    ):
        """tasks: of "bbox", "segm"; default what the predictions have.

        distributed: gather the predictions of all processes; otherwise each evaluates its own.
        output_dir: for the predictions, and for the JSON of a dataset that has none.
        max_dets_per_image: best scored detections that count, at least 10, default 100.
        use_fast_impl, kpt_oks_sigmas: accepted for callers of upstream, without effect.
        """
        for task in tasks or ():
            if task not in TASKS:
                raise ValueError(f"COCOEvaluator has no task {task!r}, only {', '.join(TASKS)}.")
        self._tasks = tasks
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets = [1, 10, 100 if max_dets_per_image is None else max_dets_per_image]
        self._metadata = MetadataCatalog.get(dataset_name)
        self._predictions: list[dict] = []
        if output_dir:
            PathManager.mkdirs(output_dir)
        if not hasattr(self._metadata, "json_file"):
            if not output_dir:
                raise ValueError(
                    f"Dataset {dataset_name!r} has no COCO json_file: give COCOEvaluator an "
                    "output_dir to write one into."
                )
            json_file = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
            self._metadata.json_file = json_file
            convert_to_coco_json(dataset_name, json_file, allow_cached=allow_cached_coco)
        with redirect_stdout(io.StringIO()):
            self._coco_api = COCO(PathManager.get_local_path(self._metadata.json_file))

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """inputs: dicts with "image_id"; outputs: dicts with "instances" in image pixels."""
        for x, output in zip(inputs, outputs):
            if "instances" in output:
                instances = output["instances"].to(torch.device("cpu"))
                results = instances_to_coco_json(instances, x["image_id"])
                self._predictions.append({"image_id": x["image_id"], "instances": results})

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict:
        """img_ids: evaluate on these images only. Processes other than the main one return {}."""
        predictions = self._predictions
        if self._distributed:
            predictions = list(itertools.chain(*comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return {}
        if not predictions:
            logger.warning("COCOEvaluator got no predictions: nothing to evaluate.")
            return {}
        if self._output_dir:
            path = os.path.join(self._output_dir, "instances_predictions.pth")
            with PathManager.open(path, "wb") as f:
                torch.save(predictions, f)
        return self._eval_predictions(predictions, img_ids)

    def _eval_predictions(self, predictions: list[dict], img_ids: Sequence[int] | None) -> dict:
        coco_results = list(itertools.chain(*(p["instances"] for p in predictions)))
        coco_results = self._to_dataset_ids(coco_results)
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            with PathManager.open(path, "w") as f:
                json.dump(coco_results, f)
        results = OrderedDict()
        if "annotations" not in self._coco_api.dataset:
            logger.info("The dataset has no annotations: predictions are saved, not evaluated.")
            return results
        has_masks = any("segmentation" in r for r in coco_results)
        for task in self._tasks or (TASKS if has_masks else TASKS[:1]):
            coco_eval = None
            if coco_results:
                coco_eval = _evaluate_predictions_on_coco(self._coco_api, coco_results, task, self._max_dets, img_ids)
            results[task] = self._derive_coco_results(coco_eval, task, class_names=self._metadata.get("thing_classes"))
        return results

    def _to_dataset_ids(self, coco_results: list[dict]) -> list[dict]:
        """Contiguous classes 0..K-1 to the category ids of the JSON file, where they differ."""
        contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if contiguous is None:
            return coco_results
        dataset_ids = {v: k for k, v in contiguous.items()}
        assert sorted(dataset_ids) == list(range(len(contiguous)))
        for result in coco_results:
            assert result["category_id"] in dataset_ids, (
                f"A prediction has class {result['category_id']}, but the dataset has "
                f"{len(dataset_ids)} classes: set the model's number of classes to that."
            )
        return [r | {"category_id": dataset_ids[r["category_id"]]} for r in coco_results]

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """The metrics in percent, per class too if there are several. Override to add others."""
        if coco_eval is None:
            logger.warning("All predictions are empty.")
            return dict.fromkeys(METRICS, float("nan"))
        results = {m: _percent(v) for m, v in zip(METRICS, coco_eval.stats)}
        recalls = {f"AR{m}": _percent(v) for m, v in zip(self._max_dets, coco_eval.stats[6:])}
        logger.info(f"{iou_type} results:\n" + create_small_table(results | recalls))
        if class_names is None or len(class_names) <= 1:
            return results

        precision = coco_eval.eval["precision"]  # (IoU, recall, class, area, max dets), -1: no gt
        assert len(class_names) == precision.shape[2], (len(class_names), precision.shape)
        per_class = {name: _percent(_mean(precision[:, :, k, 0, -1])) for k, name in enumerate(class_names)}
        logger.info(
            f"Per-category {iou_type} AP:\n" + tabulate(per_class.items(), ["category", "AP"], "pipe", floatfmt=".3f")
        )
        return results | {f"AP-{name}": ap for name, ap in per_class.items()}


def instances_to_coco_json(instances: Instances, img_id: int) -> list[dict]:
    """COCO results of one image on the CPU: XYWH boxes, contiguous classes, masks as RLE."""
    boxes = instances.pred_boxes.tensor
    boxes = BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    rows = zip(boxes, instances.scores.tolist(), instances.pred_classes.tolist())
    results = [
        {"image_id": img_id, "category_id": category, "bbox": box, "score": score} for box, score, category in rows
    ]
    if instances.has("pred_masks"):
        for result, mask in zip(results, instances.pred_masks):
            rle = mask_util.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
            rle["counts"] = rle["counts"].decode("ascii")  # JSON has no bytes
            result["segmentation"] = rle
    return results


class _COCOeval(COCOeval):
    """pycocotools', but AP at the largest maxDets: theirs is -1 unless 100 is among them."""

    def summarize(self) -> None:
        """Six of AP (IoU all, 0.5, 0.75; areas), six of AR (max dets 0, 1, 2; areas)."""
        ap, ar = self.eval["precision"], self.eval["recall"]  # (IoU, ..., class, area, max dets)
        ap50, ap75 = (ap[np.isclose(self.params.iouThrs, t), ..., 0, -1] for t in (0.5, 0.75))
        stats = [ap[..., 0, -1], ap50, ap75, *(ap[..., a, -1] for a in (1, 2, 3))]
        stats += [*(ar[..., 0, m] for m in range(3)), *(ar[..., a, -1] for a in (1, 2, 3))]
        self.stats = np.array([_mean(s) for s in stats])


def _mean(values: np.ndarray) -> float:
    """Mean of the defined entries; -1 if none is, as COCOeval says it."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def _percent(value: float) -> float:
    return float(value * 100) if value >= 0 else float("nan")


def _evaluate_predictions_on_coco(
    coco_gt: COCO,
    coco_results: list[dict],
    iou_type: str,
    max_dets: Sequence[int],
    img_ids: Sequence[int] | None = None,
) -> COCOeval:
    """coco_results: not empty, left as they are."""
    # with a box in it, pycocotools takes the area from the box; it adds fields to its copy
    unused = "bbox" if iou_type == "segm" else None
    coco_results = [{k: v for k, v in r.items() if k != unused} for r in coco_results]
    with redirect_stdout(io.StringIO()):
        coco_dt = coco_gt.loadRes(coco_results)
        coco_eval = _COCOeval(coco_gt, coco_dt, iou_type)
        coco_eval.params.maxDets = list(max_dets)
        if img_ids is not None:
            coco_eval.params.imgIds = img_ids
        coco_eval.evaluate()
        coco_eval.accumulate()
    coco_eval.summarize()
    return coco_eval
