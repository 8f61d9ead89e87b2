"""Data of classifiers: folders, CIFAR-10's files, digits; mapping, mixing, accuracy."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import cifar
from torchvision.transforms import v2

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from shared.classification import (
    ClassificationEvaluator,
    ClassificationMapper,
    MixBatch,
    register_cifar10,
    register_digit_images,
    register_image_folder,
)
from shared.data.digit_scenes import load_sources
from shared.errors import UserError
from tests.image_folders import CLASSES, make_image_folder


# ---------------------------------------------------------------- image folders
def test_image_folder(tmp_path, monkeypatch):
    folder = make_image_folder(tmp_path / "set", images=2)
    (folder / ".cache").mkdir()
    (folder / "notes.txt").write_text("no class")
    name = register_image_folder(str(folder))
    assert MetadataCatalog.get(name).thing_classes == list(CLASSES)
    records = DatasetCatalog.get(name)
    found = [(r["file_name"].split("set/")[1], r["label"]) for r in records]
    assert found == [(f"{c}/{i}.png", k) for k, c in enumerate(CLASSES) for i in range(2)]
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert register_image_folder("set") == name  # the same folder, said otherwise


def test_image_folder_errors(tmp_path):
    with pytest.raises(UserError, match="no_such does not exist: set DETECTRON2_DATASETS"):
        register_image_folder(str(tmp_path / "no_such"))
    with pytest.raises(UserError, match="holds no class"):
        register_image_folder(str(tmp_path))
    folder = make_image_folder(tmp_path / "set", images=1)
    (folder / "b_green/0.png").rename(folder / "b_green/0.txt")
    with pytest.raises(UserError, match=f"{folder}: .*b_green"):
        DatasetCatalog.get(register_image_folder(str(folder)))


# ---------------------------------------------------------------- CIFAR-10
def write_cifar(root):
    """CIFAR-10's python version with two images a file: image k is of colour (k, k + 1, k + 2), of class k."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for i, file in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        rows = [np.repeat(np.array([k, k + 1, k + 2], np.uint8), 1024) for k in (2 * i, 2 * i + 1)]
        labels = [k % 10 for k in (2 * i, 2 * i + 1)]
        (folder / file).write_bytes(pickle.dumps({"data": np.stack(rows), "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["x"] * 10}))


def test_cifar10(tmp_path, monkeypatch):
    write_cifar(tmp_path)
    train, test = (register_cifar10(split, str(tmp_path)) for split in ("train", "test"))
    with pytest.raises(UserError, match="incomplete or damaged"):  # our file's checksum is not CIFAR-10's
        DatasetCatalog.get(train)
    monkeypatch.setattr(cifar, "check_integrity", lambda *args: True)
    records = DatasetCatalog.get(train)
    assert [r["label"] for r in records] == list(range(10))
    assert records[7]["image"].shape == (32, 32, 3) and records[7]["image"][5, 9].tolist() == [7, 8, 9]
    assert [r["label"] for r in DatasetCatalog.get(test)] == [0, 1]
    assert MetadataCatalog.get(test).thing_classes[:2] == ["airplane", "automobile"]


def test_cifar10_errors(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(UserError, match=f"must lie in {tmp_path}/cifar-10-batches-py: unpack cifar-10-python.tar.gz"):
        register_cifar10("train")
    with pytest.raises(UserError, match="splits train and test, got 'val'"):
        register_cifar10("val")


# ---------------------------------------------------------------- digits
def test_digit_images_keep_to_the_split_of_the_scenes():
    train, val = (DatasetCatalog.get(register_digit_images(split)) for split in ("train", "val"))
    assert (len(train), len(val)) == (1438, 359)  # of 1797, every fifth
    assert min(np.bincount([r["label"] for r in val], minlength=10)) >= 20
    glyph = load_sources("val").glyphs[3]
    image = val[3]["image"]
    assert image.shape == (8, 8, 3) and (image[..., 0] == image[..., 2]).all()
    np.testing.assert_allclose(image[..., 0], glyph * 255 / 16, atol=0.5)
    assert val[3]["label"] == load_sources("val").labels[3]
    with pytest.raises(UserError, match="splits train and val, got 'test'"):
        register_digit_images("test")


# ---------------------------------------------------------------- mapper and mixing
def test_mapper_reads_files_and_arrays(tmp_path):
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    plain = ClassificationMapper(transforms=[])
    expected = torch.from_numpy(pixels.transpose(2, 0, 1))
    record = {"file_name": str(tmp_path / "a.png"), "label": 2}
    out = plain(record)
    assert torch.equal(out["image"], expected) and out["image"].dtype == torch.uint8 and out["label"] == 2
    assert "image" not in record
    assert torch.equal(plain({"image": pixels, "label": 2})["image"], expected)
    bgr = ClassificationMapper(transforms=[v2.RandomHorizontalFlip(p=1.0)], image_format="BGR")(record)["image"]
    assert torch.equal(bgr, expected.flip(0).flip(2))
    with pytest.raises(ValueError, match="image_format must be RGB or BGR, got 'L'"):
        ClassificationMapper(transforms=[], image_format="L")


def test_mixup_mixes_images_and_labels_by_the_same_share():
    torch.manual_seed(0)
    batch = [
        {"image": torch.full((3, 2, 2), 100 * i, dtype=torch.uint8), "label": i, "file_name": str(i)} for i in range(3)
    ]
    out = MixBatch(mixes=[v2.MixUp(alpha=1.0, num_classes=4)])(batch)
    shares = {round(float(x["label"][i]), 5) for i, x in enumerate(out)}
    assert len(shares) == 1 and 0.05 < (share := shares.pop()) < 0.95
    for i, x in enumerate(out):
        assert x["label"].shape == (4,) and x["label"].sum().item() == pytest.approx(1)
        # the image before it, the last one for the first
        expected = share * 100 * i + (1 - share) * 100 * ((i - 1) % 3)
        torch.testing.assert_close(x["image"], torch.full((3, 2, 2), expected), atol=1e-2, rtol=0)
        assert x["label"][(i - 1) % 3].item() == pytest.approx(1 - share, abs=1e-5) and x["file_name"] == str(i)


def test_each_batch_draws_one_of_the_mixes():
    torch.manual_seed(0)
    mix = MixBatch(mixes=[v2.MixUp(alpha=1.0, num_classes=2), v2.CutMix(alpha=1.0, num_classes=2)])
    batch = [{"image": torch.full((3, 8, 8), 255 * i, dtype=torch.uint8), "label": i} for i in range(2)]
    cut = [bool(((x := mix(batch)[0]["image"]) == 0).logical_or(x == 255).all()) for _ in range(20)]
    assert 3 < sum(cut) < 17  # cut images hold no value between the two
    with pytest.raises(ValueError, match="at least one of v2.MixUp and v2.CutMix"):
        MixBatch(mixes=[])


# ---------------------------------------------------------------- evaluator
def evaluator(classes):
    name = f"classification_test_{classes}"
    MetadataCatalog.get(name).thing_classes = [f"k{i}" for i in range(classes)]
    return ClassificationEvaluator(name)


def batch(classes, *label_and_order):
    """Inputs and outputs: the label, and classes from the best score down."""
    inputs = [{"label": label} for label, _ in label_and_order]
    outputs = []
    for _, order in label_and_order:
        scores = torch.zeros(classes)
        scores[list(order)] = torch.linspace(1, 0.5, len(order))
        outputs.append({"scores": scores})
    return inputs, outputs


def test_accuracy_by_hand():
    e = evaluator(7)
    e.process(*batch(7, (0, (0, 1, 2, 3, 4)), (0, (1, 2, 3, 4, 0))))
    e.process(*batch(7, (0, (1, 2, 3, 4, 5)), (3, (3, 0, 1, 2, 4))))
    results = e.evaluate()["classification"]
    # 2 of 4 right, 3 of 4 among five; class 0: 1 of 3, class 3: 1 of 1; other classes have no image
    assert results == pytest.approx(
        {"top1": 50.0, "top5": 75.0, "class_mean": (100 / 3 + 100) / 2, "accuracy-k0": 100 / 3, "accuracy-k3": 100.0}
    )
    e.reset()
    with pytest.raises(ValueError, match="has seen no image"):
        e.evaluate()


def test_no_top5_of_four_classes():
    e = evaluator(4)
    e.process(*batch(4, (1, (1, 0))))
    assert "top5" not in e.evaluate()["classification"]
    with pytest.raises(ValueError, match="scores 5 classes, the data set has 4: set model.num_classes=4"):
        e.process(*batch(5, (1, (1, 0))))


def test_processes_are_summed(monkeypatch):
    rows = [(i % 5, np.random.default_rng(i).permutation(5)) for i in range(11)]
    whole, parts = evaluator(5), [evaluator(5), evaluator(5)]
    whole.process(*batch(5, *rows))
    expected = whole.evaluate()
    parts[0].process(*batch(5, *rows[:7]))
    parts[1].process(*batch(5, *rows[7:]))
    monkeypatch.setattr(comm, "gather", lambda counts: [counts, parts[1]._counts])
    assert parts[0].evaluate() == expected
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert parts[1].evaluate() is None
