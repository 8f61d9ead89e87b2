"""--resume with another config than the run's: what can be changed is, anything else ends in a sentence."""

import copy
import logging

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import nn

from detectron2.config import LazyConfig
from detectron2.engine import SimpleTrainer
from detectron2.solver import LRMultiplier
from shared.checkpoint import WeightsCheckpointer
from shared.errors import UserError
from shared.training.state import TrainerState
from tests.paths import ROOT
from tests.scenes import own_data_flags

from .runs import Training, make_config, metrics_of, read, train


def fails(arguments, run, *more) -> str:
    """Its last line; no traceback, and config.yaml as it was."""
    before = (run / "config.yaml").read_bytes()
    training = Training(arguments, run, *more, "--resume")
    assert training.end() == 2, training.errors()
    assert "Traceback" not in training.errors(), training.errors()
    assert (run / "config.yaml").read_bytes() == before and not (run / "config.0.yaml").exists()
    return training.last_line()


# ---------------------------------------------------------------- what cannot be changed
def test_another_model(tmp_path):
    """Both ways: entries that the checkpoint lacks, and entries that it has beside the model's."""
    names = ("faster_rcnn", "mask_rcnn")
    arguments = {name: make_config(name, tmp_path, "train.max_iter=2", "train.eval_period=0") for name in names}
    for name, other in (names, names[::-1]):
        train(arguments[name], tmp_path / name)
        last = fails(arguments[other], tmp_path / name, "train.max_iter=4")
        assert f"{name}/model_final.pth is of another architecture than the config's model" in last
        assert "mask_head" in last and "--resume needs the config, the overrides and the methods (--with)" in last


def test_another_optimizer(tmp_path):
    arguments = make_config("retinanet", tmp_path, "train.max_iter=2", "train.eval_period=0")
    run = tmp_path / "run"
    train(arguments, run)
    cfg = LazyConfig.load(arguments[1])
    cfg.optimizer = LazyConfig.load(str(ROOT / "configs/common/optim.py")).AdamW
    LazyConfig.save(cfg, str(tmp_path / "adam.yaml"))
    last = fails(["--config-file", str(tmp_path / "adam.yaml")], run, "train.max_iter=4")
    assert "optimizer AdamW is another one than the run's: only one of them has betas, dampening, eps, momentum" in last


def test_a_part_that_does_not_fit(tmp_path):
    """What no check knows of."""
    arguments = make_config("retinanet", tmp_path, "train.max_iter=2", "train.eval_period=0")
    train(arguments, tmp_path / "run")
    content = read(tmp_path / "run")
    content["trainer"]["optimizer"]["param_groups"] = 3
    torch.save(content, tmp_path / "run/model_final.pth")
    last = fails(arguments, tmp_path / "run", "train.max_iter=4")
    assert "model_final.pth cannot be resumed (TypeError: " in last and "delete it, and --resume takes the one" in last


