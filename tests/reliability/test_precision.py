"""bfloat16 and float16: every method trains without a value that is not finite, close to float32.

On a CPU, by autocast. The default run trains three steps in float16, whose range is the smaller one, with an image
each; --slow fifty steps in both types, with two.
"""

import copy

import pytest
import torch
from torch import nn

import train_net
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.utils.events import EventStorage
from projects.InterNet.transport import _mean_abs_cos
from projects.LIP.logits import DetailLogit
from shared.errors import UserError
from shared.modeling.box_coding import Float32BoxTransformLinear
from shared.training.precision import AutocastForward, amp_dtype, make_trainer
from tests.paths import ROOT
from tests.scenes import own_data_flags

from .methods import METHODS, build, make_batch, without_chance

# Rounding of a 16-bit value is 2**-9 (bfloat16) or 2**-12 (float16) of it. Some 30 layers follow each other, and their
# errors add up: to 30 times that at most, of the sum of all losses. What is chosen by a rank or a threshold, proposals
# and MuSu's samples, may come out otherwise beside that.
TOLERANCE = {torch.bfloat16: 30 * 2**-9, torch.float16: 30 * 2**-12}
DTYPES = list(TOLERANCE)
SCALE = 128.0  # of the loss in float16; gradients of FishNet with one image are above 20


def losses_of(model: nn.Module, batch: list[dict], iteration: int, dtype: torch.dtype | None) -> dict:
    torch.manual_seed(iteration)  # of samplers
    with EventStorage(iteration), torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        return model(batch)


def assert_finite(kind: str, tensors: dict[str, torch.Tensor]) -> None:
    assert tensors and [name for name, x in tensors.items() if not x.isfinite().all()] == [], kind


def train(name: str, dtype: torch.dtype, steps: int, images: int) -> None:
    """With float16 by a GradScaler whose scale never has to fall."""
    model = build(name, METHODS[name]("BN"))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=dtype == torch.float16)
    for iteration in range(steps):
        losses = losses_of(model, make_batch(name, iteration, images), iteration, dtype)
        assert_finite(f"losses of step {iteration}", losses)
        assert {x.dtype for x in losses.values()} == {torch.float32}
        optimizer.zero_grad()
        scaler.scale(sum(losses.values())).backward()
        with EventStorage(iteration):
            getattr(model, "after_backward", lambda: None)()
        scaler.unscale_(optimizer)
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert_finite(f"gradients of step {iteration}", gradients)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == (SCALE if scaler.is_enabled() else 1.0)
    state = model.state_dict()
    assert_finite("state", {n: x for n, x in state.items() if x.is_floating_point() and "statistics.history" not in n})
    assert {x.dtype for x in state.values()} <= {torch.float32, torch.float64, torch.int64}
    assert sum(not torch.equal(p, model.get_parameter(n)) for n, p in before.items()) >= 0.9 * len(before)


@pytest.mark.parametrize("name", METHODS)
def test_first_losses_are_those_of_float32(name):
    """Of the same weights and images; float32's own are those of the same model without autocast."""
    model, batch = build(name, without_chance(METHODS[name]("BN"))), make_batch(name, 0, images=1)
    expected = losses_of(copy.deepcopy(model), batch, 1, None)
    total = sum(x.item() for x in expected.values())
    for dtype, tolerance in TOLERANCE.items():
        losses = losses_of(copy.deepcopy(model), batch, 1, dtype)
        assert losses.keys() == expected.keys()
        worst = max((abs(losses[k].item() - expected[k].item()), k) for k in losses)
        assert 0 < worst[0] < tolerance * total, (dtype, worst, total)  # 0: it was not under autocast


