"""Combinations in runs: from the command line, saved, loaded again, evaluated, resumed."""

import functools
import json

import pytest

import train_net
from projects.combine import combine_config
from shared.config import load_config
from tests.paths import ROOT
from tests.scenes import own_data_flags
from tests.test_train_net import LAZY, YAML, fails, read_metrics

SMALL = [
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "train.checkpointer.period=1",
    "train.log_period=1",
]


def test_from_the_command_line(tmp_path):
    """Trained with two methods, evaluated from the run's own config.yaml, resumed by the first command."""
    run, other = tmp_path / "run", tmp_path / "other"
    flags = own_data_flags(tmp_path)
    methods = ["--with", "depla_fpn", "internet"]
    command = ["--config-file", LAZY, *flags, *methods, "model.backbone.depla.temperature=0.25", "train.max_iter=2"]
    train_net.cli([*command, f"train.output_dir={run}"])
    cfg = load_config(str(run / "config.yaml"))
    assert cfg.model.backbone.depla.temperature == 0.25  # the override met the new key
    assert cfg.model.roi_heads.num_classes == 3  # own data still set it
    results = json.loads((run / "inference/results.json").read_text())
    weights = [f"train.init_checkpoint={run}/model_final.pth"]
    train_net.cli(["--config-file", str(run / "config.yaml"), "--eval-only", f"train.output_dir={other}", *weights])
    assert json.loads((other / "inference/results.json").read_text()) == results
    train_net.cli([*command, "--resume", "train.max_iter=3", f"train.output_dir={run}"])
    rows = [row for row in read_metrics(run) if "total_loss" in row]
    assert {row["iteration"] for row in rows} == {0, 1, 2} and "loss_inter" in rows[0]


def test_several_methods_in_a_resnet_survive_a_saved_config(tmp_path):
    """LIP and MSFM in one, MuSu as the head: the run's config.yaml trains on."""
    config = str(ROOT / "configs/combined/retinanet_quick.py")
    flags, run = own_data_flags(tmp_path), tmp_path / "run"
    resize = [f"dataloader.{part}.mapper.augmentations.0.short_edge_length=64" for part in ("train", "test")]
    resize[0] = resize[0].replace("=64", "=[64]")
    command = ["--config-file", config, *flags, *SMALL, *resize, "--with", "lip", "labelenc"]
    train_net.cli([*command, "train.max_iter=1", f"train.output_dir={run}"])
    saved = load_config(str(run / "config.yaml"))
    assert {"lip", "msfm", "base"} <= set(saved.model.backbone.bottom_up)
    train_net.cli(["--config-file", str(run / "config.yaml"), "--resume", "train.max_iter=2"])
    rows = [row for row in read_metrics(run) if "total_loss" in row]
    assert [row["iteration"] for row in rows] == [0, 1]
    assert {"loss_musu_cls", "labelenc/loss_musu_cls", "labelenc/loss_dis"} <= set(rows[-1])
    train_net.cli(
        ["--config-file", str(run / "config.yaml"), "--eval-only", f"train.init_checkpoint={run}/model_final.pth"]
    )


def test_weights_of_a_backbone_that_is_replaced_are_left_out(caplog):
    config, weights = str(ROOT / "configs/baselines/faster_rcnn_r50_fpn_1x.py"), "train.init_checkpoint=dense.pth"
    for names, opts, wanted in (
        (["se_resnet", "internet"], [], "detectron2://ImageNetPretrained/MSRA/R-50.pkl"),
        (["internet", "lip_densenet"], [], ""),
        (["fishnet"], [weights], "dense.pth"),
    ):
        caplog.clear()
        change = functools.partial(combine_config, names=names, file=config)
        assert load_config(config, opts, change=change).train.init_checkpoint == wanted
        assert ("is left out, as" in caplog.text) == ("se_resnet" not in names)
    assert f"R-50.pkl of {config} is left out, as fishnet replaces the backbone" in caplog.text
    caplog.clear()
    combine_config(load_config(LAZY), ["fishnet"], LAZY)  # starts at random by itself
    assert not caplog.text


def test_dry_run(tmp_path, capsys):
    train_net.cli(["--config-file", LAZY, *own_data_flags(tmp_path), "--with", "labelenc", "--dry-run"])
    assert "labelenc/loss_cls" in capsys.readouterr().out


def test_where_the_flag_stands_does_not_matter(tmp_path, capsys):
    flags = own_data_flags(tmp_path)
    for words in (
        ["--config-file", LAZY, "--with", "depla_fpn", "train.max_iter=7", *flags, "--dry-run"],
        ["train.max_iter=7", "--with", "depla_fpn", *flags, "--dry-run", "--config-file", LAZY],
        ["--with", "depla_fpn", *flags, "--config-file", LAZY, "--dry-run", "train.max_iter=7"],
    ):
        args = train_net.setup.parse_arguments(words)
        assert (args.methods, args.opts) == (["depla_fpn"], ["train.max_iter=7"])
    args = train_net.setup.parse_arguments(["--with", "lip", "--config-file", LAZY, "--with", "msfm", "a=1", "b=2"])
    assert (args.methods, args.opts) == (["lip", "msfm"], ["a=1", "b=2"])
    args = train_net.setup.parse_arguments(
        ["a=1", "--with", "lip", "msfm", "a=2", "--resume", "--with=depla_fpn", "a=3"]
    )
    assert (args.methods, args.opts, args.resume) == (["lip", "msfm", "depla_fpn"], ["a=1", "a=2", "a=3"], True)


@pytest.mark.parametrize(
    "config, methods, sentence",
    [
        (LAZY, ["depla_fnp"], "There is no method 'depla_fnp'; did you mean depla_fpn, depla_fishnet or depla?"),
        (LAZY, ["musu", "internet"], "InterNet stands in the RoI heads of an R-CNN, and MuSu has none"),
        (LAZY, ["msfm"], "BasicBlock is no bottleneck block: take a ResNet of depth 50 or more."),
        (YAML, ["msfm"], "--with combines methods in LazyConfigs, and"),
    ],
)
def test_refusals(config, methods, sentence, capsys):
    assert sentence in fails(capsys, "--config-file", config, "--with", *methods)


def test_a_run_is_not_combined_twice(tmp_path, capsys):
    run = tmp_path / "run"
    command = ["--config-file", LAZY, *own_data_flags(tmp_path), "--with", "depla_fpn"]
    train_net.cli([*command, "train.max_iter=1", f"train.output_dir={run}"])
    message = fails(capsys, "--config-file", run / "config.yaml", "--with", "depla_fpn", "--resume")
    assert "The model has DEPLA in its FPN already." in message
