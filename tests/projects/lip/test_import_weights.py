"""The importer of official LIP-ResNet checkpoints, on state dicts with their names and shapes."""

import pytest
import torch

from detectron2.config import instantiate
from projects.LIP.import_weights import convert_lip_resnet
from projects.LIP.resnet import lip_resnet
from shared.checkpoint import WeightsCheckpointer
from shared.classification import ImageClassifier
from shared.config import load_config
from tests.paths import ROOT
from tools import convert_lip_checkpoint

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def official(depth: int) -> dict[str, torch.Tensor]:
    """Names and shapes of the official file, written down from its layout; values are random."""
    shapes = {}

    def conv(name, c_out, c_in, k):
        shapes[f"{name}.weight"] = (c_out, c_in, k, k)

    def batch_norm(name, c):
        shapes.update({f"{name}.{k}": (c,) for k in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    def instance_norm(name, c):
        shapes.update({f"{name}.{k}": (c,) for k in ("weight", "bias")})

    conv("conv1", 64, 3, 7)
    batch_norm("bn1", 64)
    conv("maxpool.logit.conv", 64, 64, 3)
    instance_norm("maxpool.logit.bn", 64)
    c_in = 64
    for stage, blocks in enumerate(BLOCKS[depth]):
        width = 64 * 2**stage
        for j in range(blocks):
            block = f"layer{stage + 1}.{j}"
            pooled = stage > 0 and j == 0
            conv(f"{block}.conv1", width, c_in, 1)
            if pooled:
                for i, (c, k) in enumerate(((c_in, 1), (128, 3))):
                    conv(f"{block}.bottleneck_shared.logit.conv{i + 1}", 128, c, k)
                    instance_norm(f"{block}.bottleneck_shared.logit.bn{i + 1}", 128)
                for head, c in (("conv2.0", width), ("downsample.lip", c_in)):
                    conv(f"{block}.{head}.postprocessing.conv", c, 128, 1)
                    instance_norm(f"{block}.{head}.postprocessing.bn", c)
                conv(f"{block}.conv2.1", width, width, 1)
            else:
                conv(f"{block}.conv2", width, width, 3)
            conv(f"{block}.conv3", 4 * width, width, 1)
            for i, c in enumerate((width, width, 4 * width)):
                batch_norm(f"{block}.bn{i + 1}", c)
            if j == 0:
                conv(f"{block}.downsample.conv", 4 * width, c_in, 1)
                batch_norm(f"{block}.downsample.bn", 4 * width)
            c_in = 4 * width
    shapes["fc.weight"], shapes["fc.bias"] = (1000, 2048), (1000,)
    rng = torch.Generator().manual_seed(depth)
    return {k: torch.randn(s, generator=rng) if s else torch.tensor(7) for k, s in shapes.items()}


@pytest.fixture(scope="module")
def official_50():
    return official(50)


def classifier(depth: int) -> ImageClassifier:
    backbone = lip_resnet(depth, norm="BN", out_features=["res5"])
    return ImageClassifier(backbone=backbone, num_classes=1000, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)


@pytest.mark.parametrize("depth, entries", [(50, 359), (101, 359 + 17 * 18)])
def test_loads_strictly(depth, entries):
    """359 entries of ResNet-50; 17 more blocks of three convolutions and three batch norms in ResNet-101."""
    state_dict = official(depth)
    assert len(state_dict) == entries
    with torch.device("meta"):
        model = classifier(depth)
    model.load_state_dict(convert_lip_resnet(state_dict), strict=True, assign=True)


def test_every_part_goes_to_its_place(official_50):
    converted = convert_lip_resnet(official_50)
    assert len(converted) == len(official_50)
    for old, new in {
        "bn1.running_var": "backbone.stem.conv1.norm.running_var",
        "maxpool.logit.conv.weight": "backbone.stem.pool.logit.weight",
        "maxpool.logit.bn.bias": "backbone.stem.pool.logit.norm.bias",
        "layer1.0.downsample.conv.weight": "backbone.res2.0.shortcut.weight",
        "layer1.0.downsample.bn.weight": "backbone.res2.0.shortcut.norm.weight",
        "layer2.0.bottleneck_shared.logit.conv2.weight": "backbone.res3.0.logit_trunk.conv2.weight",
        "layer2.0.bottleneck_shared.logit.bn1.weight": "backbone.res3.0.logit_trunk.conv1.norm.weight",
        "layer3.0.conv2.0.postprocessing.conv.weight": "backbone.res4.0.main_pool.logit.weight",
        "layer3.0.conv2.0.postprocessing.bn.weight": "backbone.res4.0.main_pool.logit.norm.weight",
        "layer3.0.conv2.1.weight": "backbone.res4.0.conv2.weight",
        "layer3.0.bn2.weight": "backbone.res4.0.conv2.norm.weight",
        "layer4.0.downsample.lip.postprocessing.conv.weight": "backbone.res5.0.shortcut_pool.logit.weight",
        "layer4.0.downsample.lip.postprocessing.bn.bias": "backbone.res5.0.shortcut_pool.logit.norm.bias",
        "layer4.0.downsample.conv.weight": "backbone.res5.0.shortcut.weight",
        "layer4.2.conv2.weight": "backbone.res5.2.conv2.weight",
        "fc.bias": "fc.bias",
    }.items():
        assert torch.equal(converted[new], official_50[old]), new


def test_tool_writes_what_a_detector_starts_from(tmp_path, official_50, capsys):
    source, target = tmp_path / "official.pth", tmp_path / "ours.pth"
    torch.save(official_50, source)
    convert_lip_checkpoint.main(["--input", str(source), "--output", str(target)])
    assert "359 entries" in capsys.readouterr().out
    cfg = load_config(str(ROOT / "projects/LIP/configs/faster_rcnn_lip_r50_fpn_1x.py"))
    model = instantiate(cfg.model)
    checkpointer = WeightsCheckpointer(model)
    checkpointer.load(str(target), checkpointables=[])
    _, missing, unexpected, wrong = checkpointer.report
    assert wrong == [] and unexpected == []
    assert missing and not [key for key in missing if key.startswith("backbone.bottom_up.")]
    bottom_up = model.backbone.bottom_up
    assert torch.equal(bottom_up.stem.pool.logit.weight, official_50["maxpool.logit.conv.weight"])
    norm = bottom_up.res5[2].conv3.norm  # frozen: statistics as in the file
    for name in ("running_mean", "running_var"):
        assert torch.equal(getattr(norm, name), official_50[f"layer4.2.bn3.{name}"])


def test_refusals(tmp_path, official_50, capsys):
    plain = {k: v for k, v in official_50.items() if "logit" not in k}
    with pytest.raises(ValueError, match="no official LIP-ResNet checkpoint: it has no entry 'maxpool.logit"):
        convert_lip_resnet(plain)
    with pytest.raises(ValueError, match="No official LIP-ResNet has an entry 'attention.weight'"):
        convert_lip_resnet({**official_50, "attention.weight": torch.zeros(1)})
    source = tmp_path / "plain.pth"
    torch.save({"fc.weight": torch.zeros(1)}, source)
    for given, wanted, message in (
        (source, "out.pth", "no official LIP-ResNet checkpoint"),
        (tmp_path / "none.pth", "out.pth", "does not exist"),
        (source, "out.pkl", "must end in .pth"),
        (source, "plain.pth", "exists already"),
    ):
        with pytest.raises(SystemExit) as stop:
            convert_lip_checkpoint.main(["--input", str(given), "--output", str(tmp_path / wanted)])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
