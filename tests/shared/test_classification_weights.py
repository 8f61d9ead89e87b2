"""A classifier's backbone and torchvision's ResNets in detectors: every entry, the same features."""

import logging

import pytest
import torch
import torchvision
from torch import nn

from detectron2.config import LazyConfig, instantiate
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from shared.checkpoint import WeightsCheckpointer
from shared.classification import ImageClassifier, cifar_resnet
from shared.classification.weights import fit_backbone, torchvision_to_detectron2
from tests.paths import ROOT

PIXELS = {"pixel_mean": [0.0] * 3, "pixel_std": [1.0] * 3}


def randomise(model: nn.Module) -> nn.Module:
    """Statistics of batch norm that a test can tell apart."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return model.eval()


def resnet(depth: int, norm: str, **kwargs) -> ResNet:
    bottleneck = {} if depth < 50 else {"stride_in_1x1": kwargs.pop("stride_in_1x1", False)}
    stages = ResNet.make_default_stages(depth, norm=norm, **bottleneck)
    return ResNet(BasicStem(norm=norm), stages, out_features=["res2", "res3", "res4", "res5"], **kwargs)


class TinyDetector(nn.Module):
    """What matters of a detector: a pyramid around a backbone, and a head."""

    def __init__(self, bottom_up, in_features=("res3", "res4")):
        super().__init__()
        self.backbone = FPN(bottom_up, list(in_features), 8)
        self.head = nn.Linear(8, 2)


def load(content: dict, model: nn.Module, tmp_path) -> WeightsCheckpointer:
    torch.save(content, tmp_path / "w.pth")
    checkpointer = WeightsCheckpointer(model)
    checkpointer.load(str(tmp_path / "w.pth"))
    return checkpointer


def assert_same_weights(bottom_up: nn.Module, backbone: nn.Module):
    ours, theirs = bottom_up.state_dict(), backbone.state_dict()
    assert len(ours) > 30 and set(ours) == {k for k in theirs if not k.endswith("num_batches_tracked")}
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


def test_classifier_to_detector_with_frozen_norms(tmp_path):
    classifier = ImageClassifier(backbone=randomise(resnet(18, "BN")), num_classes=5, **PIXELS)
    detector = TinyDetector(resnet(18, "FrozenBN"))
    checkpointer = load({"model": classifier.state_dict(), "iteration": 9}, detector, tmp_path)
    assert_same_weights(detector.backbone.bottom_up, classifier.backbone)
    # 20 convolutions, each with weight and the norm's four: 100 entries
    text = checkpointer.describe()
    assert text.startswith("a classifier: 100 of 100 backbone entries matched (backbone.bottom_up.*), its head is ")
    assert "unused (fc.weight, fc.bias); 100 of the model's 110 entries matched; 10 not in the file" in text
    assert "in the file only" not in text
    checkpointer.require("w.pth", every=False)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = classifier.double().backbone(x)
    for name, value in detector.double().backbone.bottom_up(x).items():
        torch.testing.assert_close(value, expected[name])


def test_any_backbone_goes_by_prefix(tmp_path):
    classifier = ImageClassifier(backbone=randomise(cifar_resnet(8)), num_classes=2, **PIXELS)
    detector = TinyDetector(cifar_resnet(8, norm="FrozenBN", out_features=["res3", "res4"]))
    text = load({"model": classifier.state_dict()}, detector, tmp_path).describe()
    assert_same_weights(detector.backbone.bottom_up, classifier.backbone)
    assert text.startswith("a classifier: 35 of 35 backbone entries")  # 7 convolutions, shortcuts have none


def test_a_real_detector(tmp_path):
    cfg = LazyConfig.load(str(ROOT / "tests/tiny/faster_rcnn.py")).model
    bottom_up = cfg.backbone.bottom_up
    bottom_up.stem.norm = bottom_up.stages.norm = "BN"
    classifier = ImageClassifier(backbone=randomise(instantiate(bottom_up)), num_classes=5, **PIXELS)
    bottom_up.stem.norm = bottom_up.stages.norm = "FrozenBN"
    detector = instantiate(cfg)
    text = load({"model": classifier.state_dict()}, detector, tmp_path).describe()
    assert_same_weights(detector.backbone.bottom_up, classifier.backbone)
    assert text.startswith("a classifier: 100 of 100 backbone entries")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in detector.backbone.bottom_up.modules())
    assert any(isinstance(m, FrozenBatchNorm2d) for m in detector.backbone.bottom_up.modules())


def test_parts_that_only_the_detector_has_are_named(tmp_path):
    classifier = ImageClassifier(backbone=cifar_resnet(8), num_classes=2, **PIXELS)
    detector = TinyDetector(cifar_resnet(14, norm="FrozenBN", out_features=["res3", "res4"]))
    text = load({"model": classifier.state_dict()}, detector, tmp_path).describe()
    # 13 convolutions of which 7 are there
    assert text.startswith(
        "a classifier: 35 of 65 backbone entries matched (backbone.bottom_up.*), not in it: "
        "backbone.bottom_up.res2.1.conv1.weight, backbone.bottom_up.res2.1.conv1.norm.weight, "
    )


def test_classifier_to_classifier_of_other_classes(tmp_path):
    one = ImageClassifier(backbone=randomise(cifar_resnet(8)), num_classes=2, **PIXELS)
    same = ImageClassifier(backbone=cifar_resnet(8), num_classes=2, **PIXELS)
    checkpointer = load({"model": one.state_dict()}, same, tmp_path)
    checkpointer.require("w.pth", every=True)
    assert torch.equal(same.fc.weight, one.fc.weight) and "head is unused" not in checkpointer.describe()
    other = ImageClassifier(backbone=cifar_resnet(8), num_classes=3, **PIXELS)
    text = load({"model": one.state_dict()}, other, tmp_path).describe()
    assert torch.equal(other.backbone.stem.conv1.weight, one.backbone.stem.conv1.weight)
    assert "2 of another shape (fc.weight, fc.bias)" in text


def test_extra_parts_of_a_classifier_are_its_head():
    classifier = ImageClassifier(backbone=cifar_resnet(8), num_classes=2, **PIXELS)
    state = {**classifier.state_dict(), "transport.conv.weight": torch.zeros(1)}
    assert fit_backbone(state, TinyDetector(cifar_resnet(8, out_features=["res3", "res4"]))).unused == [
        "fc.weight",
        "fc.bias",
        "transport.conv.weight",
    ]


def test_other_files_are_left_alone():
    detector = TinyDetector(cifar_resnet(8, out_features=["res3", "res4"]))
    assert fit_backbone(detector.state_dict(), detector) is None
    assert fit_backbone({"conv1_w": 1, "fc.weight": 2, "fc.bias": 3}, detector) is None
    # a relative of torchvision's ResNet has other names too
    relative = {**torchvision.models.resnet18(weights=None).state_dict(), "layer1.0.se.fc1.weight": 1}
    assert fit_backbone(relative, TinyDetector(resnet(18, "BN"))) is None
    assert fit_backbone({"backbone.x": 1, "fc.weight": 2, "fc.bias": 3}, detector) is None


# ---------------------------------------------------------------- torchvision
@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_resnet_gives_the_same_features(depth, tmp_path):
    torch.manual_seed(1)
    theirs = randomise(getattr(torchvision.models, f"resnet{depth}")(weights=None, num_classes=7))
    detector = TinyDetector(resnet(depth, "FrozenBN"), ["res2", "res3", "res4", "res5"]).eval()
    checkpointer = load(theirs.state_dict(), detector, tmp_path)
    count = {18: 100, 50: 265}[depth]  # 20 and 53 convolutions, with weight and the norm's four
    assert checkpointer.describe().startswith(
        f"a torchvision ResNet: {count} of {count} backbone entries matched (backbone.bottom_up.*), its head is unused"
    )
    theirs, detector = theirs.double(), detector.double()
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    features = detector.backbone.bottom_up(x)
    y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    for name, stage in zip(
        ("res2", "res3", "res4", "res5"), (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4)
    ):
        y = stage(y)
        torch.testing.assert_close(features[name], y, atol=1e-10, rtol=1e-10)


def test_torchvision_head_becomes_the_classifiers(tmp_path):
    theirs = randomise(torchvision.models.resnet18(weights=None, num_classes=7))
    model = ImageClassifier(backbone=resnet(18, "BN"), num_classes=7, **PIXELS).eval()
    checkpointer = load(theirs.state_dict(), model, tmp_path)
    checkpointer.require("w.pth", every=True)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.classify(x), theirs(x), atol=1e-5, rtol=1e-5)
    assert model.backbone.stem.conv1.norm.num_batches_tracked is not None


def test_torchvision_names():
    names = ["bn1.bias", "layer1.0.downsample.0.weight", "layer2.1.downsample.1.running_var", "layer4.2.conv3.weight"]
    assert list(torchvision_to_detectron2(dict.fromkeys([*names, "fc.bias", "layer3.5.bn2.weight"]))) == [
        "stem.conv1.norm.bias",
        "res2.0.shortcut.weight",
        "res3.1.shortcut.norm.running_var",
        "res5.2.conv3.weight",
        "fc.bias",
        "res4.5.conv2.norm.weight",
    ]


def test_wrong_strides_are_said(caplog):
    theirs = torchvision.models.resnet50(weights=None).state_dict()
    with caplog.at_level(logging.WARNING):
        fit_backbone(theirs, resnet(50, "FrozenBN"))
        assert not caplog.records
        fit_backbone(theirs, resnet(50, "FrozenBN", stride_in_1x1=True))
    assert "set stride_in_1x1=False" in caplog.text
