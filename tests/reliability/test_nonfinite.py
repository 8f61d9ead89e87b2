"""A loss that is not finite ends a run with the iteration, the losses, the images, and the weights before the step;
weights that are not finite end it before they are saved."""

import json
import math
import os
import re
import signal
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.modeling import RetinaNet
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from shared.checkpoint import checkpoint_to_resume
from shared.data.stream import TrainStream
from shared.training.losses import LossWatch, NonFiniteLoss
from tests.processes import run_forked

from .runs import Training, make_config, read, train
from .test_stops import at_step

LAST = "Lower the learning rate, bound the gradients' norm, or look at these images. --resume goes on from iteration 1."


def batch_files(folder, number: int) -> list[str]:
    """The image files of a batch, in order, from the records alone."""
    coco = json.loads((folder / "train/annotations.json").read_text())
    records = [{**row, "file_name": str(folder / "train/images" / row["file_name"])} for row in coco["images"]]
    stream = TrainStream(records, mapper=None, seed=1, total_batch_size=2)  # the tests' configs have seed 1
    stream.start = number
    return [record["file_name"] for record in next(iter(stream))]


@pytest.mark.parametrize(
    "name, what",
    [("retinanet", r"loss_\w+ is (nan|inf)"), ("faster_rcnn", r"[Pp]redicted boxes or scores .*([Nn]a[Nn]|NaN)")],
)
def test_run_ends_with_names(tmp_path, name, what):
    """After a first step with a learning rate that nothing survives. Detectron2's proposals raise errors themselves."""
    arguments = make_config(name, tmp_path, "train.max_iter=9", "train.checkpointer.period=1", "train.eval_period=0")
    run = tmp_path / "run"
    training = Training(arguments, run, "optimizer.lr=1e30", "lr_multiplier.warmup_iters=0")
    assert training.end() == 2, training.errors()
    last = training.last_line()
    assert last.startswith("error: Iteration 1: ") and re.search(what, last) and last.endswith(LAST), last
    files = batch_files(tmp_path, 1)
    assert f"The images of the batch: {', '.join(files)}." in last
    assert f"The weights from before the step are in {run}/model_nonfinite.pth." in last
    assert "Traceback" not in training.errors() + (run / "log.txt").read_text()

    saved, before = read(run, "model_nonfinite.pth"), read(run, "model_0000000.pth")
    assert saved["iteration"] == 1 and saved["processes"][0]["files"] == files
    weights = [key for key in before["model"] if key.endswith(("weight", "bias"))]
    assert weights and all(torch.equal(saved["model"][key], before["model"][key]) for key in weights)
    assert checkpoint_to_resume(str(run)) == str(run / "model_0000000.pth")
    # the file of debugging stays, and no run goes on from it
    training = Training(arguments, run, "optimizer.lr=1e30", "lr_multiplier.warmup_iters=0", "--resume")
    assert training.end() == 2 and training.last_line() == last


@contextmanager
def nan_gradients_from(iteration: int):
    """A finite loss whose gradient is NaN, in the trainings that begin in the block."""
    forward = RetinaNet.forward

    def with_root(self, batched_inputs):
        losses = forward(self, batched_inputs)
        if self.training and get_event_storage().iter >= iteration:
            losses["loss_cls"] = losses["loss_cls"] + (self.head.bbox_pred.bias * 0).sum().sqrt()
        return losses

    RetinaNet.forward = with_root
    try:
        yield
    finally:
        RetinaNet.forward = forward


def test_weights_that_are_not_finite_are_no_checkpoint(tmp_path):
    """The one before stays the last, and the run goes on from it."""
    settings = ["train.max_iter=9", "train.checkpointer.period=2", "train.checkpointer.max_to_keep=1"]
    arguments = make_config("retinanet", tmp_path, *settings, "train.eval_period=0")
    run = tmp_path / "run"
    for more in ([], ["--resume"]):
        with nan_gradients_from(5):
            training = Training(arguments, run, *more)
            assert training.end() == 2, training.errors()
        last = training.last_line()
        assert last.startswith(
            "error: Iteration 5: the losses were finite, the weights are not (head.bbox_pred.bias)"
        ), last
        assert f"The weights of now are in {run}/model_nonfinite.pth." in last
        assert last.endswith("--resume goes on from iteration 4.") and "Traceback" not in training.errors()
        assert [file.name for file in sorted(run.glob("model_*.pth"))] == ["model_0000003.pth", "model_nonfinite.pth"]
        assert read(run, "model_nonfinite.pth")["model"]["head.bbox_pred.bias"].isnan().any()
    train(arguments, run, "--resume")


