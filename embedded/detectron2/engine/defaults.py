"""The standard set-up of a run: arguments, logging, seeds; DefaultTrainer and DefaultPredictor."""

import argparse
import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

import detectron2.data.transforms as T
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, LazyConfig
from detectron2.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format, verify_results
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from . import hooks
from .train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> nn.Module:
    """DistributedDataParallel(model, **kwargs); the model itself for one worker. fp16_compression: of the gradients."""
    if comm.get_world_size() == 1:
        return model
    if "device_ids" not in kwargs and next(model.parameters()).is_cuda:
        kwargs["device_ids"] = [comm.get_local_rank()]
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        ddp.register_comm_hook(state=None, hook=default_hooks.fp16_compress_hook)
    return ddp


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The options of a training script."""
    parser = argparse.ArgumentParser(epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="path to config file")
    add("--resume", action="store_true", help="go on from the last checkpoint of the output folder")
    add("--eval-only", action="store_true", help="perform evaluation only")
    add("--num-gpus", type=int, default=1, help="number of gpus *per machine*")
    add("--num-machines", type=int, default=1, help="total number of machines")
    add("--machine-rank", type=int, default=0, help="rank of this machine, from 0")
    uid = os.getuid() if hasattr(os, "getuid") else 1
    url = f"tcp://127.0.0.1:{49152 + hash(uid) % 16384}"  # users of one machine do not collide
    add("--dist-url", default=url, help="where the workers meet, or 'auto'")
    overrides = "of the config: KEY VALUE pairs for yaml, path.key=value for python"
    add("opts", nargs=argparse.REMAINDER, default=[], help=overrides)
    return parser


def _get(cfg: CfgNode | DictConfig, *keys: str, default: Any = None) -> Any:
    """The value of the first of these dotted keys that the config has."""
    for key in keys:
        value = cfg
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return default


def default_setup(cfg: CfgNode | DictConfig, args: Any) -> None:
    """Start a run: output folder, loggers, the config and environment in the log, config.yaml, seeds and switches of
    the backend. args: an object that may have `config_file` and `eval_only`."""
    rank, output_dir = comm.get_rank(), _get(cfg, "OUTPUT_DIR", "output_dir", "train.output_dir")
    if rank == 0 and output_dir:
        PathManager.mkdirs(output_dir)
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir, distributed_rank=rank)
    logger.info(f"Rank of current process: {rank}. World size: {comm.get_world_size()}")
    logger.info("Environment info:\n" + collect_env_info())
    logger.info(f"Command line arguments: {args}")
    config_file = getattr(args, "config_file", "")
    if config_file:
        with PathManager.open(config_file, "r") as f:
            logger.info(f"Contents of args.config_file={config_file}:\n{f.read()}")
    if rank == 0 and output_dir:
        path = os.path.join(output_dir, "config.yaml")
        if isinstance(cfg, CfgNode):
            logger.info(f"Running with full config:\n{cfg.dump()}")
            with PathManager.open(path, "w") as f:
                f.write(cfg.dump())
        else:
            LazyConfig.save(cfg, path)
        logger.info(f"Full config saved to {path}")
    seed = _get(cfg, "SEED", "train.seed", default=-1)
    seed_all_rng(None if seed < 0 else seed + rank)
    if not getattr(args, "eval_only", False):  # evaluation sees images of many sizes, once each
        torch.backends.cudnn.benchmark = _get(cfg, "CUDNN_BENCHMARK", "train.cudnn_benchmark", default=False)
    precision = _get(cfg, "FLOAT32_PRECISION", "train.float32_precision", default="")
    if precision:
        logger.info(f"Set float32 precision to {precision}")
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision != "highest"


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Metrics to the log, to output_dir/metrics.json and to tensorboard."""
    PathManager.mkdirs(output_dir)
    json_file = os.path.join(output_dir, "metrics.json")
    return [CommonMetricPrinter(max_iter), JSONWriter(json_file), TensorboardXWriter(output_dir)]


class DefaultPredictor:
    """The model of a config, with its weights, on one image.
    Attributes: cfg, model, metadata (of the first test dataset, if there is one), aug, input_format."""

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg).eval()
        if len(cfg.DATASETS.TEST):
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        self.aug = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT
        assert self.input_format in ("RGB", "BGR"), f"INPUT.FORMAT must be RGB or BGR, not {self.input_format!r}."

    @torch.no_grad()
    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """original_image: (H, W, 3) uint8 BGR. Returns what the model gives for one image."""
        if self.input_format == "RGB":
            original_image = original_image[:, :, ::-1]
        height, width = original_image.shape[:2]
        image = self.aug.get_transform(original_image).apply_image(original_image)
        image = torch.as_tensor(image.astype("float32").transpose(2, 0, 1)).to(self.cfg.MODEL.DEVICE)
        return self.model([{"image": image, "height": height, "width": width}])[0]


