"""The classifier by hand-computed values, and the CIFAR ResNet by the paper's counts."""

import math

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import Backbone, build_model
from shared.classification import ImageClassifier, cifar_resnet
from shared.classification.cifar_resnet import ZeroPadShortcut
from shared.config import get_collection_cfg
from tests.paths import ROOT


class Identity(Backbone):
    """The image itself as "half" times 0.5 and as "whole"."""

    def __init__(self, size_divisibility=0):
        super().__init__()
        self._out_features = ["half", "whole"]
        self._out_feature_channels = {"half": 2, "whole": 2}
        self._out_feature_strides = {"half": 1, "whole": 1}
        self._divisor = size_divisibility

    size_divisibility = property(lambda self: self._divisor)

    def forward(self, x):
        return {"half": x * 0.5, "whole": x}


def classifier(**kwargs):
    backbone = kwargs.pop("backbone", None) or Identity()
    model = ImageClassifier(backbone=backbone, num_classes=3, pixel_mean=[1.0, 2.0], pixel_std=[2.0, 4.0], **kwargs)
    model.fc.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    return model


def image(red, green):
    """(2, 2, 3) with these means of the channels."""
    offsets = torch.tensor([-1.0, 0.0, 1.0, 2.0, -2.0, 0.0]).view(2, 3)
    return torch.stack([red + offsets, green - offsets])


def test_scores_are_the_softmax_of_pooled_normalised_channels():
    # (3 - 1) / 2 = 1 and (10 - 2) / 4 = 2, the third class has weight 0: logits 1, 2, 0
    out = classifier().eval()([{"image": image(3.0, 10.0)}, {"image": image(5.0, 2.0)}])
    total = math.e + math.e**2 + 1
    torch.testing.assert_close(out[0]["scores"], torch.tensor([math.e / total, math.e**2 / total, 1 / total]))
    # logits 2, 0, 0
    assert [int(o["pred_class"]) for o in out] == [1, 0]
    half = classifier(in_feature="half").eval()([{"image": image(3.0, 10.0)}])[0]["scores"]
    torch.testing.assert_close(half, torch.tensor([0.5, 1.0, 0.0]).softmax(0))


def test_loss_of_indices_of_smoothed_and_of_mixed_labels():
    inputs = [{"image": image(3.0, 10.0), "label": 0}, {"image": image(5.0, 2.0), "label": 2}]
    # logsumexp(1, 2, 0) = 2.4076, logsumexp(2, 0, 0) = 2.2396
    first, second = math.log(math.e + math.e**2 + 1), math.log(math.e**2 + 2)
    expected = ((first - 1) + (second - 0)) / 2
    assert classifier()(inputs)["loss_cls"].item() == pytest.approx(expected, abs=1e-6)
    # a tenth of the label is spread over three classes: 0.9 of the plain loss, 0.1 of the mean over classes
    mean = ((first - 1) + (second - 2 / 3)) / 2
    smooth = classifier(label_smoothing=0.1)(inputs)["loss_cls"].item()
    assert smooth == pytest.approx(0.9 * expected + 0.1 * mean, abs=1e-6)
    mixed = [{**x, "label": torch.tensor(p)} for x, p in zip(inputs, ([0.25, 0.75, 0.0], [0.0, 0.0, 1.0]))]
    # first image: 0.25 (2.4076 - 1) + 0.75 (2.4076 - 2)
    assert classifier()(mixed)["loss_cls"].item() == pytest.approx((first - 1.75 + second) / 2, abs=1e-6)


def test_uint8_images_and_dropout():
    torch.manual_seed(0)
    model = classifier(dropout=0.5)
    inputs = [{"image": torch.full((2, 4, 4), 9, dtype=torch.uint8), "label": 1}]
    losses = {round(model(inputs)["loss_cls"].item(), 4) for _ in range(20)}
    assert len(losses) == 4  # either channel dropped or not
    model.eval()
    torch.testing.assert_close(model(inputs)[0]["scores"], classifier().eval()(inputs)[0]["scores"])


def test_head_starts_small():
    torch.manual_seed(0)
    model = ImageClassifier(backbone=cifar_resnet(8), num_classes=500, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not model.fc.bias.any()
    assert not any("pixel" in key for key in model.state_dict())


@pytest.mark.parametrize(
    "kwargs, sentence",
    [
        ({"in_feature": "res9"}, r"in_feature 'res9' is none of the backbone's outputs \(half, whole\)"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"num_classes": None}, "num_classes must be at least 1, got None"),
    ],
)
def test_bad_arguments(kwargs, sentence):
    kwargs = {"num_classes": 3, "backbone": Identity(), "pixel_mean": [0.0] * 2, "pixel_std": [1.0] * 2, **kwargs}
    with pytest.raises(ValueError, match=sentence):
        ImageClassifier(**kwargs)


