"""Which term moves what, and when: gradients per term, phases by iteration, work that is left out."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from detectron2.engine import SimpleTrainer
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils.events import EventStorage
from projects.LabelEnc import label_enc as label_enc_module
from shared.training.hooks import ModelAfterBackward

from .hosts import HOSTS, enc_host, make_batch

DIS = "labelenc/loss_dis"


def losses_of(model, iteration):
    torch.manual_seed(0)
    with EventStorage(iteration):
        return model(make_batch())


def group_of(name):
    if name.startswith("label_enc."):
        return name.split(".")[1]
    return "backbone" if name.startswith("backbone.") else "head"


def touched(model, loss):
    """Groups of parameters that `loss` reaches, by groups whose gradient is not zero."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
    reached = {group_of(name) for (name, _), g in zip(named, grads) if g is not None}
    moved = {group_of(name) for (name, _), g in zip(named, grads) if g is not None and g.any()}
    assert reached == moved
    return moved


@pytest.mark.parametrize("name", HOSTS)
def test_terms_of_step1_reach_what_they_should(name):
    """Figure 1: L1 the encoder and the head, L2 backbone and head, L3 backbone and adaption but not the encoder."""
    model = enc_host(name)
    losses = losses_of(model, iteration=2)
    reconstruction = [key for key in losses if key.startswith("labelenc/") and key != DIS]
    detection = [key for key in losses if not key.startswith("labelenc/")]
    assert len(reconstruction) == len(detection) >= 2
    assert touched(model, sum(losses[k] for k in reconstruction)) == {"encoder", "head"}
    assert touched(model, sum(losses[k] for k in detection)) == {"backbone", "head"}
    assert touched(model, losses[DIS]) == {"backbone", "adapt"}


def test_terms_of_step2_reach_what_they_should():
    model = enc_host(mode="step2")
    losses = losses_of(model, iteration=0)
    assert touched(model, losses["loss_cls"]) == {"backbone", "head"}
    assert touched(model, losses[DIS]) == {"backbone", "adapt"}
    assert not any(p.requires_grad for p in model.label_enc.encoder.parameters())


def moved(maps):
    """Targets unlike the maps that they are for."""
    return {level: m.detach().roll(1, 1) for level, m in maps.items()}


