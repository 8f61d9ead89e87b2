"""tools/index.py: what its commands print."""

import json

import pytest

from shared.results_index import report, tables
from shared.results_index.entries import load_papers
from tools import index


def run(capsys, *argv) -> str:
    index.main(list(argv))
    return capsys.readouterr().out


def fails(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as error:
        index.main(list(argv))
    assert error.value.code == 2
    return capsys.readouterr().err


def test_search(capsys):
    out = run(capsys, "search", "Table", "2d", "decay", "weight", "--limit", "2").splitlines()
    assert out[0] == "internet/table2d/decay: all history, decay weight" and len(out) == 6
    assert out[1].strip() == "projects/InterNet/configs/internet_r101_fpn_512_decay.py"
    assert out[2].strip() == "AP 39.2, AP50 60.6, AP75 45.4"
    assert "No row has any of the words 'zzz'" in fails(capsys, "search", "zzz")


def test_list(capsys):
    out = run(capsys, "list", "--paper", "MSFM", "--table", "table3")
    assert out.count("msfm/table3/") == 4 and out.splitlines()[-1] == "4 rows, 4 with a config."
    assert run(capsys, "list", "--config", "retinanet_step1_r101").count("labelenc/") == 2
    assert "no config (cited)" in run(capsys, "list", "--paper", "internet", "--table", "table5")
    assert "    figures not known\n" in run(capsys, "list", "--paper", "musu")
    assert "--paper yolo is none of depla, internet" in fails(capsys, "list", "--paper", "yolo")
    assert "--table table9 is none of table2" in fails(capsys, "list", "--paper", "msfm", "--table", "table9")
    assert "no row names such a config" in fails(capsys, "list", "--config", "nowhere")


def test_the_whole_index_as_json(capsys):
    rows = json.loads(run(capsys, "list", "--json"))
    assert len(rows) == sum(len(paper.entries) for paper in load_papers()) > 280
    (row,) = [r for r in rows if r["id"] == "lip/imagenet/lip_resnet50_b256"]
    assert row["config"] == "projects/LIP/configs/lip_resnet50_imagenet_90e.py"
    assert row["overrides"] == ["model.backbone.pooling.width=256"] and row["figures"] == {"paper": {"top1": "78.15"}}
    assert row["measured"]["parameters"] == 25_766_312 and row["here"] == "not trained"
    assert round(row["measured"]["with_norms_G"], 3) == 7.618


@pytest.mark.parametrize(
    "name, command",
    [
        (
            "lip/imagenet/lip_resnet50_b256",
            "python train_net.py --config-file projects/LIP/configs/lip_resnet50_imagenet_90e.py --num-gpus 8 "
            "model.backbone.pooling.width=256",
        ),
        (
            "lip/ours/average_1x1",  # brackets are the shell's, too
            "python train_net.py --config-file projects/LIP/configs/lip_resnet50_imagenet_90e.py --num-gpus 8 "
            "model.backbone.pooling.kind=average 'model.backbone.sites=[res3,res4,res5]'",
        ),
        (
            "labelenc/table6/r50_kd_r101",
            "python tools/labelenc_pipeline.py --step1 projects/LabelEnc/configs/retinanet_r101_fpn_1x.py "
            "--step2 projects/LabelEnc/configs/retinanet_kd_r50_from_r101.py "
            "--plain projects/LabelEnc/configs/retinanet_r50_fpn_1x.py --output runs/retinanet_kd_r50_from_r101 "
            "--num-gpus 8",
        ),
    ],
)
def test_show(capsys, name, command):
    out = run(capsys, "show", name)
    assert out.splitlines()[0].split() == ["id", name]
    assert out.splitlines()[-1].split(maxsplit=1) == ["train", command]


def test_show_of_another_test_set(capsys):
    """Trained with what evaluates it, as test-dev has no annotations."""
    train, evaluate = run(capsys, "show", "msfm/table6/test_dev").splitlines()[-2:]
    assert train.startswith("train ") and "test-dev" not in train
    assert evaluate.startswith("evaluate ") and evaluate.endswith(
        "--eval-only train.init_checkpoint=model_final.pth dataloader.test.dataset.names=coco_2017_test-dev"
    )


def test_show_names_the_nearest(capsys):
    assert "did you mean internet/table2d/decay" in fails(capsys, "show", "internet/table2d/decai")
    assert "train" not in run(capsys, "show", "internet/table4/yolov2")


def test_tables(capsys, monkeypatch, tmp_path):
    assert run(capsys, "tables", "--check") == "All tables are up to date.\n"
    monkeypatch.setattr(index, "ROOT", tmp_path)
    monkeypatch.setattr(report, "FILE", tmp_path / "index.md")
    assert "Out of date: index.md: run tools/index.py tables" in fails(capsys, "tables", "--check")
    assert not report.FILE.exists()
    assert run(capsys, "tables") == "Written: index.md.\n" and "Differences" in report.FILE.read_text()
    monkeypatch.setattr(tables, "NOT_TRAINED", "untrained")
    monkeypatch.setattr(index, "ROOT", index.ROOT.__class__("/"))
    err = fails(capsys, "tables", "--check")
    assert "projects/InterNet/README.md" in err and "projects/MuSu/README.md" in err
