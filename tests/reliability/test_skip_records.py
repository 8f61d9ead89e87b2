"""--skip-bad-records: bad records are left out, counted and named; what is left is what is trained and evaluated on."""

import json
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch
from PIL import Image

import train_net
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from shared.config import load_config
from shared.data import coco_sets
from shared.data.coco_sets import check_coco_set, leave_out_bad_pictures, register_coco_set, report_skipped
from shared.errors import UserError
from shared.training.run import make_run
from tests.paths import ROOT
from tests.reliability.bad_data import CASES
from tests.reliability.corpus import LAZY, YAML, Sandbox, save_png
from tests.scenes import make_coco, own_data_flags
from tools import predict

SKIPPABLE = [case for case in CASES if case.left_out]


@pytest.mark.parametrize("case", SKIPPABLE, ids=[case.name for case in SKIPPABLE])
def test_each_bad_record_is_left_out_and_counted(case, tmp_path):
    box = Sandbox(tmp_path, LAZY, tmp_path)
    case.damage(box)
    before = box.json_file().read_bytes()
    name = register_coco_set(str(box.json_file()), str(tmp_path / "train/images"), skip_bad_records=True)
    leave_out_bad_pictures([name])
    report_skipped([name], str(tmp_path))

    (content,) = json.loads((tmp_path / coco_sets.SKIPPED_FILE).read_text()).values()
    kinds = Counter(row["kind"] for row in content)
    assert kinds[case.left_out] == 1
    of_an_image = case.name.startswith(("image ", "picture "))
    unlinked = {"unknown image_id"} if "id" in case.left_out else set()  # annotations of an image without a valid id
    assert set(kinds) <= {case.left_out, coco_sets.LEFT_OUT} | unlinked
    records = DatasetCatalog.get(name)
    assert len(records) == 3 if of_an_image else 4
    if not of_an_image:
        assert sum(len(r["annotations"]) for r in records) == 7
    assert box.json_file().read_bytes() == before


def test_skippable_kinds_are_many():
    assert len(SKIPPABLE) >= 50


def damage(folder) -> None:
    """A bad record of each sort in both sets: a missing file, an unreadable picture, a box of no size."""
    for part in ("train", "val"):
        file = folder / part / "annotations.json"
        content = json.loads(file.read_text())
        content["images"].append({"id": 90, "file_name": "absent.png", "width": 64, "height": 64})
        content["annotations"].append({**content["annotations"][0], "id": 90, "image_id": 90})
        content["annotations"][-2]["bbox"] = [3, 3, 0, 0]
        file.write_text(json.dumps(content))
        picture = folder / part / "images/1.png"
        picture.write_bytes(picture.read_bytes()[:100])


@pytest.mark.parametrize("config", [LAZY, YAML], ids=["lazy", "yaml"])
def test_trains_and_evaluates_on_what_is_left(config, tmp_path, capsys):
    flags = own_data_flags(tmp_path)
    damage(tmp_path)
    run = tmp_path / "run"
    output = "train.output_dir" if config == LAZY else "OUTPUT_DIR"
    train_net.cli(["--config-file", config, *flags, "--skip-bad-records", f"{output}={run}"])

    skipped = json.loads((run / coco_sets.SKIPPED_FILE).read_text())
    assert sorted(skipped) == sorted(str(tmp_path / part / "annotations.json") for part in ("train", "val"))
    for rows in skipped.values():
        kinds = Counter(row["kind"] for row in rows)
        assert kinds == {"image file missing": 1, coco_sets.LEFT_OUT: 1, "box of no size": 1, "picture": 1}
    log = (run / "log.txt").read_text()
    assert "Left out 4 bad records of" in log and "images/1.png cannot be read" in log
    rows = json.loads((run / "inference/coco_instances_results.json").read_text())
    assert {row["image_id"] for row in rows} == {1, 3}  # of the validation set's images 1, 2, 3 and 90

    # the run's config.yaml alone evaluates the same set
    weights = "train.init_checkpoint" if config == LAZY else "MODEL.WEIGHTS"
    again = ["--config-file", str(run / "config.yaml"), "--eval-only", f"{weights}={run}/model_final.pth"]
    train_net.cli([*again, f"{output}={tmp_path / 'again'}"])
    results = (run / "inference/results.json").read_text()
    assert (tmp_path / "again/inference/results.json").read_text() == results
    assert list(json.loads((tmp_path / "again/inference" / coco_sets.SKIPPED_FILE).read_text())) == [
        str(tmp_path / "val/annotations.json")
    ]