def spy(model, monkeypatch):
    """Names of the parts that ran."""
    calls = []
    render = label_enc_module.label_maps
    monkeypatch.setattr(label_enc_module, "label_maps", lambda *a, **k: calls.append("render") or render(*a, **k))
    for name in ("encoder", "adapt"):
        if getattr(model.label_enc, name) is not None:
            getattr(model.label_enc, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    monkeypatch.setattr(
        model.label_enc.teacher, "features", lambda student, batch, like: calls.append("teacher") or moved(like)
    )
    model.backbone.bottom_up.register_forward_hook(lambda *_: calls.append("backbone"))
    return calls


@pytest.mark.parametrize(
    "mode, iteration, ran",
    [
        ("step1", 0, ["backbone", "render", "encoder"]),
        ("step1", 1, ["backbone", "render", "encoder"]),
        ("step1", 2, ["backbone", "render", "encoder", "adapt"]),
        ("step2", 0, ["backbone", "render", "encoder", "adapt"]),
        ("step2", 2, ["backbone", "render", "encoder", "adapt"]),
        ("step2", 3, ["backbone"]),
        ("kd", 0, ["backbone", "teacher", "adapt"]),
        ("kd", 2, ["backbone", "teacher", "adapt"]),
        ("kd", 3, ["backbone"]),
    ],
)
def test_phases(mode, iteration, ran, monkeypatch):
    """warmup_iters is 2, aux_loss_iters 3: iterations count from 0."""
    model = enc_host(mode=mode)
    calls = spy(model, monkeypatch)
    losses = losses_of(model, iteration)
    assert calls == ran
    assert (losses[DIS] == 0) == ("adapt" not in ran)
    assert losses.keys() == losses_of(model, 2).keys()
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_reconstruction_alone_leaves_the_backbone_out(monkeypatch):
    """Table 2: no pass over the images, no adaption net, the backbone frozen for optimizer and DDP."""
    model = enc_host(weight_det=0.0, weight_dis=0.0)
    calls = []
    model.backbone.bottom_up.register_forward_hook(lambda *_: calls.append("backbone"))
    losses = losses_of(model, 5)
    assert set(losses) == {"labelenc/loss_cls", "labelenc/loss_box_reg"} and not calls and model.label_enc.adapt is None
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert touched(model, sum(losses.values())) == {"encoder", "head"}
    full = losses_of(enc_host(), 5)
    assert all(torch.equal(full[name], loss) for name, loss in losses.items())
    assert model.loss_normalizer == 0.9 * 100 + 0.1 * 73  # positive anchors, which a first pass has not counted


def test_switches_of_the_distance():
    """dist_norm, dist_reduction, adapt_convs, adapt_shared: by hand from the model's own maps."""
    model = enc_host(mode="step2", dist_norm="c", dist_reduction="sum", adapt_shared=False, adapt_convs=1)
    kernels = [p for p in model.label_enc.adapt.parameters() if p.dim() == 4]
    assert len(kernels) == 5  # one convolution for each level
    with torch.no_grad():
        for kernel in kernels:
            kernel.normal_(std=0.1)
    got = losses_of(model, 0)[DIS]
    images = model.preprocess_image(make_batch())
    with torch.no_grad():
        features = model.backbone(images.tensor)
        encoded = model.label_enc.encode([x["instances"] for x in make_batch()], images.tensor.shape[-2:])
        adapted = model.label_enc.adapt(features)
        normal = [{k: F.layer_norm(v.movedim(1, 3), v.shape[1:2]) for k, v in m.items()} for m in (adapted, encoded)]
        expected = sum((normal[0][k] - normal[1][k]).square().sum() for k in encoded) / 2  # mean over the images
    torch.testing.assert_close(got, expected)


def test_weights_scale_their_terms():
    one, other = losses_of(enc_host(), 2), losses_of(enc_host(weight_rec=2.0, weight_det=3.0, weight_dis=0.5), 2)
    factors = {"loss_cls": 3, "loss_box_reg": 3, "labelenc/loss_cls": 2, "labelenc/loss_box_reg": 2, DIS: 0.5}
    assert factors.keys() == one.keys()
    for name, factor in factors.items():
        torch.testing.assert_close(other[name], factor * one[name])
    without = enc_host(weight_dis=0.0)
    assert without.label_enc.adapt is None and DIS not in losses_of(without, 2)


class StepRecorder(SimpleTrainer):
    """SGD on one batch with the hook; keeps the adaption net's weights and the encoder's stem after each iteration."""

    def __init__(self, model, wrapped):
        # from the second step on, momentum moves what has had a gradient once
        params = get_default_optimizer_params(model, weight_decay=0.1)
        optimizer = torch.optim.SGD(params, lr=1e-4, momentum=0.9)
        super().__init__(wrapped, [make_batch() for _ in range(10)], optimizer)
        self.seen = []

    def after_step(self):
        super().after_step()
        model = getattr(self.model, "module", self.model)
        adapt = torch.cat([p.detach().flatten() for p in model.label_enc.adapt.parameters()])
        self.seen.append((adapt, model.label_enc.encoder.bottom_up.stem.weight.detach().clone()))


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    file = tmp_path_factory.mktemp("group") / "file"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("mode, moves", [("step1", [False, False, True, True]), ("step2", [True, True, True, False])])
@pytest.mark.parametrize("ddp", [False, True])
def test_adaption_net_rests_without_the_distance(mode, moves, ddp, process_group):
    """Bit for bit, weight decay and momentum notwithstanding, alone and under DDP, which misses no parameter."""
    model = enc_host(mode=mode)
    trainer = StepRecorder(model, DistributedDataParallel(model, broadcast_buffers=False) if ddp else model)
    trainer.register_hooks([ModelAfterBackward(model)])
    before = torch.cat([p.detach().flatten() for p in model.label_enc.adapt.parameters()])
    stem = model.label_enc.encoder.bottom_up.stem.weight.detach().clone()
    trained = {p for group in trainer.optimizer.param_groups for p in group["params"]}
    assert (model.label_enc.encoder.bottom_up.stem.weight in trained) == (mode == "step1")
    trainer.train(0, 4)
    adapts = [before] + [adapt for adapt, _ in trainer.seen]
    assert [not torch.equal(a, b) for a, b in zip(adapts, adapts[1:])] == moves
    assert torch.equal(stem, trainer.seen[-1][1]) == (mode == "step2")


def test_without_the_hook_weight_decay_moves_it(process_group):
    """What the hook is for."""
    model = enc_host()
    trainer = StepRecorder(model, DistributedDataParallel(model, broadcast_buffers=False))
    before = torch.cat([p.detach().flatten() for p in model.label_enc.adapt.parameters()])
    trainer.train(0, 1)
    assert not torch.equal(before, trainer.seen[0][0])
