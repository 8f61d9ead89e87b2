"""Trainers: the order of their calls, their metrics, and their state."""

import logging

import pytest
import torch
from torch import nn

from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, TrainerBase


class Recorder(HookBase):
    """Writes down what is called, with the trainer's and the storage's iteration."""

    def __init__(self):
        self.calls = []

    def _note(self, name):
        self.calls.append((name, self.trainer.iter, self.trainer.storage.iter))

    def before_train(self):
        self._note("before_train")

    def after_train(self):
        self._note("after_train")

    def before_step(self):
        self._note("before_step")

    def after_backward(self):
        self._note("after_backward")

    def after_step(self):
        self._note("after_step")


class Scale(nn.Module):
    """Losses w * data, by name; or one loss without a name."""

    def __init__(self, *names):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))
        self.names = names

    def forward(self, data):
        if not self.names:
            return self.w * data
        return {name: self.w * data * (i + 1) for i, name in enumerate(self.names)}


def make_trainer(model, data=2.0, lr=0.1, **kwargs):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return SimpleTrainer(model, [torch.tensor(data)] * 20, optimizer, **kwargs)


def history(trainer, name):
    return [(round(v, 5), i) for v, i in trainer.storage.history(name).values()]


def test_order_of_calls():
    trainer = make_trainer(Scale())
    hook = Recorder()
    trainer.register_hooks([None, hook])
    trainer.train(3, 5)
    assert hook.calls == [
        ("before_train", 3, 3),
        ("before_step", 3, 3),
        ("after_backward", 3, 3),
        ("after_step", 3, 3),
        ("before_step", 4, 4),
        ("after_backward", 4, 4),
        ("after_step", 4, 4),
        ("after_train", 5, 5),
    ]
    assert (trainer.start_iter, trainer.iter, trainer.max_iter) == (3, 5, 5)


def test_hooks_run_in_the_order_of_registration():
    calls = []

    class Hook(HookBase):
        def __init__(self, name):
            self.name = name

        def after_step(self):
            calls.append(self.name)

    trainer = make_trainer(Scale())
    trainer.register_hooks([Hook("a"), Hook("b")])
    trainer.register_hooks([Hook("c")])
    trainer.train(0, 1)
    assert calls == ["a", "b", "c"]


def test_hooks_hold_their_trainer_weakly():
    trainer, hook = make_trainer(Scale()), Recorder()
    trainer.register_hooks([hook])
    del trainer
    with pytest.raises(ReferenceError):
        hook.trainer.iter  # noqa: B018


def test_after_train_runs_on_errors_too(caplog):
    class Failing(TrainerBase):
        def run_step(self):
            if self.iter == 1:
                raise RuntimeError("no more")

    trainer, hook = Failing(), Recorder()
    trainer.register_hooks([hook])
    with pytest.raises(RuntimeError, match="no more"):
        trainer.train(0, 3)
    assert hook.calls[-2:] == [("before_step", 1, 1), ("after_train", 1, 1)]
    assert "Exception during training" in caplog.text


def test_a_dict_of_losses_is_summed_and_stored():
    trainer = make_trainer(Scale("loss_a", "b"))
    trainer.train(0, 2)
    # gradient 2 + 4, rate 0.1: w is 1, then 0.4; b is twice loss_a
    assert history(trainer, "loss_a") == [(2.0, 0), (0.8, 1)]
    assert history(trainer, "b") == [(4.0, 0), (1.6, 1)]
    assert history(trainer, "total_loss") == [(6.0, 0), (2.4, 1)]
    for name in ("data_time", "rank_data_time"):
        assert [i for _, i in history(trainer, name)] == [0, 1]


def test_one_loss_without_a_name():
    trainer = make_trainer(Scale())
    trainer.train(0, 2)
    assert history(trainer, "total_loss") == [(2.0, 0), (1.6, 1)]


@pytest.mark.embedded_only
def test_a_single_named_loss_is_stored_by_its_name_too():
    trainer = make_trainer(Scale("loss_a"))
    trainer.train(0, 1)
    assert history(trainer, "loss_a") == history(trainer, "total_loss") == [(2.0, 0)]


def test_metrics_are_gathered_every_so_often():
    trainer = make_trainer(Scale(), gather_metric_period=2)
    trainer.train(0, 5)
    assert history(trainer, "total_loss") == [(1.6, 1), (0.8, 3)]


def test_metrics_are_written_before_the_optimizer_steps():
    model = Scale()
    trainer = make_trainer(model)
    seen = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: seen.append((trainer.storage.latest()["total_loss"][0], model.w.item()))
    )
    trainer.train(0, 1)
    assert seen == [(2.0, 1.0)]


def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    model = Scale("loss_a", "loss_b")
    trainer = make_trainer(model, data=float("nan"))
    with pytest.raises(FloatingPointError, match="iteration=0"):
        trainer.train(0, 2)
    assert model.w.item() == 1.0


