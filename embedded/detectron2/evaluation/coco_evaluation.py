"""COCO's average precision for boxes and masks, by pycocotools."""

import io
import json
import logging
import os
from collections.abc import Sequence
from contextlib import redirect_stdout

import numpy as np
import pycocotools.mask as mask_util
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

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
    """{"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-<class>"...}, "segm": {...}} in percent; nan where there
    is no ground truth of a size or class."""

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
        """tasks: of "bbox", "segm"; default what the predictions have. distributed: gather from all processes.
        output_dir: for the predictions, and for the JSON of a dataset that has none. max_dets_per_image: that count,
        best scores first, default 100. use_fast_impl, kpt_oks_sigmas: for callers of upstream, without effect."""
        if unknown := set(tasks or ()) - set(TASKS):
            raise ValueError(f"COCOEvaluator has no tasks {unknown}, only {TASKS}.")
        self._tasks, self._distributed, self._output_dir = tasks, distributed, output_dir
        self._max_dets = [1, 10, 100 if max_dets_per_image is None else max_dets_per_image]
        self._metadata = MetadataCatalog.get(dataset_name)
        if output_dir:
            PathManager.mkdirs(output_dir)
        if not hasattr(self._metadata, "json_file"):
            if not output_dir:
                raise ValueError(f"Dataset {dataset_name!r} has no COCO json_file: set output_dir to write one into.")
            self._metadata.json_file = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
            convert_to_coco_json(dataset_name, self._metadata.json_file, allow_cached=allow_cached_coco)
        with redirect_stdout(io.StringIO()):
            self._coco_api = COCO(PathManager.get_local_path(self._metadata.json_file))
        self._predictions = []

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """inputs: dicts with "image_id"; outputs: dicts with "instances" in image pixels."""
        for x, output in zip(inputs, outputs):
            if "instances" in output:
                results = instances_to_coco_json(output["instances"].to(torch.device("cpu")), x["image_id"])
                self._predictions.append({"image_id": x["image_id"], "instances": results})

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict:
        """img_ids: evaluate on these images only. Processes other than the main one return {}."""
        predictions = self._predictions
        if self._distributed:
            predictions = [p for part in comm.gather(predictions, dst=0) for p in part]
            if not comm.is_main_process():
                return {}
        if not predictions:
            logger.warning("COCOEvaluator got no predictions: nothing to evaluate.")
            return {}
        coco_results = [r for p in predictions for r in p["instances"]]
        if (contiguous := self._metadata.get("thing_dataset_id_to_contiguous_id")) is not None:
            ids = {v: k for k, v in contiguous.items()}
            unknown = {r["category_id"] for r in coco_results} - set(ids)
            assert not unknown, f"Predicted {unknown}, but there are {len(ids)} classes: set num_classes to that."
            coco_results = [r | {"category_id": ids[r["category_id"]]} for r in coco_results]
        if self._output_dir:
            with PathManager.open(os.path.join(self._output_dir, "instances_predictions.pth"), "wb") as f:
                torch.save(predictions, f)
            with PathManager.open(os.path.join(self._output_dir, "coco_instances_results.json"), "w") as f:
                json.dump(coco_results, f)
        if "annotations" not in self._coco_api.dataset:
            logger.info("The dataset has no annotations: predictions are not evaluated.")
            return {}
        results = {}
        has_masks = any("segmentation" in r for r in coco_results)
        for task in self._tasks or (TASKS if has_masks else TASKS[:1]):
            coco_eval = _run_cocoeval(self._coco_api, coco_results, task, self._max_dets, img_ids)
            results[task] = self._derive_coco_results(coco_eval, task, class_names=self._metadata.get("thing_classes"))
        return results

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """The metrics in percent, per class too if there are several. Override to add others."""
        if coco_eval is None:
            logger.warning("All predictions are empty.")
            return dict.fromkeys(METRICS, float("nan"))
        results = {m: float(v * 100) for m, v in zip(METRICS, coco_eval.stats)}
        logger.info(f"{iou_type} results:\n" + create_small_table(results))
        if class_names is None or len(class_names) <= 1:
            return results
        precision = coco_eval.eval["precision"]  # (IoU, recall, class, area, max dets), -1: no gt
        assert len(class_names) == precision.shape[2], (len(class_names), precision.shape)
        per_class = {f"AP-{name}": _mean(precision[:, :, k, 0, -1]) * 100 for k, name in enumerate(class_names)}
        logger.info(f"{iou_type} AP per class:\n" + "\n".join(f"{k} {v:.3f}" for k, v in per_class.items()))
        return results | per_class


def instances_to_coco_json(instances: Instances, img_id: int) -> list[dict]:
    """COCO results of one image on the CPU: XYWH boxes, contiguous classes, masks as RLE."""
    boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    rows = zip(instances.pred_classes.tolist(), boxes, instances.scores.tolist())
    results = [{"image_id": img_id, "category_id": k, "bbox": box, "score": score} for k, box, score in rows]
    if instances.has("pred_masks"):
        for result, mask in zip(results, instances.pred_masks):
            rle = mask_util.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
            result["segmentation"] = {**rle, "counts": rle["counts"].decode("ascii")}  # JSON has no bytes
    return results


class _COCOeval(COCOeval):
    """pycocotools', but AP at the largest maxDets, which theirs lacks unless it is 100, and nan for undefined means."""

    def summarize(self) -> None:
        """stats: six of AP (IoU all, 0.5, 0.75; areas), six of AR (max dets 0, 1, 2; areas)."""
        ap, ar = self.eval["precision"], self.eval["recall"]  # (IoU, ..., class, area, max dets)
        ap50, ap75 = (ap[np.isclose(self.params.iouThrs, t), ..., 0, -1] for t in (0.5, 0.75))
        stats = [ap[..., 0, -1], ap50, ap75, *(ap[..., a, -1] for a in (1, 2, 3))]
        stats += [*(ar[..., 0, m] for m in range(3)), *(ar[..., a, -1] for a in (1, 2, 3))]
        self.stats = np.array([_mean(s) for s in stats])


def _mean(values: np.ndarray) -> float:
    """Mean of the defined entries, those that are not -1; nan if none is."""
    values = values[values > -1]
    return float(values.mean()) if values.size else float("nan")


def _run_cocoeval(coco_gt: COCO, results: list[dict], iou_type: str, max_dets: list[int], img_ids) -> COCOeval | None:
    """None without results, which are left as they are. img_ids: None for all images."""
    if not results:
        return None
    # with a box in it, pycocotools takes a mask's area from the box; it adds fields to its copy
    unused = "bbox" if iou_type == "segm" else None
    with redirect_stdout(io.StringIO()):
        coco_dt = coco_gt.loadRes([{k: v for k, v in r.items() if k != unused} for r in results])
        coco_eval = _COCOeval(coco_gt, coco_dt, iou_type)
        coco_eval.params.maxDets = list(max_dets)
        if img_ids is not None:
            coco_eval.params.imgIds = img_ids
        coco_eval.evaluate()
        coco_eval.accumulate()
    coco_eval.summarize()
    return coco_eval