# ---------------------------------------------------------------- what can
@pytest.mark.parametrize("kind", ["lazy", "yaml"])
def test_settings_of_the_optimizer(tmp_path, kind):
    """The new learning rate at its place in the schedule, and the new weight decay; said once."""
    lazy = kind == "lazy"
    keys = ("optimizer.lr", "optimizer.weight_decay") if lazy else ("SOLVER.BASE_LR", "SOLVER.WEIGHT_DECAY")
    length = "train.max_iter=12" if lazy else "SOLVER.MAX_ITER=12"
    period = "train.log_period=1" if lazy else "SOLVER.CHECKPOINT_PERIOD=6"
    arguments = ["--config-file", str(ROOT / f"tests/tiny/faster_rcnn.{'py' if lazy else 'yaml'}"), length, period]
    arguments += own_data_flags(tmp_path) + ([] if lazy else ["SOLVER.STEPS=(9,)", "SOLVER.WARMUP_ITERS=0"])
    run, key = tmp_path / "run", "train.output_dir" if lazy else "OUTPUT_DIR"
    train(arguments, run, folder_key=key)
    (run / "model_final.pth").unlink()
    (run / "model_0000011.pth").unlink()
    (run / "last_checkpoint").write_text("model_0000005.pth")
    before = read(run, "model_0000005.pth")["trainer"]["optimizer"]["param_groups"]
    rates = {row["iteration"]: row["lr"] for row in metrics_of(run) if "lr" in row}

    train(arguments, run, f"{keys[0]}={before[0]['initial_lr'] / 4}", f"{keys[1]}=0.25", "--resume", folder_key=key)
    log = (run / "log.txt").read_text()
    said = f"lr {before[0]['initial_lr'] / 4} (it was {before[0]['initial_lr']}), weight_decay 0.25 (it was "
    assert log.count("The optimizer goes on with other values than the run had: ") == 1 and said in log
    groups = read(run)["trainer"]["optimizer"]["param_groups"]
    decayed = [new["weight_decay"] for new, old in zip(groups, before, strict=True) if old["weight_decay"]]
    assert decayed and set(decayed) == {0.25}
    assert [g["initial_lr"] for g in groups] == [g["initial_lr"] / 4 for g in before]
    new = {row["iteration"]: row["lr"] for row in metrics_of(run) if "lr" in row}
    later = [i for i in rates if i > 5]
    assert later and [new[i] for i in later] == pytest.approx([rates[i] / 4 for i in later])
    assert all(new[i] == rates[i] for i in rates if i <= 5)

    (run / "model_final.pth").unlink()
    train(arguments, run, f"{keys[0]}={before[0]['initial_lr'] / 4}", f"{keys[1]}=0.25", "--resume", folder_key=key)
    assert (run / "log.txt").read_text().count("with other values than the run had") == 1


def make(schedule: bool, **settings):
    """(a trainer, its state as a checkpoint has it) of two groups; schedule: as of a YAML config."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD([{"params": layer.parameters()} for layer in model], **{"lr": 0.1, **settings})
    scheduler = ConstantParamScheduler(1.0)
    if schedule:
        scheduler = LRMultiplier(optimizer, ConstantParamScheduler(0.5), 10)
    trainer = SimpleTrainer(model, [], optimizer)
    return trainer, TrainerState(trainer, scheduler), scheduler


@pytest.mark.parametrize("schedule", [False, True])
def test_state_of_a_trainer(schedule, caplog):
    old_trainer, old, _ = make(schedule, momentum=0.9)
    for group in old_trainer.optimizer.param_groups:
        group.setdefault("initial_lr", 0.1)
    state = old.state_dict()
    with caplog.at_level(logging.WARNING):
        trainer, same, _ = make(schedule, momentum=0.9)
        same.load_state_dict(copy.deepcopy(state))
        assert not caplog.records and trainer.optimizer.state_dict() == old_trainer.optimizer.state_dict()
        trainer, changed, scheduler = make(schedule, momentum=0.5, lr=0.2)
        changed.load_state_dict(copy.deepcopy(state))
    assert [r.getMessage().partition(": ")[2] for r in caplog.records] == [
        "lr 0.2 (it was 0.1), momentum 0.5 (it was 0.9)."
    ]
    for group in trainer.optimizer.param_groups:
        assert (group["momentum"], group["initial_lr"]) == (0.5, 0.2)
        assert group["lr"] == pytest.approx(0.1 if schedule else 0.2)
    if schedule:
        trainer.optimizer.step()
        scheduler.step()
        assert scheduler.get_last_lr() == [0.1, 0.1]


def test_other_groups_of_parameters():
    _, old, _ = make(False)
    model = nn.Linear(2, 2)
    trainer = SimpleTrainer(model, [], torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(UserError, match=r"puts 2 parameters into the optimizer's groups, the run had 2 \+ 2: --resume"):
        TrainerState(trainer, ConstantParamScheduler(1.0)).load_state_dict(old.state_dict())


def test_the_sentence_of_a_part_is_kept(tmp_path):
    class Picky:
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            raise UserError("mine")

    checkpointer = WeightsCheckpointer(nn.Linear(1, 1), str(tmp_path), picky=Picky())
    checkpointer.save("a")
    with pytest.raises(UserError, match="^mine$"):
        checkpointer.resume(str(tmp_path / "a.pth"))