@pytest.mark.slow
def test_two_processes_leave_out_the_same(tmp_path):
    """Each decodes half of the pictures; both train and evaluate on what is left."""
    flags = own_data_flags(tmp_path)
    damage(tmp_path)
    run = tmp_path / "run"
    command = ["train_net.py", "--config-file", LAZY, *flags, "--skip-bad-records", f"train.output_dir={run}"]
    result = subprocess.run(
        [sys.executable, *command, "--num-gpus", "2", "--dist-url", "auto"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    skipped = json.loads((run / coco_sets.SKIPPED_FILE).read_text())
    assert [len(rows) for rows in skipped.values()] == [4, 4]
    rows = json.loads((run / "inference/coco_instances_results.json").read_text())
    assert {row["image_id"] for row in rows} == {1, 3}


@pytest.mark.parametrize("config", [LAZY, YAML], ids=["lazy", "yaml"])
def test_the_flag_changes_a_saved_config(config, tmp_path, capsys):
    """Data that went bad after the run: its config.yaml names the sets, the flag stands alone."""
    flags, run = own_data_flags(tmp_path), tmp_path / "run"
    output = "train.output_dir" if config == LAZY else "OUTPUT_DIR"
    train_net.cli(["--config-file", config, *flags, f"{output}={run}"])
    moved = tmp_path / "moved"
    for part in ("train", "val"):  # a name of their own: this process knows the good sets already
        shutil.copytree(tmp_path / part, moved / part)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(tmp_path / "val"), str(moved / "val")))
    file = moved / "val/annotations.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [1, 2, 3]
    file.write_text(json.dumps(content))
    weights = "train.init_checkpoint" if config == LAZY else "MODEL.WEIGHTS"
    again = ["--config-file", str(run / "config.yaml"), "--eval-only", f"{weights}={run}/model_final.pth"]
    train_net.cli([*again, "--skip-bad-records", f"{output}={tmp_path / 'again'}"])
    rows = json.loads((tmp_path / "again/inference" / coco_sets.SKIPPED_FILE).read_text())[str(file)]
    assert [row["kind"] for row in rows] == ["box"]


def test_dry_run_skips_and_writes_nothing(tmp_path, capsys):
    flags = own_data_flags(tmp_path)
    damage(tmp_path)
    output = f"train.output_dir={tmp_path / 'run'}"
    train_net.cli(["--config-file", LAZY, *flags, "--skip-bad-records", "--dry-run", output])
    assert "parameters" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["images", "annotations", "pictures"])
def test_nothing_left_is_an_error(what, tmp_path):
    file, root = make_coco(tmp_path)
    content = json.loads(file.read_text())
    if what == "pictures":
        for picture in root.iterdir():
            picture.write_bytes(b"")
    for row in content.get(what, []):
        row.update(width=0, bbox=[1])
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is left without the bad records; the first: ") as e:
        name = register_coco_set(str(file), str(root), skip_bad_records=True)
        leave_out_bad_pictures([name])
    assert str(file) in str(e.value)


def test_first_of_several_is_named_and_all_are_counted(tmp_path):
    file, root = make_coco(tmp_path)
    content = json.loads(file.read_text())
    content["images"][1]["width"] = 0
    content["annotations"][7]["bbox"] = []
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"image 2 has size 0 x 64 \(2 bad records in this file; --skip-bad-records"):
        check_coco_set(str(file), str(root))


def test_predict_leaves_out_and_counts(tmp_path, capsys):
    torch.save({"model": make_run(load_config(LAZY)).build_model().state_dict()}, tmp_path / "w.pth")
    _, root = make_coco(tmp_path)
    (root / "1.png").write_bytes(b"no picture")
    command = ["--config-file", LAZY, "--weights", str(tmp_path / "w.pth"), "--input", str(root)]
    command += ["--score-threshold", "0"]
    predict.main([*command, "--output", str(tmp_path / "out"), "--skip-bad-records"])
    out = capsys.readouterr().out
    assert f"left out: Image file {root}/1.png cannot be read" in out and "in 4 image(s), 1 left out" in out
    rows = json.loads((tmp_path / "out/predictions.json").read_text())
    assert {row["file_name"] for row in rows} == {str(root / f"{i}.png") for i in (0, 2, 3)}
    save_png(root / "1.png", size=(4000, 1))
    predict.main([*command, "--output", str(tmp_path / "thin"), "--skip-bad-records"])
    out = capsys.readouterr().out
    assert f"left out: Image file {root}/1.png of 4000 x 1 pixels is too thin" in out and ", 1 left out" in out
    for picture in root.iterdir():
        picture.write_bytes(b"")
    with pytest.raises(SystemExit) as e:
        predict.main([*command, "--output", str(tmp_path / "none"), "--skip-bad-records"])
    assert e.value.code == 2 and "None of the 4 image(s) can be read" in capsys.readouterr().err


