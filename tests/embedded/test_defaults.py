"""DefaultTrainer and DefaultPredictor with a tiny detector, and the set-up of a run."""

import json
import logging
import random

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from detectron2.config import LazyConfig, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import (
    DefaultPredictor,
    DefaultTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from tests.scenes import make_coco


@META_ARCH_REGISTRY.register()
class TinyDetector(nn.Module):
    """Says that the whole image is an object of class 0, as likely as its parameter says."""

    def __init__(self, cfg):
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(1))
        self.register_buffer("scale", torch.tensor(255.0), persistent=False)

    def forward(self, batch):
        if self.training:
            counts = torch.tensor([float(len(x["instances"])) for x in batch])
            light = torch.stack([x["image"].float().mean() for x in batch]) / self.scale
            count = (self.logit * light - counts).square().mean()
            return {"loss_count": count, "loss_zero": 0 * self.logit.sum()}
        results = []
        for x in batch:
            instances = Instances((x["height"], x["width"]))
            instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, x["width"], x["height"]]]))
            instances.scores = self.logit.detach().sigmoid()
            instances.pred_classes = torch.tensor([0])
            results.append({"instances": instances, "image": x["image"]})
        return results


class Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)


@pytest.fixture
def cfg(tmp_path):
    """A configuration whose data sets exist as long as the test."""
    names = [f"tiny_{split}_{tmp_path.name}" for split in ("train", "val")]
    for seed, name in enumerate(names):
        register_coco_instances(name, {}, *map(str, make_coco(tmp_path / name, seed=seed)))
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "TinyDetector", "cpu"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (names[0],), (names[1],)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 32
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.SOLVER.IMS_PER_BATCH = 4  # all images: resuming does not change the data
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS = 0.1, 2
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.CHECKPOINT_PERIOD = 6, (4,), 3
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    yield cfg
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


# ---------------------------------------------------------------- DefaultTrainer
def test_train_evaluate_write_and_resume(cfg, tmp_path):
    cfg.TEST.EVAL_PERIOD, cfg.TEST.EXPECTED_RESULTS = 4, [["bbox", "AP", 50.0, 50.0]]
    default_setup(cfg, {})
    trainer = Trainer(cfg)
    assert [type(h).__name__ for h in trainer._hooks] == [
        "IterationTimer",
        "LRScheduler",
        "PeriodicCheckpointer",
        "EvalHook",
        "PeriodicWriter",
    ]
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    assert set(results) == {"bbox"}  # one data set: its own results
    assert (trainer.iter, trainer._trainer.iter) == (6, 5)
    output = tmp_path / "output"
    names = {p.name for p in output.iterdir()}
    assert {"model_0000002.pth", "model_0000005.pth", "model_final.pth", "config.yaml"} <= names
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    lines = [json.loads(x) for x in (output / "metrics.json").read_text().splitlines()]
    by_iter = {line["iteration"]: line for line in lines}
    assert by_iter[5]["lr"] == pytest.approx(0.01) and "loss_count" in by_iter[5]
    assert by_iter[6]["bbox/AP"] == results["bbox"]["AP"]  # evaluated after the last iteration

    # the same, stopped by an error in iteration 4 and resumed from the checkpoint of iteration 2
    class Failing(Trainer):
        def run_step(self):
            assert self.iter < 4, "on purpose"
            super().run_step()

    cfg.OUTPUT_DIR = str(tmp_path / "again")
    first = Failing(cfg)
    first.resume_or_load(resume=True)  # nothing there: a new run
    assert first.start_iter == 0
    with pytest.raises(AssertionError, match="on purpose"):
        first.train()
    second = Trainer(cfg)
    second.resume_or_load(resume=True)
    assert second.start_iter == 3
    second.train()
    assert torch.equal(second.model.logit, trainer.model.logit)
    assert second.model.logit.item() > 0.1


def test_checkpoint_of_a_trainer(cfg, tmp_path):
    trainer = DefaultTrainer(cfg)
    trainer.train()
    state = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)
    assert set(state) == {"model", "trainer", "iteration"} and state["iteration"] == 5
    assert set(state["model"]) == {"logit"}
    inner = state["trainer"]
    assert inner["hooks"] == {"LRScheduler": {"base_lrs": [0.1], "last_epoch": 6}}
    assert inner["iteration"] == inner["_trainer"]["iteration"] == 5
    assert "momentum_buffer" in inner["_trainer"]["optimizer"]["state"][0]


def test_parts_of_the_inner_trainer_can_be_replaced(cfg):
    trainer = DefaultTrainer(cfg)
    for name in ("model", "data_loader", "optimizer"):
        assert getattr(trainer, name) is getattr(trainer._trainer, name)
        setattr(trainer, name, "other")
        assert getattr(trainer._trainer, name) == "other"