def test_a_signal_saves_no_such_weights(tmp_path):
    def stop_at_3():
        at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))

    with nan_gradients_from(3):
        training = Training(make_config("retinanet", tmp_path), tmp_path / "run", before=stop_at_3)
        assert training.end() == 2, training.errors()
    assert "Iteration 3: the losses were finite, the weights are not" in training.last_line()
    assert training.last_line().endswith("No checkpoint was written yet: --resume begins anew.")


def test_other_trainings_are_left_alone(tmp_path):
    arguments = make_config("retinanet", tmp_path, "train.max_iter=2", "train.eval_period=0")
    train(arguments, tmp_path / "run")
    assert not (tmp_path / "run/model_nonfinite.pth").exists()


# ---------------------------------------------------------------- the watch alone
class Losses(nn.Module):
    """Returns what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch):
        if isinstance(batch[0]["losses"], str):
            raise FloatingPointError(batch[0]["losses"])
        return {k: v * self.weight for k, v in batch[0]["losses"].items()}


@pytest.fixture
def watched(tmp_path):
    model = Losses()
    watch = LossWatch(model, SimpleNamespace(signal=None), str(tmp_path))
    watch.trainer = SimpleNamespace(iter=7)
    watch.before_train()

    def step(losses, **record):
        sum(model([{"losses": losses, **record}]).values()).backward()
        watch.after_backward()

    step.model, step.watch = model, watch
    return step


@pytest.mark.parametrize(
    "losses, record, message",
    [
        ({"a": math.nan, "b": 1.0}, {"file_name": "x/1.png"}, r"Iteration 7: a is nan, .*batch: x/1.png\."),
        ({"a": 1.0, "b": -math.inf}, {"image_id": 12}, r"b is -inf, .*batch: 12\."),
        ({"a": 1e308, "b": 1e308}, {}, r"a is 1e\+308, b is 1e\+308, .*batch: an image in memory\."),
        ("boxes are NaN\n", {"file_name": "1.png"}, r"Iteration 7: boxes are NaN, and"),
    ],
)
def test_what_is_not_finite(watched, tmp_path, losses, record, message):
    if isinstance(losses, dict):
        losses = {k: torch.tensor(v, dtype=torch.float64) for k, v in losses.items()}
    with pytest.raises(NonFiniteLoss, match=message):
        watched(losses, **record)
    assert read(tmp_path, "model_nonfinite.pth")["iteration"] == 7


def test_finite_losses_and_evaluation_pass(watched, tmp_path):
    watched({"a": torch.tensor(1.0)})
    watched.model.eval()
    assert watched.model([{"losses": {"a": math.nan}}])["a"].isnan()
    watched.watch.after_train()
    assert "forward" not in vars(watched.model) and not list(tmp_path.iterdir())


def test_debug_file_that_cannot_be_written(watched, tmp_path):
    watched.watch._folder = str(tmp_path / "gone")
    with pytest.raises(NonFiniteLoss, match="from before the step could not be saved: .*the folder is gone"):
        watched({"a": torch.tensor(math.nan)})


def second_process_meets(folder: Path, number: int) -> None:
    """What is not finite, as its loss or in its forward pass; in each of two processes."""
    rank, model = comm.get_rank(), Losses()
    ddp = DistributedDataParallel(model)
    watch = LossWatch(model, SimpleNamespace(signal=None), str(folder))
    watch.trainer = SimpleNamespace(iter=3)
    watch.before_train()
    bad = ({"a": torch.tensor(math.nan)}, "boxes are NaN")[number]
    batch = [{"file_name": f"{rank}.png", "losses": bad if rank == 1 else {"a": torch.tensor(1.0)}}]
    sum(ddp(batch).values()).backward()
    with pytest.raises(NonFiniteLoss, match=r"Iteration 3: .*[nN]a[nN], .*The images of the batch: 1\.png\.") as e:
        watch.after_backward()
    assert e.value.everywhere
    comm.synchronize()
    assert [report["rank"] for report in read(folder, "model_nonfinite.pth")["processes"]] == [1]


def weights_of_the_second_are_odd(folder: Path) -> None:
    model = Losses()
    watch = LossWatch(model, SimpleNamespace(signal=None), str(folder))
    watch.trainer = SimpleNamespace(iter=3)
    watch.require_finite_weights()
    if comm.get_rank() == 1:
        model.weight.data.fill_(math.inf)
    with pytest.raises(
        NonFiniteLoss, match=r"^Iteration 3: the losses were finite, the weights are not \(weight\)"
    ) as e:
        watch.require_finite_weights()
    assert e.value.everywhere


def test_weights_of_one_of_two_processes(tmp_path):
    run_forked(2, weights_of_the_second_are_odd, tmp_path, tmp_path)


@pytest.mark.parametrize("number", [0, 1])
def test_one_of_two_processes_ends_both(tmp_path, number):
    """Also where its forward pass itself fails: the other one waits for its gradients."""
    run_forked(2, second_process_meets, tmp_path, tmp_path, number)
