"""What a model may have: `after_initial_weights` and `after_backward`."""

import torch
from torch import nn

from detectron2.engine import SimpleTrainer
from shared.checkpoint import WeightsCheckpointer
from shared.training.hooks import ModelAfterBackward


class Net(nn.Module):
    """Two layers; drops the gradient of the second in iterations that it is told."""

    def __init__(self, drop=()):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 1)
        self.calls, self.drop, self.count = [], drop, 0

    def forward(self, x):
        return {"loss": self.b(self.a(x)).sum()}

    def after_initial_weights(self, unfilled):
        self.calls.append(unfilled)

    def after_backward(self):
        assert self.a.weight.grad is not None
        if self.count in self.drop:
            self.b.weight.grad = self.b.bias.grad = None
        self.count += 1


def test_a_new_run_tells_the_model_what_no_file_has_filled(tmp_path):
    state = Net().state_dict()
    state.pop("a.bias")
    state["b.weight"] = torch.zeros(5, 5)
    torch.save({"model": state}, tmp_path / "w.pth")
    model = Net()
    checkpointer = WeightsCheckpointer(model)
    checkpointer.begin_new_run()  # nothing loaded
    checkpointer.load(str(tmp_path / "w.pth"))
    assert len(model.calls) == 1  # loading alone does not
    checkpointer.begin_new_run()
    assert model.calls == [{"a.weight", "a.bias", "b.weight", "b.bias"}, {"a.bias", "b.weight"}]
    WeightsCheckpointer(nn.Linear(1, 1)).begin_new_run()


def train(model, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
    trainer = SimpleTrainer(model, [torch.ones(1, 2)] * steps, optimizer)
    seen = [model.b.weight.detach().clone()] if hasattr(model, "b") else []
    trainer.register_hooks([ModelAfterBackward(model)])
    for i in range(steps):
        trainer.train(i, i + 1)
        if hasattr(model, "b"):
            seen.append(model.b.weight.detach().clone())
    return [not torch.equal(x, y) for x, y in zip(seen, seen[1:])]


def test_gradients_dropped_after_backward_are_no_step():
    assert train(Net(drop=(1,))) == [True, False, True]
    assert train(Net()) == [True, True, True]
    plain = nn.Linear(2, 1)
    plain.forward = lambda x: {"loss": nn.Linear.forward(plain, x).sum()}
    before = plain.weight.detach().clone()
    train(plain)
    assert not torch.equal(before, plain.weight)