def test_without_an_evaluator_training_goes_on(cfg, caplog):
    assert not DefaultTrainer.test(cfg, nn.Identity())
    assert "build_evaluator" in caplog.text
    with pytest.raises(NotImplementedError, match="build_evaluator"):
        DefaultTrainer.build_evaluator(cfg, "x")


class Constant(DatasetEvaluator):
    def __init__(self, value):
        self.value = value

    def process(self, inputs, outputs):
        self.value += 1

    def reset(self):
        pass

    def evaluate(self):
        return {"count": {"n": self.value}}


def test_results_by_data_set(cfg):
    model = TinyDetector(cfg)
    assert DefaultTrainer.test(cfg, model, Constant(0)) == {"count": {"n": 4}}
    train, val = cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0]
    cfg.DATASETS.TEST = (train, val)
    results = DefaultTrainer.test(cfg, model, [Constant(10), Constant(20)])
    assert list(results.items()) == [(train, {"count": {"n": 14}}), (val, {"count": {"n": 24}})]
    assert model.training  # as it was before
    with pytest.raises(AssertionError):
        DefaultTrainer.test(cfg, model, [Constant(0)])


def test_expected_results_are_checked(cfg):
    class Expecting(DefaultTrainer):
        @classmethod
        def build_evaluator(cls, cfg, name):
            return Constant(0)

    cfg.TEST.EXPECTED_RESULTS = [["count", "n", 4.0, 0.5]]
    assert Expecting(cfg).train() == {"count": {"n": 4}}
    cfg.TEST.EXPECTED_RESULTS = [["count", "n", 5.0, 0.5]]
    with pytest.raises(SystemExit):
        Expecting(cfg).train()


@pytest.mark.embedded_only
def test_train_returns_the_last_results_also_when_none_are_expected(cfg):
    assert set(Trainer(cfg).train()) == {"bbox"}
    assert not DefaultTrainer(cfg).train()


@pytest.mark.embedded_only
def test_precise_batch_norm_is_refused_by_name(cfg):
    cfg.TEST.PRECISE_BN.ENABLED = True
    with pytest.raises(ValueError, match="PRECISE_BN"):
        DefaultTrainer(cfg)


def test_scaling_to_another_number_of_workers():
    cfg = get_cfg()
    cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR = 8, 16, 0.02
    cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = (30000, 35001), 40000, 1000
    cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD = 5000, 2500
    cfg.freeze()
    new = DefaultTrainer.auto_scale_workers(cfg, 3)  # s = 3 / 8
    assert new.is_frozen() and cfg.SOLVER.IMS_PER_BATCH == 16
    assert (new.SOLVER.IMS_PER_BATCH, new.SOLVER.REFERENCE_WORLD_SIZE) == (6, 3)
    assert new.SOLVER.BASE_LR == pytest.approx(0.0075)
    # 40000 * 8 / 3 = 106666.7; 35001 * 8 / 3 = 93336; 1000 * 8 / 3 = 2666.7
    assert (new.SOLVER.MAX_ITER, new.SOLVER.STEPS) == (106667, (80000, 93336))
    assert (new.SOLVER.WARMUP_ITERS, new.SOLVER.CHECKPOINT_PERIOD) == (2667, 13333)
    assert new.TEST.EVAL_PERIOD == 6667
    assert DefaultTrainer.auto_scale_workers(cfg, 8).SOLVER == cfg.SOLVER
    cfg.defrost()
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    assert DefaultTrainer.auto_scale_workers(cfg, 3).SOLVER == cfg.SOLVER
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 5
    with pytest.raises(AssertionError):  # 16 images do not divide by 5
        DefaultTrainer.auto_scale_workers(cfg, 3)


def test_one_worker_needs_no_ddp():
    model = nn.Linear(1, 1)
    assert create_ddp_model(model, broadcast_buffers=False) is model


# ---------------------------------------------------------------- DefaultPredictor
def test_predictor(cfg, tmp_path):
    torch.save({"model": {"logit": torch.tensor([2.0])}}, tmp_path / "w.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "w.pth")
    predictor = DefaultPredictor(cfg)
    assert predictor.cfg is not cfg and not predictor.model.training
    assert predictor.metadata is MetadataCatalog.get(cfg.DATASETS.TEST[0])
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., 0] = 200  # blue
    prediction = predictor(image)
    assert prediction["instances"].image_size == (40, 60)
    assert prediction["instances"].scores.item() == pytest.approx(0.880797)  # sigmoid(2)
    assert prediction["image"].shape == (3, 32, 48) and prediction["image"].dtype == torch.float32
    assert prediction["image"].flatten(1)[:, 0].tolist() == [200, 0, 0]
    assert image[0, 0].tolist() == [200, 0, 0]

    cfg.INPUT.FORMAT, cfg.DATASETS.TEST = "RGB", ()
    predictor = DefaultPredictor(cfg)
    assert predictor(image)["image"].flatten(1)[:, 0].tolist() == [0, 0, 200]
    assert not hasattr(predictor, "metadata")


