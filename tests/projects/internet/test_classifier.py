"""Stages of a classifier aligned by transport: the loss is ScaleOT's, inference the plain classifier's."""

import pytest
import torch

from detectron2.config import instantiate
from projects.InterNet import ScaleOT, StageAlignedClassifier
from shared.classification import ImageClassifier, cifar_resnet
from shared.config import load_config
from shared.training_only import training_only_prefixes
from tests.paths import ROOT

CONFIGS = sorted(p.name for p in (ROOT / "projects/InterNet/configs").glob("*resnet*_*.py") if "fpn" not in p.name)


def make_model(**transport):
    torch.manual_seed(0)
    backbone = cifar_resnet(depth=8, out_features=["res2", "res3", "res4"])
    transport = ScaleOT(**{"channels": [16, 32, 64], "num_levels": 3, "weight": 0.1, "first_level": 1, **transport})
    arguments = dict(backbone=backbone, num_classes=4, pixel_mean=[100.0] * 3, pixel_std=[50.0] * 3)
    return StageAlignedClassifier(transport=transport, **arguments), arguments


def make_batch():
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (3, 3, 16, 12), generator=rng, dtype=torch.uint8)
    return [{"image": image, "label": i} for i, image in enumerate(images)]


@pytest.mark.parametrize("loss", ["ot", "ot_debiased", "l2", "kl"])
def test_loss_is_the_transport_of_the_stages(loss):
    model, _ = make_model(loss=loss)
    model.train()
    batch = make_batch()
    losses = model(batch)
    maps = list(model.backbone(model.preprocess_image(batch)).values())
    expected = model.transport(maps, [(16, 12)] * 3, [1, 2, 4], "none")[1]["loss_ot"]
    torch.testing.assert_close(losses["loss_ot"], expected)
    losses["loss_ot"].backward()
    assert next(model.backbone.stem.parameters()).grad.abs().sum() > 0 and model.fc.weight.grad is None


def test_inference_is_the_plain_classifiers():
    model, arguments = make_model()
    assert training_only_prefixes(model) == ["transport."]
    plain = ImageClassifier(**arguments)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("transport.")})
    with torch.no_grad():
        ours, theirs = model.eval()(make_batch()), plain.eval()(make_batch())
    assert all(torch.equal(a["scores"], b["scores"]) for a, b in zip(ours, theirs))


def test_levels_must_be_the_backbones_outputs():
    with pytest.raises(ValueError, match="outputs are res2, res3, res4, but transport has num_levels 2"):
        make_model(channels=[16, 32], num_levels=2)


@pytest.mark.parametrize("config", CONFIGS)
def test_configs_train_a_step(config):
    model = instantiate(load_config(str(ROOT / "projects/InterNet/configs" / config)).model).train()
    batch = [{**x, "image": x["image"].repeat(1, 2, 3)[:, :32, :32]} for x in make_batch()]
    losses = model(batch)
    assert set(losses) == {"loss_cls", "loss_ot"}
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
