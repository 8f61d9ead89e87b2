"""What the training loop needs from a config, the same for both kinds of config."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import IterableDataset

from detectron2.config import CfgNode, instantiate
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils.registry import locate
from shared.classification import ClassificationEvaluator, ImageClassifier
from shared.config_checks import named_errors_of
from shared.data.coco_sets import leave_out_bad_pictures, register_coco_set, report_skipped, require_masks
from shared.data.named_errors import NamedErrors
from shared.data.stream import TrainStream, stream_of_cfg
from shared.errors import UserError, nearest
from shared.solver import clip_global_norm
from shared.training.precision import amp_dtype

OWN_DATA_FLAGS = ("train_json", "train_images", "val_json", "val_images")


class LazyRun:
    """A run described by a LazyConfig.

    Attributes: output_dir, weights, max_iter, device, seed (below 0: random), cudnn_benchmark,
    float32_precision, eval_period, log_period, checkpoint_period, max_to_keep (None keeps all),
    amp (torch dtype; None: no mixed precision), sync_normalizers, ddp (keyword arguments of create_ddp_model),
    ema_decay (None: no average), batch_size (of all processes together; 0 where a loader of the config's own has none),
    device_key.
    """

    device_key = "train.device"

    def __init__(self, cfg: DictConfig):
        self.cfg = cfg
        train = cfg.train
        self.output_dir = train.output_dir
        self.weights = train.init_checkpoint
        self.max_iter = train.max_iter
        self.device = train.device
        self.seed = train.get("seed", -1)
        self.cudnn_benchmark = train.get("cudnn_benchmark", False)
        self.float32_precision = train.get("float32_precision", "")
        self.eval_period = train.eval_period
        self.log_period = train.log_period
        self.checkpoint_period = train.checkpointer.period
        self.max_to_keep = train.checkpointer.get("max_to_keep")
        self.amp = amp_dtype(train.amp.enabled, train.amp.get("dtype", "float16"), "train.amp.dtype")
        self.sync_normalizers = train.get("sync_normalizers", False)
        self.ddp = dict(train.ddp)
        ema = train.get("ema")
        self.ema_decay = ema.decay if ema and ema.enabled else None
        self.batch_size = cfg.dataloader.train.get("total_batch_size", 0)

    def use_own_data(
        self, train_json: str, train_images: str, val_json: str, val_images: str, skip_bad_records: bool = False
    ) -> None:
        """Point the data at COCO-format files, and class counts at what they hold."""
        data = self.cfg.dataloader
        if _target(data.evaluator) is ClassificationEvaluator:
            raise UserError(
                "--train-json and the like are for detectors; classifiers read folders: set "
                "dataloader.train.dataset.names.root and dataloader.test.dataset.names.root of an ImageNet config."
            )
        for part, json_file, images in ((data.train, train_json, train_images), (data.test, val_json, val_images)):
            part.dataset = OmegaConf.create(
                {**part.dataset, "names": _lazy_coco_set(json_file, images, skip_bad_records)},
                flags={"allow_objects": True},
            )
        data.evaluator = OmegaConf.create(
            {"_target_": COCOEvaluator, "dataset_name": "${..test.dataset.names}"}, flags={"allow_objects": True}
        )
        count = len(self._class_names(data.train.dataset))
        for node, key in list(_class_counts(self.cfg.model)):
            node[key] = count

    def skip_bad_records(self) -> None:
        """Leave out bad records of data that register_coco_set names; UserError where there are none."""
        nodes = [self.cfg.dataloader[part].dataset.get("names") for part in ("train", "test")]
        own = [n for n in nodes if isinstance(n, DictConfig) and "_target_" in n and _target(n) is register_coco_set]
        if not own:
            raise UserError("--skip-bad-records is for own data: add --train-json and the other three flags.")
        for node in own:
            node.skip_bad_records = True

    def register_data(self) -> None:
        """Own data registers itself when the loader is built."""

    def leave_out_bad_records(self, folder: str | None, train: bool) -> None:
        """Where the user says so; every process calls it before it builds a loader. What was left out is logged and
        written to a file in `folder`. train: whether the training set is needed as well."""
        names = [n for part in ("train", "test")[not train :] for n in _names(self.cfg.dataloader[part].dataset)]
        leave_out_bad_pictures(names)
        report_skipped(names, folder)

    def _class_names(self, dataset: DictConfig) -> list[str]:
        return class_names(_names(dataset))

    def check_classes(self) -> list[str]:
        """Class names of the training set; UserError where the model has another count."""
        if missing := sorted(OmegaConf.missing_keys(self.cfg)):
            raise UserError(f"The config leaves {', '.join(missing)} to you: add {missing[0]}=VALUE.")
        names = self._class_names(self.cfg.dataloader.train.dataset)
        tested = self._class_names(self.cfg.dataloader.test.dataset)
        _require_same_classes(names, tested)
        mapper = self.cfg.dataloader.train.get("mapper") or {}
        if mapper.get("use_instance_mask"):
            require_masks(_names(self.cfg.dataloader.train.dataset), mapper.get("instance_mask_format", "polygon"))
        for node, key in list(_class_counts(self.cfg.model)):
            if node[key] is None:
                node[key] = len(names)
            elif names and node[key] != len(names):
                _contradiction(node._get_full_key(key), node[key], names)
        self.cfg.train.class_names = names
        return names

    def build_model(self) -> nn.Module:
        with named_errors_of("model"):
            return instantiate(self.cfg.model).to(self.device)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        self.cfg.optimizer.params.model = model
        with named_errors_of("optimizer"):
            optimizer = instantiate(self.cfg.optimizer)
        self.cfg.optimizer.params.pop("model")
        limit = self.cfg.train.get("clip_grad_norm")
        return clip_global_norm(optimizer, limit) if limit else optimizer

    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        """A fvcore ParamScheduler; Detectron2's LRScheduler hook wraps it."""
        with named_errors_of("lr_multiplier"):
            return instantiate(self.cfg.lr_multiplier)

    def build_train_loader(self, seed: int) -> Iterable:
        """A `TrainStream`; where the config has a loader of its own, that one."""
        with _named_data_errors(self.cfg.dataloader.train.dataset.get("names")):
            return _build_loader(self.cfg.dataloader.train, seed)

    def build_test_sets(self, folder: str | None) -> Iterator[tuple[str, Iterable, DatasetEvaluator]]:
        """(name, loader, evaluator); evaluators that have an `output_dir` write below `folder`."""
        loader = _build_loader(self.cfg.dataloader.test)
        node = self.cfg.dataloader.evaluator
        parts = {k: instantiate(node[k]) for k in node if k != "_target_"}
        target = _target(node)
        if folder is not None and target is COCOEvaluator:
            parts.setdefault("output_dir", folder)
        name = parts.get("dataset_name", "test")
        yield str(name), loader, target(**parts)


class CfgRun:
    """A run described by Detectron2's CfgNode; attributes and methods as in `LazyRun`."""

    device_key = "MODEL.DEVICE"

    def __init__(self, cfg: CfgNode):
        if cfg.MODEL.META_ARCHITECTURE == ImageClassifier.__name__:
            raise UserError("An ImageClassifier is trained from a LazyConfig: take one of configs/classification.")
        self.cfg = cfg
        self.output_dir = cfg.OUTPUT_DIR
        self.weights = cfg.MODEL.WEIGHTS
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.device = cfg.MODEL.DEVICE
        self.seed = cfg.SEED
        self.cudnn_benchmark = cfg.CUDNN_BENCHMARK
        self.float32_precision = cfg.FLOAT32_PRECISION
        self.eval_period = cfg.TEST.EVAL_PERIOD
        self.log_period = 20
        self.checkpoint_period = cfg.SOLVER.CHECKPOINT_PERIOD
        self.max_to_keep = None
        self.amp = amp_dtype(cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE, "SOLVER.AMP.DTYPE")
        self.sync_normalizers = cfg.SOLVER.SYNC_NORMALIZERS
        self.ddp = {"broadcast_buffers": False}
        self.ema_decay = None
        self.batch_size = cfg.SOLVER.IMS_PER_BATCH

    def use_own_data(
        self, train_json: str, train_images: str, val_json: str, val_images: str, skip_bad_records: bool = False
    ) -> None:
        own = self.cfg.DATASETS.OWN
        own.TRAIN_JSON, own.TRAIN_IMAGES = map(os.path.abspath, (train_json, train_images))
        own.VAL_JSON, own.VAL_IMAGES = map(os.path.abspath, (val_json, val_images))
        own.SKIP_BAD_RECORDS = skip_bad_records
        self._use_own_sets()

    def _use_own_sets(self) -> None:
        train, test = self._register_own_sets()
        self.cfg.DATASETS.TRAIN, self.cfg.DATASETS.TEST = (train,), (test,)
        count = len(class_names([train]))
        self.cfg.MODEL.ROI_HEADS.NUM_CLASSES = self.cfg.MODEL.RETINANET.NUM_CLASSES = count

    def skip_bad_records(self) -> None:
        if not self.cfg.DATASETS.OWN.TRAIN_JSON:
            raise UserError("--skip-bad-records is for own data: add --train-json and the other three flags.")
        self.cfg.DATASETS.OWN.SKIP_BAD_RECORDS = True
        self._use_own_sets()  # they have other names then

    def register_data(self) -> None:
        """Register the sets of DATASETS.OWN, as every process must."""
        if any(self.cfg.DATASETS.OWN[key] for key in map(str.upper, OWN_DATA_FLAGS)):
            self._register_own_sets()

    def _register_own_sets(self) -> list[str]:
        """Names of the training and the validation set."""
        own = self.cfg.DATASETS.OWN
        files = {key: own[key] for key in map(str.upper, OWN_DATA_FLAGS)}
        if empty := [key for key, value in files.items() if not value]:
            raise UserError(f"DATASETS.OWN needs its four paths; {', '.join(empty)} is empty.")
        return [
            register_coco_set(json_file, images, skip_bad_records=own.SKIP_BAD_RECORDS)
            for json_file, images in ((own.TRAIN_JSON, own.TRAIN_IMAGES), (own.VAL_JSON, own.VAL_IMAGES))
        ]

    def leave_out_bad_records(self, folder: str | None, train: bool) -> None:
        names = [*(self.cfg.DATASETS.TRAIN if train else ()), *self.cfg.DATASETS.TEST]
        leave_out_bad_pictures(names)
        report_skipped(names, folder)

    def check_classes(self) -> list[str]:
        names = class_names(list(self.cfg.DATASETS.TRAIN))
        for name in self.cfg.DATASETS.TEST:
            _require_same_classes(names, class_names([name]))
        if self.cfg.MODEL.MASK_ON:
            require_masks(self.cfg.DATASETS.TRAIN, self.cfg.INPUT.MASK_FORMAT)
        dense = _is_dense(self.cfg.MODEL.META_ARCHITECTURE)
        key = "MODEL.RETINANET.NUM_CLASSES" if dense else "MODEL.ROI_HEADS.NUM_CLASSES"
        node = self.cfg.MODEL.RETINANET if dense else self.cfg.MODEL.ROI_HEADS
        if names and node.NUM_CLASSES != len(names):
            _contradiction(key, node.NUM_CLASSES, names)
        self.cfg.DATASETS.CLASS_NAMES = names
        return names

    def build_model(self) -> nn.Module:
        with named_errors_of("MODEL"):
            return build_model(self.cfg)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        with named_errors_of("SOLVER"):
            optimizer = build_optimizer(self.cfg, model)
        limit = self.cfg.SOLVER.CLIP_GRADIENTS.GLOBAL_NORM
        return clip_global_norm(optimizer, limit) if limit else optimizer

    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        with named_errors_of("SOLVER"):
            return build_lr_scheduler(self.cfg, optimizer)

    def build_train_loader(self, seed: int) -> Iterable:
        mapper = NamedErrors(DatasetMapper(self.cfg, is_train=True), self.cfg.DATASETS.TRAIN)
        with _named_data_errors(self.cfg.DATASETS.TRAIN):
            stream = stream_of_cfg(self.cfg, mapper, seed)
            return build_detection_train_loader(self.cfg, mapper=mapper) if stream is None else stream

    def build_test_sets(self, folder: str | None) -> Iterator[tuple[str, Iterable, DatasetEvaluator]]:
        for name in self.cfg.DATASETS.TEST:
            mapper = NamedErrors(DatasetMapper(self.cfg, is_train=False), [name])
            loader = build_detection_test_loader(self.cfg, name, mapper=mapper)
            several = folder is not None and len(self.cfg.DATASETS.TEST) > 1
            yield name, loader, _evaluator_of(name, os.path.join(folder, name) if several else folder)


Run = LazyRun | CfgRun


def make_run(cfg: DictConfig | CfgNode) -> Run:
    return CfgRun(cfg) if isinstance(cfg, CfgNode) else LazyRun(cfg)


def _lazy_coco_set(json_file: str, images: str, skip_bad_records: bool) -> dict:
    return {
        "_target_": register_coco_set,
        "json_file": os.path.abspath(json_file),
        "image_root": os.path.abspath(images),
        "skip_bad_records": skip_bad_records,
    }


def _target(node: DictConfig):
    return locate(node._target_) if isinstance(node._target_, str) else node._target_


def _names(dataset: DictConfig) -> list[str]:
    """Names of the data sets of a loader's `dataset`, own data registered; [] where it is another kind of data set."""
    names = instantiate(dataset.get("names"))
    if names is None:
        return []
    return [names] if isinstance(names, str) else list(names)


def _build_loader(node: DictConfig, seed: int | None = None) -> Iterable:
    """Instantiate a loader, its mapper wrapped in `NamedErrors`. With `seed`, Detectron2's becomes a `TrainStream`."""
    parts = {k: instantiate(node[k]) for k in node if k != "_target_"}
    if "mapper" in parts:
        parts["mapper"] = NamedErrors(parts["mapper"], _names(node.dataset))
    target = _target(node)
    if seed is None or target is not build_detection_train_loader or isinstance(parts["dataset"], IterableDataset):
        return target(**parts)
    return TrainStream(**{**parts, "seed": seed})


@contextlib.contextmanager
def _named_data_errors(names) -> Iterator[None]:
    try:
        yield
    except AssertionError as e:  # Detectron2 asserts that something is left to train on
        raise UserError(f"Training data {names} cannot be used: {' '.join(str(e).split())}.") from e


def _class_counts(node: DictConfig) -> Iterator[tuple[DictConfig, str]]:
    """(node, "num_classes") wherever a model's part, its backbone apart, states a count or leaves it to the data."""
    for key in node:
        child = node._get_node(key)
        if key == "num_classes" and not child._is_interpolation() and isinstance(node[key], int | None):
            yield node, key
        elif key != "backbone" and isinstance(child, DictConfig) and not child._is_interpolation():
            yield from _class_counts(child)


def class_names(names: list[str]) -> list[str]:
    """Class names of the first data set; [] where it knows none. Makes sure that all exist."""
    for name in names:
        if name not in DatasetCatalog.list():
            hint = nearest(name, DatasetCatalog.list())
            raise UserError(f"Data set {name!r} is not registered{hint or '.'}")
        meta = MetadataCatalog.get(name)
        if "thing_classes" in meta.as_dict() and os.path.exists(meta.get("json_file", "/")):
            continue
        try:  # made on first use, or not there
            DatasetCatalog.get(name)
        except FileNotFoundError as e:
            raise UserError(
                f"Data set {name!r} is not on disk: {e.filename} does not exist; "
                f"set DETECTRON2_DATASETS to the folder that holds it."
            ) from e
    return list(MetadataCatalog.get(names[0]).get("thing_classes", [])) if names else []


def _require_same_classes(names: list[str], tested: list[str]) -> None:
    if names and tested and names != tested:
        odd = sorted(set(names) ^ set(tested))
        what = f"{', '.join(odd[:5])} in one of them only" if odd else "the same ones in another order"
        raise UserError(
            f"Training and test data have different classes ({what}): make the categories of the two annotation files, "
            f"or the folders of a classifier's images, agree."
        )


def _is_dense(meta_architecture: str) -> bool:
    """Whether MODEL.RETINANET holds its number of classes; MODEL.ROI_HEADS does otherwise."""
    if meta_architecture not in META_ARCH_REGISTRY:
        hint = nearest(meta_architecture, [name for name, _ in META_ARCH_REGISTRY]) or "."
        raise UserError(f"MODEL.META_ARCHITECTURE {meta_architecture!r} is not registered{hint}")
    registered = META_ARCH_REGISTRY.get(meta_architecture)
    return isinstance(registered, type) and issubclass(registered, DenseDetector)


def _contradiction(key: str, count: int, names: list[str]) -> None:
    raise UserError(
        f"{key} is {count}, but the training data has {len(names)} classes "
        f"({', '.join(names[:5])}{', ...' if len(names) > 5 else ''}): set {key}={len(names)}."
    )


def _evaluator_of(name: str, folder: str | None) -> DatasetEvaluator:
    kind = MetadataCatalog.get(name).get("evaluator_type", None)
    if kind == "coco":
        return COCOEvaluator(name, output_dir=folder)
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(name)
    raise UserError(f"Data set {name!r} has evaluator_type {kind!r}: only coco and pascal_voc work.")