@pytest.mark.parametrize("before", [True, False])
def test_when_gradients_are_cleared(before):
    model = Scale()
    trainer = make_trainer(model, zero_grad_before_forward=before)
    model.w.grad = torch.tensor(100.0)
    grads = []
    model.register_forward_pre_hook(lambda *_: grads.append(model.w.grad))
    trainer.train(0, 1)
    assert grads == [None if before else torch.tensor(100.0)]
    assert model.w.item() == pytest.approx(0.8)  # the old gradient does not count


@pytest.mark.parametrize("names", [(), ("loss_a", "loss_b")])
def test_metrics_written_by_a_thread_are_the_same(names):
    trainers = [make_trainer(Scale(*names), async_write_metrics=flag) for flag in (True, False)]
    for trainer in trainers:
        trainer.train(0, 6)
    for name in ("total_loss", *names):
        assert history(trainers[0], name) == history(trainers[1], name)


@pytest.mark.embedded_only
def test_errors_of_the_writing_thread_are_not_lost():
    trainer = make_trainer(Scale(), data=float("inf"), async_write_metrics=True)
    with pytest.raises(FloatingPointError):
        trainer.train(0, 3)


def test_a_model_in_eval_mode_is_noticed():
    model = Scale().eval()
    trainer = make_trainer(model)
    assert model.training  # the trainer sets it
    model.eval()
    with pytest.raises(AssertionError, match="eval mode"):
        trainer.train(0, 1)


def test_the_data_loader_is_opened_at_the_first_step_and_can_be_replaced():
    opened = []

    class Loader:
        def __init__(self, value):
            self.value = value

        def __iter__(self):
            opened.append(self.value)
            while True:
                yield torch.tensor(self.value)

    model = Scale()
    trainer = SimpleTrainer(model, Loader(1.0), torch.optim.SGD(model.parameters(), lr=0.0))
    assert opened == []
    trainer.train(0, 2)
    trainer.reset_data_loader(lambda: Loader(3.0))
    assert opened == [1.0] and trainer.data_loader.value == 3.0
    trainer.train(2, 3)
    assert opened == [1.0, 3.0] and history(trainer, "total_loss") == [(3.0, 2)]


class Counting(HookBase):
    def __init__(self, count=0):
        self.count = count

    def state_dict(self):
        return {"count": self.count} if self.count else {}

    def load_state_dict(self, state):
        self.count = state["count"]


class Other(Counting):
    pass


def test_state_has_the_first_hook_of_each_class():
    trainer = make_trainer(Scale(), lr=0.5)
    assert set(trainer.state_dict()) == {"iteration", "optimizer"}
    trainer.register_hooks([Counting(1), Counting(2), Other(0)])
    trainer.iter = 7
    state = trainer.state_dict()
    assert state["iteration"] == 7 and state["hooks"] == {"Counting": {"count": 1}}

    fresh, hooks = make_trainer(Scale(), lr=0.1), [Other(5), Counting(6), Counting(8)]
    fresh.register_hooks(hooks)
    fresh.load_state_dict(state)
    assert fresh.iter == 7 and [h.count for h in hooks] == [5, 1, 8]
    assert fresh.optimizer.param_groups[0]["lr"] == 0.5


def test_state_of_an_unknown_hook_is_ignored_with_a_warning(caplog):
    trainer = make_trainer(Scale())
    with caplog.at_level(logging.WARNING):
        trainer.load_state_dict({**trainer.state_dict(), "hooks": {"Gone": {"a": 1}}})
    assert "Gone" in caplog.text


@pytest.mark.filterwarnings("ignore:.*GradScaler")
def test_amp_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(AssertionError, match="CUDA is required"):
        model = Scale()
        AMPTrainer(model, [torch.ones(1)], torch.optim.SGD(model.parameters())).train(0, 1)


def test_amp_runs_the_forward_in_low_precision_and_keeps_the_scaler():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    seen = []

    class Model(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            seen.append(y.dtype)
            return {"loss": y.float().mean()}

    model = Model(4, 4).cuda()
    data = [torch.ones(2, 4, device="cuda")] * 3
    before = model.weight.detach().clone()
    trainer = AMPTrainer(
        model, data, torch.optim.SGD(model.parameters(), lr=0.1),
        precision=torch.bfloat16, log_grad_scaler=True,
    )  # fmt: skip
    trainer.train(0, 2)
    assert seen == [torch.bfloat16] * 2
    # d(mean)/dw = 1 / 4 for each of the 4 outputs' inputs; two steps of rate 0.1
    torch.testing.assert_close(before - model.weight, torch.full_like(before, 0.05))
    assert trainer.storage.latest()["[metric]grad_scaler"][0] == trainer.grad_scaler.get_scale()
    state = trainer.state_dict()
    state["grad_scaler"]["scale"] = 8.0
    trainer.load_state_dict(state)
    assert trainer.grad_scaler.get_scale() == 8.0