def test_bad_images():
    with pytest.raises(ValueError, match=r"images of one size in a batch, got \[\(2, 3\), \(4, 3\)\]"):
        classifier()([{"image": torch.zeros(2, h, 3), "label": 0} for h in (4, 2)])
    with pytest.raises(ValueError, match="needs sides that 4 divides, got"):
        classifier(backbone=Identity(size_divisibility=4))([{"image": torch.zeros(2, 8, 6), "label": 0}])


# ---------------------------------------------------------------- both kinds of config
def test_yaml_and_lazy_build_the_same_model():
    lazy = LazyConfig.load(str(ROOT / "configs/classification/cifar10_resnet20.py")).model
    lazy.label_smoothing, lazy.dropout = 0.1, 0.2
    cfg = get_collection_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    cfg.MODEL.BACKBONE.NAME = "build_cifar_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.OUT_FEATURES = 20, "BN", ["res3", "res4"]
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 10
    cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING, cfg.MODEL.CLASSIFIER.DROPOUT = 0.1, 0.2
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(lazy.pixel_mean), list(lazy.pixel_std)
    torch.manual_seed(0)
    one = build_model(cfg)
    torch.manual_seed(0)
    two = instantiate(lazy)
    a, b = one.state_dict(), two.state_dict()
    assert list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)
    assert (one.in_feature, one.label_smoothing, one.dropout.p) == ("res4", 0.1, 0.2)
    assert (two.in_feature, two.label_smoothing, two.dropout.p) == ("res4", 0.1, 0.2)
    x = [{"image": torch.full((3, 32, 32), 100, dtype=torch.uint8)}]
    torch.testing.assert_close(one.eval()(x)[0]["scores"], two.eval()(x)[0]["scores"])


# ---------------------------------------------------------------- CIFAR ResNet
@pytest.mark.parametrize("depth, parameters", [(20, 269_722), (56, 853_018)])
def test_cifar_resnet_has_the_papers_size(depth, parameters):
    """0.27 M and 0.85 M in table 6, head included: 64 x 10 weights and 10 biases."""
    model = cifar_resnet(depth)
    assert sum(p.numel() for p in model.parameters()) + 650 == parameters
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == depth - 1  # and the linear layer; shortcuts have none


def test_cifar_resnet_multiply_adds_and_outputs():
    model = cifar_resnet(20, out_features=["res2", "res3", "res4"]).eval()
    x = torch.randn(2, 3, 32, 32)
    shapes = {k: tuple(v.shape) for k, v in model(x).items()}
    assert shapes == {"res2": (2, 16, 32, 32), "res3": (2, 32, 16, 16), "res4": (2, 64, 8, 8)}
    assert {k: (s.channels, s.stride) for k, s in model.output_shape().items()} == {
        "res2": (16, 1),
        "res3": (32, 2),
        "res4": (64, 4),
    }
    last = cifar_resnet(20).eval()
    flops = FlopCountAnalysis(last, x[:1]).unsupported_ops_warnings(False).by_operator()["conv"]
    # stem 27 x 16 x 1024; six convolutions 144 x 16 x 1024; 144 x 32 x 256 and five 288 x 32 x 256; the same at 64
    expected = 27 * 16 * 1024 + 6 * 144 * 16 * 1024 + 2 * (144 * 32 * 256 + 5 * 288 * 32 * 256)
    assert flops == expected


def test_shortcut_takes_every_other_cell_and_adds_zeros():
    x = torch.arange(2 * 9.0).view(1, 2, 3, 3)
    out = ZeroPadShortcut(new_channels=1, stride=2)(x)
    assert out.tolist() == [[[[0, 2], [6, 8]], [[9, 11], [15, 17]], [[0, 0], [0, 0]]]]


def test_cifar_resnet_refuses_other_depths():
    for depth in (2, 18, 21):
        with pytest.raises(ValueError, match=f"depth must be 6n . 2 .*, got {depth}"):
            cifar_resnet(depth)


def test_cifar_resnet_freezes():
    model = cifar_resnet(8, freeze_at=2)
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"res3", "res4"}