@pytest.mark.parametrize("name", METHODS)
def test_trains(name):
    train(name, torch.float16, steps=3, images=1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_trains_fifty_steps(name, dtype):
    train(name, dtype, steps=50, images=2)


# ---------------------------------------------------------------- what would overflow
def test_detail_logit_of_large_values():
    """The square of 1000 is infinite in float16."""
    x = 1000 * torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    half, whole = (DetailLogit(4)(v) for v in (x.half(), x))
    assert half.dtype == torch.float32 and half.isfinite().all()
    torch.testing.assert_close(half, whole, rtol=0, atol=0.02)  # logarithms of values that are 2**-11 off


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cosines_of_equal_channels(dtype):
    """The sum of 256 x 256 ones is infinite in float16."""
    with torch.autocast("cpu", dtype=dtype):
        assert _mean_abs_cos(torch.ones(256, 9)).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_boxes_are_decoded_in_float32(dtype):
    """At 1000 px bfloat16 has steps of 4 px, float16 of half a pixel."""
    deltas, anchors = torch.tensor([[0.5, 0.25, 1.0, 2.0]]), torch.tensor([[1000.0, 500.0, 1008.0, 508.0]])
    boxes = Float32BoxTransformLinear().apply_deltas(deltas.to(dtype), anchors)
    assert boxes.dtype == torch.float32 and boxes.tolist() == [[1000.0, 502.0, 1012.0, 520.0]]
    assert torch.equal(boxes, Box2BoxTransformLinear().apply_deltas(deltas, anchors))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_points_are_float32(dtype):
    model = build("reppoints", METHODS["reppoints"]("BN"))
    with torch.autocast("cpu", dtype=dtype):
        logits, init, refine = model.head([torch.randn(1, 32, 4, 4)])
    assert logits[0].dtype == dtype and init[0].dtype == refine[0].dtype == torch.float32


# ---------------------------------------------------------------- trainers and keys
class Toy(nn.Module):
    """Notes where autocast is on: in its forward and in its backward pass."""

    def __init__(self):
        super().__init__()
        self.w, self.seen = nn.Parameter(torch.ones(2, 2)), []

    def forward(self, x):
        self.seen.append(("forward", torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        y = x @ self.w
        y.register_hook(lambda grad: self.seen.append(("backward", torch.is_autocast_enabled("cpu"), y.dtype)))
        return {"loss": y.float().square().sum()}


def test_bfloat16_is_the_forward_pass_alone():
    toy = Toy()
    trainer = make_trainer(toy, [torch.eye(2)], torch.optim.SGD(toy.parameters(), lr=0.25), torch.bfloat16)
    trainer.train(0, 1)
    assert toy.seen == [("forward", True, torch.bfloat16), ("backward", False, torch.bfloat16)]
    assert toy.w.dtype == torch.float32 and toy.w.tolist() == [[0.5, 0.5], [0.5, 0.5]]  # 1 - 0.25 * 2


@pytest.mark.filterwarnings("ignore:.*GradScaler")
def test_trainer_of_each_precision():
    toy = Toy()
    trainers = [make_trainer(toy, [], torch.optim.SGD(toy.parameters()), d) for d in (None, torch.float16)]
    assert [type(t) for t in trainers] == [SimpleTrainer, AMPTrainer]
    assert trainers[0].model is toy and trainers[1].precision == torch.float16


@pytest.mark.parametrize(
    "file, settings",
    [
        (
            "faster_rcnn.py",
            ["train.amp.enabled=true", "train.amp.dtype=bfloat16", "train.max_iter=2", "train.output_dir="],
        ),
        (
            "faster_rcnn.yaml",
            ["SOLVER.AMP.ENABLED=True", "SOLVER.AMP.DTYPE=bfloat16", "SOLVER.MAX_ITER=2", "OUTPUT_DIR="],
        ),
    ],
)
def test_command_trains_in_bfloat16_on_a_cpu(tmp_path, monkeypatch, file, settings):
    seen, forward = [], AutocastForward.forward

    def noted(self, batch):
        losses = forward(self, batch)
        seen.append({name: x.isfinite().item() for name, x in losses.items()})
        return losses

    monkeypatch.setattr(AutocastForward, "forward", noted)
    *settings, output = settings
    own = own_data_flags(tmp_path)
    train_net.cli(["--config-file", str(ROOT / "tests/tiny" / file), *own, *settings, f"{output}{tmp_path}/run"])
    assert len(seen) == 2 and all(all(step.values()) for step in seen)
    model = torch.load(tmp_path / "run/model_final.pth", weights_only=True)["model"]
    assert {x.dtype for x in model.values()} <= {torch.float32, torch.int64}


def test_keys():
    assert amp_dtype(False, "float16", "k") is None and amp_dtype(True, "bfloat16", "k") is torch.bfloat16
    with pytest.raises(UserError, match="train.amp.dtype is 'fp8': choose one of float16, bfloat16"):
        amp_dtype(False, "fp8", "train.amp.dtype")
