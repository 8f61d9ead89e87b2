"""Counts of operations, activations and parameters; the report on the environment."""

import importlib

import pytest
import torch
from torch import nn

from detectron2.layers import Conv2d
from detectron2.structures import Boxes, Instances
from detectron2.utils.analysis import (
    FlopCountAnalysis,
    activation_count_operators,
    find_unused_parameters,
    flop_count_operators,
    parameter_count,
    parameter_count_table,
)
from detectron2.utils.collect_env import collect_env_info

# 3 x 8 x 6 -> 4 channels by 3 x 3: 8 * 6 * 4 * 27; norm: 2 per cell; twice the side: 4 * 16 * 12
# cells; linear: 4 * 2
FLOPS = {"conv": 5184, "batch_norm": 384, "upsample_nearest2d": 768, "linear": 8}


class Net(nn.Module):
    """Takes a list of dicts, returns losses, or Instances in dicts."""

    extra = {}

    def __init__(self):
        super().__init__()
        self.conv = Conv2d(3, 4, 3, padding=1, norm=nn.BatchNorm2d(4))
        self.fc, self.unused, self.frozen = nn.Linear(4, 2), nn.Linear(2, 2), nn.Linear(4, 1)
        self.frozen.weight.requires_grad = False
        self.modes = []

    def forward(self, inputs):
        self.modes.append((self.training, torch.is_grad_enabled()))
        self.keys = set(inputs[0])
        x = self.conv(inputs[0]["image"][None])
        x = nn.functional.interpolate(x, scale_factor=2).mean((2, 3))
        y = self.fc(x)
        if self.training:
            return {"a": y.sum(), "b": self.frozen(x).sum()}
        instances = Instances((4, 4), pred_boxes=Boxes(y.repeat(1, 2)), scores=y[:, 0])
        return [{"instances": instances, **self.extra}]


@pytest.fixture
def inputs():
    return [{"image": torch.rand(3, 8, 6), "height": 3, "file_name": "x"}]


@pytest.mark.parametrize("training", [True, False])
def test_operators_by_hand(inputs, training):
    model = Net().train(training)
    flops = flop_count_operators(model, inputs)
    assert {k: round(v * 1e9) for k, v in flops.items()} == FLOPS
    activations = activation_count_operators(model, inputs)
    assert {k: round(v * 1e6) for k, v in activations.items()} == {"conv": 4 * 8 * 6, "linear": 2}
    assert set(model.modes) == {(False, False)}  # eval mode, no_grad
    assert model.training == model.conv.norm.training == training


@pytest.mark.embedded_only  # upstream cannot count activations then
def test_inputs_and_outputs_may_hold_other_things_than_tensors(inputs):
    model = Net()
    model.extra = {"count": 3, "name": "x", "nothing": None}
    assert flop_count_operators(model, inputs)["conv"] == pytest.approx(5184e-9)
    assert activation_count_operators(model, inputs)["conv"] == pytest.approx(192e-6)
    assert model.keys == {"image", "height", "file_name"}


def test_flop_count_analysis(inputs):
    analysis = FlopCountAnalysis(Net().eval(), (inputs,))
    assert analysis.total() == sum(FLOPS.values())
    assert analysis.by_module()["model.conv"] == 5184 + 384
    assert analysis.unsupported_ops()["aten::repeat"] == 1
    # one argument need not be wrapped; several are a tuple
    conv = nn.Conv2d(3, 4, 3, bias=False)
    assert FlopCountAnalysis(conv, torch.rand(1, 3, 5, 7)).total() == 3 * 5 * 4 * 27

    class Product(nn.Module):
        def forward(self, x, pair):
            return x @ pair["y"]

    analysis = FlopCountAnalysis(Product(), (torch.rand(2, 3), {"y": torch.rand(3, 5)}))
    assert analysis.total() == 2 * 3 * 5


def test_find_unused_parameters(inputs):
    model = Net().train()
    for given in (inputs, (inputs,)):
        unused = find_unused_parameters(model, given)
        assert unused == ["unused.weight", "unused.bias", "frozen.weight"]
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(AssertionError):
        find_unused_parameters(model.eval(), inputs)


def test_parameter_count():
    counts = parameter_count(Net())
    assert counts["conv"] == 4 * 27 + 4 + 2 * 4 and counts["fc"] == 4 * 2 + 2
    assert counts[""] == counts["conv"] + counts["fc"] + 6 + 5
    assert "conv" in parameter_count_table(Net())


# ------------------------------------------------------------------------------------ collect_env
def test_collect_env_info():
    text = collect_env_info()
    for name in ("Python", "numpy", "detectron2", "CUDA", "torchvision", "fvcore", "iopath", "cv2"):
        assert name in text
    assert torch.__version__ in text


@pytest.mark.embedded_only
def test_collect_env_info_names_the_engine():
    (line,) = (row for row in collect_env_info().splitlines() if row.startswith("detectron2"))
    assert "embedded" in line


@pytest.mark.embedded_only  # upstream imports its modules without a net
def test_collect_env_never_fails(monkeypatch):
    def broken(*args):
        raise OSError("libGL.so.1: cannot open")

    monkeypatch.setattr(importlib, "import_module", broken)
    monkeypatch.setattr(torch.cuda, "device_count", broken)
    monkeypatch.setattr(torch.cuda, "is_available", broken)
    text = collect_env_info()
    for name in ("cv2", "torchvision", "GPUs", "CUDA"):
        (line,) = (row for row in text.splitlines() if row.split()[0] == name)
        assert "OSError: libGL.so.1" in line
