"""The standard hooks."""

import math
from collections import OrderedDict

import pytest
import torch
from fvcore.common.param_scheduler import LinearParamScheduler, MultiStepParamScheduler
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase, SimpleTrainer, TrainerBase, hooks
from detectron2.solver import LRMultiplier
from detectron2.utils.events import EventWriter

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")


class Idle(TrainerBase):
    """A trainer without work, which fails at the start of iteration `fail_at`."""

    def __init__(self, *its_hooks, fail_at=None):
        super().__init__()
        self.fail_at = fail_at
        self.register_hooks(its_hooks)

    def run_step(self):
        if self.iter == self.fail_at:
            raise RuntimeError("on purpose")


def values(trainer, name):
    return trainer.storage.history(name).values()


# ---------------------------------------------------------------- callbacks and time
def test_callbacks_get_the_trainer():
    calls = []
    names = ("before_train", "after_train", "before_step", "after_step")
    hook = hooks.CallbackHook(**{n: lambda trainer, n=n: calls.append((n, trainer.iter)) for n in names})
    Idle(hook, hooks.CallbackHook()).train(0, 1)
    assert calls == [("before_train", 0), ("before_step", 0), ("after_step", 0), ("after_train", 1)]


@pytest.mark.parametrize("warmup, start", [(3, 0), (3, 10), (1, 0)])
def test_timer_leaves_the_warmup_out(warmup, start):
    trainer = Idle(hooks.IterationTimer(warmup))
    trainer.train(start, start + 7)
    expected = list(range(start + warmup - 1, start + 7))  # 5 of 7 iterations for 3
    assert [i for _, i in values(trainer, "time")] == expected


# ---------------------------------------------------------------- writing
class Writer(EventWriter):
    def __init__(self, trainer_of):
        self.calls, self.trainer_of = [], trainer_of

    def write(self):
        self.calls.append(self.trainer_of().iter)

    def close(self):
        self.calls.append("closed")


@pytest.mark.parametrize(
    "iterations, fail_at, expected",
    [(7, None, [2, 5, 6, 7, "closed"]), (6, None, [2, 5, 6, "closed"]), (7, 4, [2, 4, "closed"])],
)
def test_periodic_writer(iterations, fail_at, expected):
    writer = Writer(lambda: trainer)
    trainer = Idle(hooks.PeriodicWriter([writer], period=3), fail_at=fail_at)
    try:
        trainer.train(0, iterations)
    except RuntimeError:
        assert fail_at is not None
    assert writer.calls == expected


def test_periodic_writer_refuses_other_objects():
    with pytest.raises(AssertionError):
        hooks.PeriodicWriter([print])


# ---------------------------------------------------------------- learning rate
def make_sgd(*rates, sizes=None):
    sizes = sizes or [1] * len(rates)
    groups = [{"params": [nn.Parameter(torch.zeros(1)) for _ in range(n)], "lr": lr} for lr, n in zip(rates, sizes)]
    return torch.optim.SGD(groups, lr=1.0)


def test_rate_is_logged_before_the_step_at_i_over_max_iter():
    optimizer = make_sgd(1.0)
    trainer = Idle(hooks.LRScheduler(optimizer, LinearParamScheduler(0.0, 1.0)))
    trainer.train(0, 4)
    assert values(trainer, "lr") == [(0.0, 0), (0.25, 1), (0.5, 2), (0.75, 3)]
    assert optimizer.param_groups[0]["lr"] == 1.0  # the step after the last iteration
    assert trainer.storage.smoothing_hints()["lr"] is False


def test_a_param_scheduler_starts_at_the_trainers_iteration():
    optimizer = make_sgd(1.0)
    optimizer.param_groups[0]["initial_lr"] = 1.0
    trainer = Idle(hooks.LRScheduler(optimizer, LinearParamScheduler(0.0, 1.0)))
    trainer.train(2, 4)
    assert values(trainer, "lr") == [(0.5, 2), (0.75, 3)]


def test_scheduler_and_optimizer_of_the_trainer():
    trainer = Idle(hooks.LRScheduler())
    trainer.optimizer = make_sgd(1.0)
    schedule = MultiStepParamScheduler([1.0, 0.1], num_updates=4, milestones=[1])
    trainer.scheduler = LRMultiplier(trainer.optimizer, schedule, max_iter=4)
    trainer.train(0, 2)
    assert values(trainer, "lr") == [(1.0, 0), (0.1, 1)]
    assert trainer.state_dict()["hooks"] == {"LRScheduler": {"base_lrs": [1.0], "last_epoch": 2}}


def test_schedulers_of_torch_are_stepped_and_saved():
    optimizers = [make_sgd(1.0) for _ in range(2)]
    trainers = []
    for optimizer in optimizers:
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
        trainers.append(Idle(hooks.LRScheduler(optimizer, scheduler)))
    trainers[0].train(0, 3)
    assert [v for v, _ in values(trainers[0], "lr")] == [1.0, 1.0, 0.5]
    trainers[1].load_state_dict({**trainers[0].state_dict(), "iteration": 2})
    optimizers[1].param_groups[0]["lr"] = 0.5
    trainers[1].train(3, 5)  # one step of the second period of two, then the third
    assert [v for v, _ in values(trainers[1], "lr")] == [0.5, 0.25]


@pytest.mark.parametrize(
    "rates, sizes, expected",
    [
        ((1.0, 2.0, 3.0), (2, 3, 3), 1),  # the first of the largest groups
        ((1.0, 2.0, 3.0, 2.0), (1, 1, 1, 1), 1),  # one parameter each: the most common rate
    ],
)
def test_group_whose_rate_is_logged(rates, sizes, expected):
    assert hooks.LRScheduler.get_best_param_group_id(make_sgd(*rates, sizes=sizes)) == expected


