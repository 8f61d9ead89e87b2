"""Train, evaluate, and try one step of each."""

import json
import logging
import os
from collections import OrderedDict

import torch
import torch.distributed as dist
from torch import nn

from detectron2.engine import AMPTrainer, SimpleTrainer, create_ddp_model, default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.analysis import flop_count_operators
from detectron2.utils.events import EventStorage
from shared import engine
from shared.checkpoint import WeightsCheckpointer
from shared.errors import UserError
from shared.training.ema import WeightAverage
from shared.training.hooks import ModelAfterBackward, ProgressBar
from shared.training.run import Run

logger = logging.getLogger(__name__)


def evaluate(run: Run, model: nn.Module, folder: str | None) -> OrderedDict:
    """Evaluate on every test set. Returns {task: {metric: value}} ({set: ...} of several sets).

    Every process uses the main one's buffers: batch norm's statistics differ, and its own are what is saved.
    Results are printed and, with a `folder`, written to its `results.json`.
    """
    results = OrderedDict()
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    for name, loader, evaluator in run.build_test_sets(folder):
        results[name] = inference_on_dataset(model, loader, evaluator)
        if comm.is_main_process():
            logger.info("Results on %s:", name)
            print_csv_format(results[name])
    if len(results) == 1:
        results = next(iter(results.values()))
    if folder is not None and comm.is_main_process():
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "results.json"), "w") as f:
            json.dump(results, f, indent=1)
    return results


def train(run: Run, resume: bool) -> OrderedDict:
    """Train to run.max_iter, evaluate on the way and at the end; returns the last results."""
    model = run.build_model()
    ddp = create_ddp_model(model, **_ddp_arguments(run))
    optimizer = run.build_optimizer(ddp)
    trainer = (AMPTrainer if run.amp else SimpleTrainer)(ddp, run.build_train_loader(), optimizer)
    average = None if run.ema_decay is None else WeightAverage(model, run.ema_decay)
    if average is None:
        evaluated, checkpointer = model, WeightsCheckpointer(model, run.output_dir, trainer=trainer)
    else:
        evaluated = average.averaged
        checkpointer = WeightsCheckpointer(evaluated, run.output_dir, trainer=trainer, ema=average)
        trainer.register_hooks([hooks.CallbackHook(after_step=lambda _: average.update())])
    folder = os.path.join(run.output_dir, "inference")
    last: OrderedDict = OrderedDict()

    def test():
        nonlocal last
        last = evaluate(run, evaluated, folder)
        return last

    trainer.register_hooks([ModelAfterBackward(model)])
    trainer.register_hooks([hooks.IterationTimer(), hooks.LRScheduler(scheduler=run.build_scheduler(optimizer))])
    if comm.is_main_process():
        saver = hooks.PeriodicCheckpointer(checkpointer, run.checkpoint_period, max_to_keep=run.max_to_keep)
        trainer.register_hooks([saver])
    trainer.register_hooks([hooks.EvalHook(run.eval_period, test)])
    if comm.is_main_process():  # writers last: they write what the hooks before them measured
        writers = default_writers(run.output_dir, run.max_iter)
        trainer.register_hooks([ProgressBar(), hooks.PeriodicWriter(writers, period=run.log_period)])
    start_iter = _load_start(run, checkpointer, trainer, resume)
    if average is not None:
        average.begin()
    if start_iter >= run.max_iter:
        logger.info("Nothing left to train: the run ended at iteration %d.", start_iter)
        return test()
    trainer.train(start_iter, run.max_iter)
    return last


def _ddp_arguments(run: Run) -> dict:
    """DDP wants device ids for GPU modules only."""
    return run.ddp if run.device.startswith("cuda") else {**run.ddp, "device_ids": None}


def _load_start(run: Run, checkpointer: WeightsCheckpointer, trainer, resume: bool) -> int:
    resumed = resume and checkpointer.has_checkpoint()
    unread = checkpointer.resume_or_load(run.weights, resume=resume)
    if resumed and "ema" in unread:
        raise UserError("The run that --resume finds was trained with train.ema.enabled=true: set it again.")
    path = checkpointer.get_checkpoint_file() if resumed else run.weights
    checkpointer.require(path, every=resumed)
    if checkpointer.report is not None:
        logger.info("Weights %s: %s.", path, checkpointer.describe())
    if not resumed:
        checkpointer.begin_new_run()
    return trainer.iter + 1 if resumed else 0


def evaluate_only(run: Run) -> OrderedDict:
    """Evaluate the weights; UserError unless every entry of the model is in the file."""
    model = run.build_model()
    weights = run.weights
    if not weights:
        raise UserError(
            "--eval-only needs weights: set "
            + ("train.init_checkpoint" if run.device_key == "train.device" else "MODEL.WEIGHTS")
            + "=FILE."
        )
    checkpointer = WeightsCheckpointer(model)
    checkpointer.load(weights, checkpointables=[])
    checkpointer.require(weights, every=True, inference=True)
    return evaluate(run, model, os.path.join(run.output_dir, "inference"))


def dry_run(run: Run) -> str:
    """One training and one evaluation step on real data; nothing is written. Returns a report."""
    model = run.build_model()
    optimizer = run.build_optimizer(model)
    run.build_scheduler(optimizer)
    checkpointer = WeightsCheckpointer(model)
    checkpointer.load(run.weights, checkpointables=[])
    checkpointer.require(run.weights, every=False)
    checkpointer.begin_new_run()
    trainer = (AMPTrainer if run.amp else SimpleTrainer)(model, run.build_train_loader(), optimizer)
    with EventStorage() as storage:
        trainer.run_step()
        losses = {k: v[0] for k, v in storage.latest().items() if "loss" in k}
    name, loader, _ = next(run.build_test_sets(None))
    batch = next(iter(loader))
    model.eval()
    with torch.no_grad():
        outputs = model(batch)
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)  # operators of no cost
    flops = sum(flop_count_operators(model, batch[:1]).values())
    size = "x".join(str(s) for s in batch[0]["image"].shape[1:])
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows = [
        engine.describe(),
        f"parameters  {parameters:,} ({trained:,} trained)",
        f"FLOPs       {flops:.4g} G (multiply-adds) for one {size} image",
        "losses      " + ", ".join(f"{k} {v:.4f}" for k, v in sorted(losses.items())),
        f"evaluation  {len(outputs)} output(s) for the first batch of {name}",
    ]
    return "\n".join(rows)
