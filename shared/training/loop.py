"""Train, evaluate, and try one step of each."""

import json
import logging
import os
from collections import OrderedDict

import torch
import torch.distributed as dist
from torch import nn

from detectron2.engine import SimpleTrainer, create_ddp_model, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.analysis import flop_count_operators
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventStorage, TensorboardXWriter
from shared import engine
from shared.checkpoint import WeightsCheckpointer
from shared.data.stream import TrainStream
from shared.errors import CommonError
from shared.files import DiskError, disk_errors, whole_file
from shared.modeling.normalizers import sync_normalizers
from shared.randomness import Use, seed_generators
from shared.training.ema import WeightAverage
from shared.training.folder import EVALUATION, save_config
from shared.training.hooks import ModelAfterBackward, ProgressBar, SeedEachIteration
from shared.training.losses import LossWatch, NonFiniteLoss
from shared.training.metrics import MetricsFile, WriteMetrics
from shared.training.precision import make_trainer
from shared.training.resume import Start, find_start
from shared.training.resume_hooks import Evaluate, FinishIteration, SaveCheckpoints, StopWhenAsked
from shared.training.run import Run
from shared.training.state import RunState, TrainerState
from shared.training.stops import StopSignals
from shared.training.train_loop import run_iterations

logger = logging.getLogger(__name__)