# ---------------------------------------------------------------- evaluation
@pytest.mark.parametrize(
    "period, after, fail_at, expected",
    [
        (3, True, None, [2, 6]),  # not at the last iteration, but after training
        (3, False, None, [2]),
        (0, True, None, [6]),
        (3, True, 4, [2]),  # not after an error
    ],
)
def test_when_evaluation_happens(period, after, fail_at, expected):
    calls = []
    hook = hooks.EvalHook(period, lambda: calls.append(trainer.iter), after)
    trainer = Idle(hook, fail_at=fail_at)
    try:
        trainer.train(0, 6)
    except RuntimeError:
        assert fail_at is not None
    assert calls == expected


@pytest.mark.embedded_only
def test_no_evaluation_after_an_error_in_the_last_iteration():
    calls = []
    trainer = Idle(hooks.EvalHook(0, lambda: calls.append(1)), fail_at=5)
    with pytest.raises(RuntimeError):
        trainer.train(0, 6)
    assert calls == []


def test_results_are_flattened_and_not_smoothed():
    results = {"bbox": OrderedDict(AP=torch.tensor(2.0), sub={"x": 3})}
    trainer = Idle(hooks.EvalHook(2, lambda: results))
    trainer.train(0, 3)
    assert values(trainer, "bbox/AP") == [(2.0, 1), (2.0, 3)]
    assert values(trainer, "bbox/sub/x") == [(3.0, 1), (3.0, 3)]
    assert trainer.storage.smoothing_hints()["bbox/AP"] is False


@pytest.mark.parametrize("bad", ["text", None, [1.0]])
def test_results_must_be_numbers(bad):
    trainer = Idle(hooks.EvalHook(1, lambda: {"bbox": {"AP": bad}}))
    with pytest.raises(ValueError, match="nested dict of float.*bbox/AP"):
        trainer.train(0, 3)


class Saves:
    """A checkpointer that only remembers."""

    def __init__(self):
        self.saved = []

    def save(self, name, **extra):
        self.saved.append((name, extra))


def run_best(metrics, **kwargs):
    saves, results = Saves(), iter(metrics)
    trainer = Idle(hooks.EvalHook(2, lambda: {"m": next(results)}), hooks.BestCheckpointer(2, saves, "m", **kwargs))
    trainer.train(0, 2 * len(metrics))
    return saves.saved


def test_best_checkpointer_saves_improvements_only():
    # evaluated in iterations 1, 3, 5 and, after the last one, with iteration 8
    assert run_best([1.0, 3.0, 2.0, 4.0]) == [
        ("model_best", {"iteration": 1}),
        ("model_best", {"iteration": 3}),
        ("model_best", {"iteration": 8}),
    ]
    assert run_best([3.0, 1.0, 2.0], mode="min", file_prefix="low") == [
        ("low", {"iteration": 1}),
        ("low", {"iteration": 3}),
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_the_first_best(bad):
    assert run_best([bad, 1.0, 0.5]) == [("model_best", {"iteration": 3})]


@pytest.mark.embedded_only
def test_infinity_is_no_improvement():
    assert run_best([1.0, math.inf, 2.0]) == [("model_best", {"iteration": 1}), ("model_best", {"iteration": 6})]


def test_best_checkpointer_warns_about_a_missing_metric(caplog):
    saves = Saves()
    Idle(hooks.BestCheckpointer(1, saves, "bbox/AP")).train(0, 2)
    assert saves.saved == [] and "bbox/AP" in caplog.text


def test_best_checkpointer_knows_two_modes():
    with pytest.raises(AssertionError, match="mean"):
        hooks.BestCheckpointer(1, Saves(), "m", mode="mean")


# ---------------------------------------------------------------- checkpoints
class Data(HookBase):
    """Gives the trainer the data of its iteration, so that runs can be compared."""

    def before_step(self):
        self.trainer.data = torch.tensor([float(self.trainer.iter + 1), 1.0])


class Regression(SimpleTrainer):
    """Momentum SGD on data that depends on the iteration alone."""

    def __init__(self, folder):
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        super().__init__(model, [], optimizer)
        self.checkpointer = DetectionCheckpointer(model, str(folder), trainer=self)
        self.register_hooks(
            [
                Data(),
                hooks.LRScheduler(optimizer, LinearParamScheduler(1.0, 0.1)),
                hooks.PeriodicCheckpointer(self.checkpointer, 3, max_to_keep=2),
            ]
        )

    def run_step(self):
        loss = self.model(self.data).square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = Regression(tmp_path / "whole")
    (tmp_path / "whole").mkdir()
    whole.train(0, 10)
    names = sorted(p.name for p in (tmp_path / "whole").glob("*.pth"))
    assert names == ["model_0000005.pth", "model_0000008.pth", "model_final.pth"]  # 2 kept

    (tmp_path / "parts").mkdir()
    first = Regression(tmp_path / "parts")
    first.register_hooks([hooks.CallbackHook(before_step=lambda t: 1 / (7 - t.iter))])
    with pytest.raises(ZeroDivisionError):
        first.train(0, 10)
    second = Regression(tmp_path / "parts")
    second.checkpointer.resume_or_load("", resume=True)
    assert second.iter == 5  # the one that was finished last
    second.train(second.iter + 1, 10)
    for a, b in zip(whole.model.parameters(), second.model.parameters()):
        assert torch.equal(a, b)
    assert second.storage.history("lr").values() == whole.storage.history("lr").values()[6:]