def _of_inner_trainer(name: str) -> property:
    return property(lambda self: getattr(self._trainer, name), lambda self, value: setattr(self._trainer, name, value))


class DefaultTrainer(TrainerBase):
    """The standard training of a CfgNode config; subclasses override the `build_*` methods.
    Attributes: cfg, checkpointer, scheduler, start_iter, max_iter; model, optimizer, data_loader of the inner trainer.
    """

    model, data_loader, optimizer = map(_of_inner_trainer, ("model", "data_loader", "optimizer"))
    # Class methods of the config, to be overridden as such.
    build_model = staticmethod(build_model)
    build_optimizer = staticmethod(build_optimizer)
    build_lr_scheduler = staticmethod(build_lr_scheduler)
    build_train_loader = staticmethod(build_detection_train_loader)
    build_test_loader = staticmethod(build_detection_test_loader)  # (cfg, dataset_name)

    def __init__(self, cfg: CfgNode):
        super().__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()  # default_setup was not called
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        logging.getLogger(__name__).info(f"Model:\n{model}")
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = create_ddp_model(model, broadcast_buffers=False)
        self._trainer = (AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer)(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint in OUTPUT_DIR; without one (or resume) load MODEL.WEIGHTS."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1  # the checkpoint has the iteration that was finished

    def build_hooks(self) -> list[HookBase | None]:
        """The writer comes last, so that it writes what the others put."""
        cfg = self.cfg
        if cfg.TEST.PRECISE_BN.ENABLED:
            raise ValueError("The embedded engine has no precise BN: set TEST.PRECISE_BN.ENABLED False")

        def test_and_save_results():
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        main = comm.is_main_process()
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD) if main else None,
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, test_and_save_results),
            hooks.PeriodicWriter(self.build_writers(), period=20) if main else None,
        ]

    def build_writers(self) -> list[EventWriter]:
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> OrderedDict | None:
        """Train to the end. Returns the last evaluation (None without), which has to meet TEST.EXPECTED_RESULTS."""
        super().train(self.start_iter, self.max_iter)
        results = getattr(self, "_last_eval_results", None)
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            assert results is not None, "No evaluation results obtained during training!"
            verify_results(self.cfg, results)
        return results

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        raise NotImplementedError("Implement build_evaluator(), or pass evaluators to test().")

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None
    ) -> OrderedDict:
        """Evaluate on DATASETS.TEST. evaluators: one per dataset, default `build_evaluator`.
        Returns {dataset: results}, or the results themselves if there is one dataset."""
        logger, names = logging.getLogger(__name__), cfg.DATASETS.TEST
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None:
            assert len(names) == len(evaluators), f"{len(names)} datasets, but {len(evaluators)} evaluators."
        results: OrderedDict[str, Any] = OrderedDict()
        for i, name in enumerate(names):
            try:
                evaluator = evaluators[i] if evaluators else cls.build_evaluator(cfg, name)
            except NotImplementedError as e:
                logger.warning(f"{name} is not evaluated. {e}")
                results[name] = {}
                continue
            results[name] = inference_on_dataset(model, cls.build_test_loader(cfg, name), evaluator)
            if comm.is_main_process():
                assert isinstance(results[name], dict), f"Evaluators return a dict on the main process: {results[name]}"
                logger.info(f"Results for {name} in csv format:")
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """A copy of the config for another number of workers than its REFERENCE_WORLD_SIZE (0: no scaling): batch size
        and learning rate times s, lengths of training divided by s."""
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        frozen, cfg = cfg.is_frozen(), cfg.clone()
        cfg.defrost()
        solver, scale = cfg.SOLVER, num_workers / reference
        images = solver.IMS_PER_BATCH
        assert images % reference == 0, f"IMS_PER_BATCH={images} does not divide by REFERENCE_WORLD_SIZE={reference}."
        solver.IMS_PER_BATCH = round(images * scale)
        solver.BASE_LR *= scale
        solver.STEPS = tuple(round(s / scale) for s in solver.STEPS)
        for key in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
            solver[key] = round(solver[key] / scale)
        cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / scale)
        solver.REFERENCE_WORLD_SIZE = num_workers
        logging.getLogger(__name__).info(f"Scaled for {num_workers} workers:\n{solver}")
        if frozen:
            cfg.freeze()
        return cfg
