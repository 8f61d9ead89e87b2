"""tools/label_features.py: pictures, and the numbers in them by other ways."""

import json

import pytest
import torch
from PIL import Image

import train_net
from detectron2.config import instantiate
from shared.config import load_config
from shared.ops import render_label_maps
from shared.training.run import make_run
from tests.paths import ROOT
from tests.scenes import own_data_flags
from tools import label_features, strip_checkpoint
from tools.labelenc_weights import main as weights_main

TINY = ROOT / "tests/tiny"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    flags = ["--config-file", str(TINY / "labelenc_step1.py"), *own_data_flags(folder)]
    train_net.cli([*flags, f"train.output_dir={folder}/run", "train.max_iter=2"])
    return folder / "run"


def command(run, output, *more, weights="model_final.pth"):
    flags = ["--config-file", str(run / "config.yaml"), "--weights", str(run / weights), "--output", str(output)]
    label_features.main([*flags, *more])


def test_command(run, tmp_path, capsys):
    command(run, tmp_path / "out", "--limit", "3")
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    pictures = [f"{i:03d}.{kind}.png" for i in range(3) for kind in ("features", "labels")]
    assert names == [*pictures, "label_features.json"]
    assert Image.open(tmp_path / "out/000.features.png").size == (4 * 3 * 100, 3 * 260)  # four columns, three levels
    rows = json.loads((tmp_path / "out/label_features.json").read_text())
    assert len(rows) == 3 and all(row["objects"] == 2 and list(row["distance"]) == ["p3", "p4", "p5"] for row in rows)
    assert all(0 <= v <= 4 for row in rows for v in row["distance"].values())
    assert f"3 image(s); distance of each level, 0 equal, 2 unrelated: {tmp_path}/out" in capsys.readouterr().out


def test_views_show_the_maps_and_their_distance(run):
    cfg = load_config(str(run / "config.yaml"))
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    record = next(label_features.records(make_run(cfg), 1))
    record["image"] = record["image"][:, :40]  # the padding below it is not shown
    view = label_features.look(model, record, rgb=False)
    assert view.image.shape == (40, 64, 3)
    assert (view.image[..., 0] == record["image"][2].numpy()).all()  # BGR to RGB
    # without the intensities that step 1 multiplies with
    maps, present = render_label_maps([view.boxes], [view.classes], (64, 64), num_classes=3)
    assert view.labels.shape == (3, 40, 64) and torch.equal(view.labels[present], maps[0, :, :40])
    assert view.labels.max() > 0.5
    with torch.no_grad():
        images = model.preprocess_image([record])
        encoded = model.label_enc.encode([record["instances"]], (64, 64))["p3"]
        adapted = model.label_enc.adapt(model.backbone(images.tensor))["p3"]
    x, y = ((z - z.mean()) / (z.var(unbiased=False) + 1e-5).sqrt() for z in (adapted, encoded))
    level = view.levels["p3"]
    assert level.distance == pytest.approx((x - y).square().mean().item(), rel=1e-4)
    torch.testing.assert_close(level.difference, (x - y)[0].square().mean(dim=0)[:5])  # 40 of 64 px: 5 of 8 rows
    torch.testing.assert_close(level.encoder, y[0].abs().mean(dim=0)[:5])
    assert {k: tuple(v.encoder.shape) for k, v in view.levels.items()} == {"p3": (5, 8), "p4": (3, 4), "p5": (2, 2)}


def test_normalisation_per_position():
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    y = label_features.normalise(x, "c")
    torch.testing.assert_close(y.mean(dim=1), torch.zeros(2, 3, 4, dtype=torch.float64))
    assert not torch.allclose(y, label_features.normalise(x, "chw"))


def test_colours_of_the_strongest_class():
    labels = torch.zeros(3, 1, 3)
    labels[0, 0, 0], labels[2, 0, 0], labels[2, 0, 1] = 0.5, 0.8, 1.0
    colours = label_features.colours_of(labels)
    third = label_features.COLOURS(2)[:3]
    assert colours[0, 0] == pytest.approx([0.8 * c for c in third], rel=1e-6)
    assert colours[0, 1] == pytest.approx(third) and (colours[0, 2] == 0).all()


def fails(capsys, main, *arguments):
    with pytest.raises(SystemExit) as e:
        main(*arguments)
    assert e.value.code == 2
    return capsys.readouterr().err


def test_bad_input(run, tmp_path, capsys):
    assert "--limit must be at least 1" in fails(capsys, command, run, tmp_path / "a", "--limit", "0")
    small = tmp_path / "small.pth"
    strip_checkpoint.main(
        ["--config-file", f"{run}/config.yaml", "--weights", f"{run}/model_final.pth", "--output", str(small)]
    )
    message = fails(capsys, lambda: command(run, tmp_path / "b", weights=str(small)))
    assert "label_enc.encoder." in message and "not in the file" in message
    rec_only = ["model.label_enc.mode=step2", "+model.label_enc.weight_dis=0.0"]
    torch.save({"model": torch.load(small, weights_only=True)["model"]}, tmp_path / "plain.pth")
    message = fails(capsys, lambda: command(run, tmp_path / "c", *rec_only, weights=str(tmp_path / "plain.pth")))
    assert "has no label encoder and adaption net" in message


def weights(*arguments):
    weights_main([str(a) for a in arguments])


def test_export_and_merge(run, tmp_path, capsys):
    """tools/labelenc_weights.py: the encoder and the head, then the whole start of step 2."""
    config, final = run / "config.yaml", run / "model_final.pth"
    export = ["export", "--config-file", config, "--weights", final]
    weights(*export, "--output", tmp_path / "encoder.pth")
    state = torch.load(final, weights_only=True)["model"]
    content = torch.load(tmp_path / "encoder.pth", weights_only=True)
    assert {f"label_enc.encoder.{k}" for k in content["encoder"]} == {k for k in state if ".encoder." in k}
    assert all(torch.equal(v, state[k]) for k, v in content["head"].items()) and len(content["head"]) == 8
    assert f"head 8 entries, {sum(v.numel() for v in content['head'].values()):,} numbers" in capsys.readouterr().out
    second = ["model.label_enc.mode=step2", f"model.label_enc.step1_weights={tmp_path}/encoder.pth"]
    torch.save({"model": {k: v + 1 for k, v in state.items() if "bottom_up.res" in k}}, tmp_path / "imagenet.pth")
    merge = ["merge", "--config-file", config, "--weights", tmp_path / "imagenet.pth"]
    weights(*merge, "--output", tmp_path / "start.pth", *second)
    merged = torch.load(tmp_path / "start.pth", weights_only=True)["model"]
    body = [k for k in state if "backbone.bottom_up.res" in k]
    assert body and all(torch.equal(merged[k], state[k] + 1) for k in body)
    assert torch.equal(merged["head.cls_score.weight"], state["head.cls_score.weight"])
    own = torch.equal(merged["backbone.fpn_output3.weight"], content["encoder"]["fpn_output3.weight"])
    assert own and not torch.equal(merged["backbone.fpn_output3.weight"], state["backbone.fpn_output3.weight"])
    assert "export needs a config with mode step1" in fails(
        capsys, weights, *export, "--output", f"{tmp_path}/x.pth", *second
    )
    assert "must end in .pth" in fails(capsys, weights, *export, "--output", f"{tmp_path}/x")
    plain = ["export", "--config-file", TINY / "retinanet.py", "--weights", final, "--output", f"{tmp_path}/x.pth"]
    assert "has no LabelEnc" in fails(capsys, weights, *plain)
    assert "exists already" in fails(capsys, weights, *export, "--output", tmp_path / "encoder.pth")