def use_main_buffers(model: nn.Module) -> None:
    """In every process: batch norm's statistics differ, and the main one's are what is saved."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def evaluate(run: Run, model: nn.Module, folder: str | None) -> OrderedDict:
    """Evaluate on every test set. Returns {task: {metric: value}} ({set: ...} of several sets).

    Results are printed and, with a `folder`, written to its `results.json`.
    """
    results = OrderedDict()
    use_main_buffers(model)
    for name, loader, evaluator in run.build_test_sets(folder):
        results[name] = inference_on_dataset(model, loader, evaluator)
        if comm.is_main_process():
            logger.info("Results on %s:", name)
            print_csv_format(results[name])
    if len(results) == 1:
        results = next(iter(results.values()))
    if folder is not None and comm.is_main_process():
        os.makedirs(folder, exist_ok=True)
        with whole_file(os.path.join(folder, "results.json"), "w") as f:
            json.dump(results, f, indent=1)
    return results


def train(run: Run, resume: bool) -> OrderedDict:
    """Train to run.max_iter, evaluate on the way and at the end; returns the last results.

    With `resume` a run goes on from its last whole checkpoint, and weights, metrics and order of the data become those
    of a run that was never stopped: bit for bit on a CPU.

    Raises:
        NonFiniteLoss, DiskError: the run can be resumed; the sentence says where it goes on.
        RunStopped: so it can, after a signal; its exit code is 128 + the signal's number.
    """
    os.makedirs(run.output_dir, exist_ok=True)
    start = find_start(run.output_dir, resume, run.seed)
    seed_all_rng(start.seed + comm.get_rank())
    model = run.build_model()
    if run.sync_normalizers:
        sync_normalizers(model)
    trainer = _build_trainer(run, model, start)
    average = None if run.ema_decay is None else WeightAverage(model, run.ema_decay)
    evaluated = model if average is None else average.averaged
    state = RunState(start.seed, {"model": model, "evaluated": evaluated}, MetricsFile(run.output_dir))
    scheduler = run.build_scheduler(trainer.optimizer)
    parts = {"trainer": TrainerState(trainer, scheduler), **({} if average is None else {"ema": average}), "run": state}
    checkpointer = WeightsCheckpointer(evaluated, run.output_dir, **parts)
    with StopSignals(announce=comm.is_main_process()) as stop:
        watch = LossWatch(model, stop, run.output_dir)
        before = [SeedEachIteration(start.seed), watch]
        if average is not None:
            before.append(hooks.CallbackHook(after_step=lambda _: average.update()))
        trainer.register_hooks([*before, ModelAfterBackward(model), hooks.IterationTimer()])
        trainer.register_hooks([hooks.LRScheduler(scheduler=scheduler)])
        saver = SaveCheckpoints(checkpointer, state, watch, run.checkpoint_period, run.max_to_keep, start)
        evaluation = _register_last_hooks(run, trainer, evaluated, state, saver, watch, stop)
        _load_start(run, checkpointer, start)
        save_config(run, run.output_dir)
        if average is not None:
            average.begin()
        if start.first_iter >= run.max_iter:
            logger.info("Nothing left to train: the run ended at iteration %d.", start.first_iter)
        try:
            with disk_errors(run.output_dir):
                run_iterations(trainer, start.first_iter, run.max_iter)
        except (NonFiniteLoss, DiskError) as e:
            raise type(e)(f"{e} {saver.where_resume_begins()}") from e
    return evaluation.last


def _build_trainer(run: Run, model: nn.Module, start: Start) -> SimpleTrainer:
    ddp = create_ddp_model(model, **_ddp_arguments(run))
    optimizer = run.build_optimizer(ddp)
    seed_generators(start.seed, Use.LOADER)  # for a sampler that draws its seed
    loader = run.build_train_loader(start.seed)
    if isinstance(loader, TrainStream):
        loader.start = start.first_iter
    else:
        logger.info("The config has a data loader of its own: after --resume its data begin anew.")
    return make_trainer(ddp, loader, optimizer, run.amp)


def _register_last_hooks(
    run: Run,
    trainer: SimpleTrainer,
    evaluated: nn.Module,
    state: RunState,
    saver: SaveCheckpoints,
    watch: LossWatch,
    stop: StopSignals,
) -> Evaluate:
    """Checkpoints, evaluation, metrics, and the end of a run that is asked to stop."""
    folder = os.path.join(run.output_dir, EVALUATION)
    stopper = StopWhenAsked(watch, saver)
    evaluation = Evaluate(
        run.eval_period,
        evaluate=lambda: evaluate(run, evaluated, folder),
        prepare=lambda: use_main_buffers(evaluated),
        file=os.path.join(folder, "evaluated.json"),
        stop=stop,
        stopper=stopper,
        saver=saver,
    )
    write = []
    if comm.is_main_process():  # after the evaluation, whose results they write
        events = TensorboardXWriter(run.output_dir, purge_step=saver.start.first_iter or None)
        writers = [CommonMetricPrinter(run.max_iter), state.writer, events]
        write = [WriteMetrics(writers, run.log_period, run.output_dir)]
        trainer.register_hooks([ProgressBar()])
    finish = FinishIteration(state, saver, [evaluation, *write])
    trainer.register_hooks([saver, evaluation, *write, finish, stopper])
    return evaluation


def _ddp_arguments(run: Run) -> dict:
    """DDP wants device ids for GPU modules only."""
    return run.ddp if run.device.startswith("cuda") else {**run.ddp, "device_ids": None}


def _load_start(run: Run, checkpointer: WeightsCheckpointer, start: Start) -> None:
    resumed = start.checkpoint is not None
    path = start.checkpoint or run.weights
    unread = checkpointer.resume(path) if resumed else checkpointer.load(path, checkpointables=[])
    if resumed and "ema" in unread:
        raise CommonError("The run that --resume finds was trained with train.ema.enabled=true: set it again.")
    if resumed and not checkpointer.checkpointables["run"].was_loaded:
        logger.warning("%s was written by an earlier version: the run goes on from it, but not bit for bit.", path)
    if not resumed:
        checkpointer.require(path, every=False)
    if checkpointer.report is not None:
        logger.info("Weights %s: %s.", path, checkpointer.describe())
    if not resumed:
        checkpointer.begin_new_run()


def evaluate_only(run: Run, folder: str) -> OrderedDict:
    """Evaluate the weights, into `folder`; UserError unless every entry of the model is in the file."""
    model = run.build_model()
    checkpointer = WeightsCheckpointer(model)
    checkpointer.load(run.weights, checkpointables=[])
    checkpointer.require(run.weights, every=True, inference=True)
    save_config(run, folder)
    return evaluate(run, model, folder)


def dry_run(run: Run) -> str:
    """One training and one evaluation step on real data; nothing is written. Returns a report."""
    model = run.build_model()
    optimizer = run.build_optimizer(model)
    run.build_scheduler(optimizer)
    checkpointer = WeightsCheckpointer(model)
    checkpointer.load(run.weights, checkpointables=[])
    checkpointer.require(run.weights, every=False)
    checkpointer.begin_new_run()
    trainer = make_trainer(model, run.build_train_loader(max(run.seed, 0)), optimizer, run.amp)
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