# ---------------------------------------------------------------- what evaluation needs is filled in
def perfect(name: str, tmp_path) -> float:
    """AP of the ground truth as predictions."""
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in record["annotations"])]
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]], dtype=torch.int64)
        instances.scores = torch.ones(len(boxes))
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]["AP"]


@pytest.mark.parametrize("change", ["ids from 0", "no area", "no iscrowd", "nothing"])
def test_ground_truth_as_predictions_has_ap_100(change, tmp_path, capsys):
    """pycocotools takes an annotation of id 0 for unmatched, and needs area and iscrowd."""
    file, root = make_coco(tmp_path)
    content = json.loads(file.read_text())
    for row in content["annotations"]:
        if change == "ids from 0":
            row["id"] -= 1
        elif change != "nothing":
            del row[change.removeprefix("no ")]
    file.write_text(json.dumps(content))
    name = register_coco_set(str(file), str(root))
    assert (MetadataCatalog.get(name).json_file == str(file)) == (change == "nothing")
    assert perfect(name, tmp_path) == pytest.approx(100)
    assert json.loads(file.read_text()) == content


def test_filled_in_area_is_of_the_mask_else_of_the_box(tmp_path):
    file, root = make_coco(tmp_path, images=1, objects=4)
    content = json.loads(file.read_text())
    triangle, plain, runs, empty = content["annotations"]
    for row in content["annotations"]:
        row.update(bbox=[0, 0, 10, 20])
        del row["area"]
    triangle["segmentation"] = [[0, 0, 10, 0, 0, 20]]
    del plain["segmentation"]
    runs["segmentation"] = {"size": [64, 64], "counts": [0, 30, 4066]}
    empty["segmentation"] = []
    file.write_text(json.dumps(content))
    rows = check_coco_set(str(file), str(root)).coco["annotations"]
    areas = [row["area"] for row in rows]
    assert areas[1:] == [200, 30, 200] and areas[0] == pytest.approx(100, abs=8)


# ---------------------------------------------------------------- pictures of every kind work
def save(file, mode: str, size=(64, 64), **options) -> None:
    picture = Image.new(mode, size)
    picture.paste(tuple([200] * len(mode)) if mode in ("RGB", "CMYK", "RGBA") else 1, (8, 8, 40, 40))
    picture.save(file, **options)


def test_unusual_pictures_train_and_evaluate(tmp_path, capsys):
    """Grey, CMYK, transparent, palette, one bit, animated, turned by EXIF, one pixel."""
    file, root = make_coco(tmp_path / "train", images=9, objects=1)
    content = json.loads(file.read_text())
    names = [f"{i}.{suffix}" for i, suffix in enumerate("png jpg png png png gif jpg png webp".split())]
    save(root / names[0], "L")
    save(root / names[1], "CMYK")
    save(root / names[2], "RGBA")
    save(root / names[3], "P")
    save(root / names[4], "1")
    Image.new("P", (64, 64)).save(root / names[5], save_all=True, append_images=[Image.new("P", (64, 64), 1)])
    exif = Image.Exif()
    exif[0x0112] = 6
    save(root / names[6], "RGB", (64, 48), exif=exif)  # upright: 48 x 64
    Image.new("RGB", (1, 1)).save(root / names[7])
    save(root / names[8], "RGB")
    for row, name in zip(content["images"], names):
        row["file_name"] = name
    content["images"][6].update(width=48)
    content["images"][7].update(width=1, height=1)
    for row in content["annotations"]:
        row.update(bbox=[8, 8, 32, 32], segmentation=[[8, 8, 40, 8, 40, 40]])
    content["annotations"][7].update(bbox=[0, 0, 1, 1], segmentation=[[0, 0, 1, 0, 1, 1]])
    file.write_text(json.dumps(content))
    same = ["--train-json", file, "--train-images", root, "--val-json", file, "--val-images", root]
    output = [f"train.output_dir={tmp_path / 'run'}", "train.max_iter=5"]
    train_net.cli(["--config-file", LAZY, *map(str, same), *output])
    predictions = json.loads((tmp_path / "run/inference/coco_instances_results.json").read_text())
    assert {row["image_id"] for row in predictions} == set(range(1, 10))