def test_predictor_knows_two_formats(cfg):
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(AssertionError, match="L"):
        DefaultPredictor(cfg)


# ---------------------------------------------------------------- set-up
def test_arguments():
    parser = default_argument_parser()
    args = parser.parse_args([])
    port = int(args.dist_url.removeprefix("tcp://127.0.0.1:"))
    assert 49152 <= port < 65536
    del args.dist_url
    assert vars(args) == dict(
        config_file="", resume=False, eval_only=False, num_gpus=1, num_machines=1,
        machine_rank=0, opts=[],
    )  # fmt: skip
    line = "--config-file a.yaml --eval-only --num-gpus 2 SOLVER.BASE_LR 0.1 --x"
    args = parser.parse_args(line.split())
    assert (args.config_file, args.eval_only, args.num_gpus) == ("a.yaml", True, 2)
    assert args.opts == ["SOLVER.BASE_LR", "0.1", "--x"]


@pytest.fixture
def backend():
    """Process-wide switches, restored afterwards."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield cudnn
    cudnn.benchmark, cudnn.allow_tf32 = before[:2]
    torch.set_float32_matmul_precision(before[2])


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_setup_with_a_cfgnode(tmp_path, backend):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SEED, cfg.CUDNN_BENCHMARK = str(tmp_path / "out"), 5, True
    config_file = tmp_path / "mine.yaml"
    config_file.write_text("# this very line\n")
    args = default_argument_parser().parse_args(["--config-file", str(config_file)])
    backend.benchmark = False
    default_setup(cfg, args)
    first = draws()
    default_setup(cfg, args)
    assert draws() == first  # seeded
    assert backend.benchmark
    other = get_cfg()
    other.merge_from_file(str(tmp_path / "out" / "config.yaml"))
    assert (other.OUTPUT_DIR, other.SEED, other.CUDNN_BENCHMARK) == (cfg.OUTPUT_DIR, 5, True)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "this very line" in log and "mine.yaml" in log and "torch" in log.lower()
    for name in ("detectron2", "fvcore"):
        logging.getLogger(name).info(f"from {name}")
        assert f"from {name}" in (tmp_path / "out" / "log.txt").read_text()


def test_setup_with_a_lazy_config(tmp_path, backend):
    train = dict(output_dir=str(tmp_path / "out"), seed=5, cudnn_benchmark=True)
    cfg = OmegaConf.create({"train": train, "x": "${train.seed}"})
    backend.benchmark = False
    default_setup(cfg, default_argument_parser().parse_args(["--eval-only"]))
    first = draws()
    default_setup(cfg, {})  # any object will do
    assert draws() == first
    assert backend.benchmark
    assert LazyConfig.load(str(tmp_path / "out" / "config.yaml")) == cfg


def test_evaluation_leaves_cudnn_alone_and_a_negative_seed_is_random(tmp_path, backend):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.CUDNN_BENCHMARK = str(tmp_path), True
    backend.benchmark = False
    args = default_argument_parser().parse_args(["--eval-only"])
    default_setup(cfg, args)
    first = draws()
    assert not backend.benchmark
    default_setup(cfg, args)
    assert draws() != first


@pytest.mark.embedded_only  # upstream on a machine without CUDA only logs it
@pytest.mark.parametrize("precision, tf32", [("highest", False), ("high", True), ("medium", True)])
def test_float32_precision(tmp_path, backend, precision, tf32):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.FLOAT32_PRECISION = str(tmp_path), precision
    lazy = OmegaConf.create({"train": {"output_dir": str(tmp_path), "float32_precision": precision}})
    for config in (cfg, lazy):
        backend.allow_tf32 = not tf32
        torch.set_float32_matmul_precision("high" if precision == "highest" else "highest")
        default_setup(config, {})
        assert backend.allow_tf32 == tf32
        assert torch.get_float32_matmul_precision() == precision


def test_writers(tmp_path):
    writers = default_writers(str(tmp_path / "new"), 10)
    assert [type(w).__name__ for w in writers] == ["CommonMetricPrinter", "JSONWriter", "TensorboardXWriter"]
    assert (tmp_path / "new" / "metrics.json").exists()
    for writer in writers:
        writer.close()
