"""The digits data set: its numbers, its cache and what Detectron2 makes of it."""

import hashlib
import json

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn brings the digits and the photographs")
cv2 = pytest.importorskip("cv2")

from pycocotools import mask as coco_mask  # noqa: E402

from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog  # noqa: E402
from shared.data import digit_scenes, digits  # noqa: E402
from shared.data.digits import DigitsSpec, make_digits, register_digits, statistics  # noqa: E402
from shared.errors import UserError  # noqa: E402

SPEC = DigitsSpec(train_images=12, val_images=6)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    make_digits(SPEC, root)
    return root


@pytest.fixture
def catalogs(root, monkeypatch):
    """`digits_*` registered with the small set behind them, and gone afterwards."""
    monkeypatch.setattr(digits, "DigitsSpec", lambda: SPEC)
    monkeypatch.setattr(digits, "default_root", lambda: root)
    names = ("digits_train", "digits_val")
    before = {n: DatasetCatalog.pop(n) for n in names if n in DatasetCatalog.list()}
    for name in names:
        MetadataCatalog.pop(name, None)
    register_digits()
    yield
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    if before:
        monkeypatch.undo()
        register_digits()


def load(root, split="train"):
    return json.loads((root / SPEC.name / f"{split}.json").read_text())


def hashes(folder):
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return {str(f.relative_to(folder)): hashlib.sha1(f.read_bytes()).hexdigest() for f in files}


def rasterise(polygons, height, width):
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return coco_mask.decode(rle).astype(bool)


def square(x, y, side, label=0):
    one = np.ones((side, side))
    return digit_scenes.Sticker(label, one, one, x, y)


def test_polygons_of_a_ring_by_hand():
    mask = np.ones((3, 3), bool)
    mask[1, 1] = False
    # The hole is column 1, so the ring is cut at x = 1: a 1 x 3 bar and a "C" open to the left.
    bar, c = digit_scenes.mask_to_polygons(mask)
    assert {(0, 0), (1, 0), (1, 3), (0, 3)} == set(zip(bar[::2], bar[1::2]))
    corners = {(1, 0), (3, 0), (3, 3), (1, 3), (1, 1), (2, 1), (2, 2), (1, 2)}
    assert corners == set(zip(c[::2], c[1::2]))
    assert digit_scenes.mask_to_polygons(np.zeros((3, 3), bool)) == []


@pytest.mark.parametrize("seed", range(40))
def test_polygons_give_any_mask_back(seed):
    rng = np.random.default_rng(seed)
    h, w = rng.integers(3, 40, 2)
    mask = rng.random((h, w)) < rng.uniform(0.1, 0.95)  # many holes, pieces and touching corners
    if seed % 2:
        mask = cv2.blur(mask.astype(np.float32), (3, 3)) > 0.5
    mask[0, 0] = True
    polygons = digit_scenes.mask_to_polygons(mask)
    np.testing.assert_array_equal(rasterise(polygons, int(h), int(w)), mask)


def test_visible_masks_by_hand():
    back, front = square(0, 0, 10), square(5, 0, 10)  # half of the back one is hidden
    shown = digit_scenes.visible_masks([back, front], (20, 12))
    assert [int(m.sum()) for m in shown] == [50, 100]
    assert shown[0][:10, :5].all() and not shown[0][:, 5:].any()


def test_too_hidden_sticker_is_dropped_and_hides_nothing():
    # The middle one shows columns 2 and 3 only, 20%: dropped. The rearmost loses columns 4 and 5
    # to the front one alone, and would have lost 2 ... 5 had the middle one still counted.
    rear, middle, front = square(-4 + 4, 0, 6), square(2, 0, 10), square(4, 0, 10)
    shown = digit_scenes.visible_masks([rear, middle, front], (20, 12))
    assert shown[1] is None
    assert int(shown[0].sum()) == 24 and int(shown[2].sum()) == 100


@pytest.mark.parametrize("scale", digit_scenes.SCALES)
def test_rendered_digit_has_its_scale_and_readable_strokes(scale):
    sources = digit_scenes.load_sources("train")
    low, high = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 10**9)}[scale]
    for seed in range(10):
        rng = np.random.default_rng(seed)
        area = rng.uniform(*digit_scenes.SCALES[scale])
        sticker = digit_scenes.render_digit(sources.glyphs[seed], 0, area, 10**4, rng)
        assert low <= sticker.mask.sum() < high
        assert abs(sticker.mask.sum() / area - 1) < 0.08  # rounding of a small sticker's sides
        ink = sticker.ink > 0.5
        assert ink.any() and (ink & ~sticker.mask).sum() == 0  # the card surrounds the strokes
        image = np.zeros((*ink.shape, 3), np.uint8)
        digit_scenes.paste(image, sticker, rng)
        light = image @ (0.299, 0.587, 0.114)
        card = sticker.mask & (sticker.ink < 0.05) & (sticker.card > 0.95)
        if (sticker.ink > 0.95).any() and card.any():
            assert abs(light[sticker.ink > 0.95].mean() - light[card].mean()) > 50


def test_a_sticker_longer_than_the_limit_shrinks():
    sources = digit_scenes.load_sources("train")
    rng = np.random.default_rng(0)
    sticker = digit_scenes.render_digit(sources.glyphs[0], 0, 15000, 100, rng)
    assert max(sticker.card.shape) == 100


def test_splits_share_no_digit_and_no_photo_region():
    train, val = digit_scenes.load_sources("train"), digit_scenes.load_sources("val")
    assert len(train.labels) + len(val.labels) == 1797  # scikit-learn's samples, each used once
    assert len(val.labels) == 359  # floor(1797 / 5): samples 4, 9, ..., 1794
    assert {len(set(s.labels)) for s in (train, val)} == {10}
    same = {g.tobytes() for g in train.glyphs} & {g.tobytes() for g in val.glyphs}
    assert not same
    for left, right in zip(train.photos, val.photos):
        assert left.shape[1] == 422 and right.shape[1] == 218  # int(640 * 0.66), 640 - 422


def test_annotations_agree_with_their_masks(root):
    for split in digits.SPLITS:
        coco = load(root, split)
        assert [c["id"] for c in coco["categories"]] == list(range(1, 11))
        assert {"info", "licenses"} <= set(coco)
        assert len(coco["images"]) == getattr(SPEC, f"{split}_images")
        covered = {i["id"]: np.zeros((SPEC.height, SPEC.width), int) for i in coco["images"]}
        assert {a["image_id"] for a in coco["annotations"]} == set(covered)  # none is empty
        for a in coco["annotations"]:
            mask = rasterise(a["segmentation"], SPEC.height, SPEC.width)
            rows, columns = np.nonzero(mask)
            x, y, w, h = a["bbox"]
            assert (x, y, x + w, y + h) == (
                columns.min(), rows.min(), columns.max() + 1, rows.max() + 1,
            )  # fmt: skip
            assert a["area"] == mask.sum()
            assert 0 <= a["hidden"] <= 1 - digit_scenes.MIN_VISIBLE
            covered[a["image_id"]] += mask
        assert max(c.max() for c in covered.values()) == 1  # a pixel belongs to the front object


def test_same_spec_same_bytes_and_other_seed_other_pictures(root, tmp_path):
    again = make_digits(SPEC, tmp_path)
    assert hashes(again) == hashes(root / SPEC.name)
    other = make_digits(DigitsSpec(train_images=1, val_images=1, seed=1), tmp_path)
    assert other != again  # beside the first, not mixed with it
    ours, others = hashes(again), hashes(other)
    assert ours["train/000001.jpg"] != others["train/000001.jpg"]


def test_fewer_images_are_the_first_ones(root, tmp_path):
    few = make_digits(DigitsSpec(train_images=2, val_images=1), tmp_path)
    full = hashes(root / SPEC.name)
    assert all(full[f] == h for f, h in hashes(few).items() if f.endswith(".jpg"))


def test_a_complete_set_is_used_as_it_is(root, monkeypatch):
    def must_not_run(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(digits, "_write_split", must_not_run)
    assert make_digits(SPEC, root) == root / SPEC.name


def test_a_killed_run_leaves_no_set(tmp_path, monkeypatch):
    def killed(folder, split, spec):
        folder.mkdir()
        (folder / "000001.jpg").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "_write_split", killed)
    with pytest.raises(KeyboardInterrupt):
        make_digits(SPEC, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_processes_wins(root, tmp_path, monkeypatch):
    def other_process_is_faster(folder, split, spec):
        if split == "val":
            target = tmp_path / spec.name
            target.mkdir()
            digits._write_json(target / "manifest.json", spec.manifest)
            (target / "theirs").touch()
        return {}

    monkeypatch.setattr(digits, "_write_split", other_process_is_faster)
    folder = make_digits(SPEC, tmp_path)
    assert sorted(f.name for f in folder.iterdir()) == ["manifest.json", "theirs"]
    assert [f.name for f in tmp_path.iterdir()] == [SPEC.name]


def test_a_foreign_folder_is_refused(tmp_path):
    folder = tmp_path / SPEC.name
    folder.mkdir()
    with pytest.raises(UserError, match="its manifest is None.*delete or rename"):
        make_digits(SPEC, tmp_path)
    digits._write_json(folder / "manifest.json", {**SPEC.manifest, "version": 0})
    with pytest.raises(UserError, match="'version': 0"):
        make_digits(SPEC, tmp_path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"width": 100}, "100 x 192 cannot hold"),
        ({"val_images": 0}, "needs an image"),
        ({"seed": -1}, "seed must be >= 0"),
    ],
)
def test_impossible_specs(arguments, message):
    with pytest.raises(UserError, match=message):
        DigitsSpec(**arguments)


def test_statistics_by_hand():
    areas, hidden = [1023, 1024, 9215, 9216], [0.0, 0.1, 0.3, 0.0]
    coco = {
        "categories": [{"id": 1, "name": "0"}, {"id": 2, "name": "1"}],
        "images": [{}, {}],
        "annotations": [
            {"category_id": 1 + (i == 3), "area": a, "hidden": h} for i, (a, h) in enumerate(zip(areas, hidden))
        ],
    }
    assert statistics(coco) == {
        "set": {"images": 2, "objects": 4},
        "classes": {"0": 3, "1": 1},
        "scales": {"small": 1, "medium": 2, "large": 1},
        "hidden": {"share of objects": 0.5, "share of objects, over 25%": 0.25},
    }


def test_every_scale_occurs(root):
    assert min(statistics(load(root))["scales"].values()) >= 5


def test_command_line(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--size", "160", "144", "--train-images", "2"]
    digits.main([*arguments, "--val-images", "1", "--seed", "3", "--stats"])
    out = capsys.readouterr().out.splitlines()
    assert out[0] == str(tmp_path / f"v{digits.VERSION}-160x144-2+1-seed3")
    assert out[1].split() == ["train", "set", "images", "2", "objects", out[1].split()[-1]]
    assert len(out) == 1 + 2 * 4
    with pytest.raises(SystemExit) as stop:
        digits.main(["--out", str(tmp_path), "--size", "90", "90"])
    assert stop.value.code == 2 and "90 x 90" in capsys.readouterr().err


def test_registering_is_lazy_and_idempotent(root, catalogs, monkeypatch):
    def must_not_run(*_):
        raise AssertionError("made at registration")

    monkeypatch.setattr(digits, "make_digits", must_not_run)
    register_digits()
    for split in digits.SPLITS:
        meta = MetadataCatalog.get(f"digits_{split}")
        assert meta.evaluator_type == "coco" and meta.thing_classes == list("0123456789")
        assert meta.json_file == str(root / SPEC.name / f"{split}.json")
        assert meta.image_root == str(root / SPEC.name / split)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_detectron2_reads_boxes_and_masks(root, catalogs, mask_format):
    dicts = DatasetCatalog.get("digits_train")
    assert len(dicts) == SPEC.train_images
    mapper = DatasetMapper(
        True, augmentations=[], image_format="BGR", use_instance_mask=True, instance_mask_format=mask_format
    )
    coco = load(root)
    for record in dicts[:3]:
        data = mapper(record)
        expected = [a for a in coco["annotations"] if a["image_id"] == record["image_id"]]
        found = data["instances"]
        assert data["image"].shape == (3, SPEC.height, SPEC.width)
        assert found.gt_classes.tolist() == [a["category_id"] - 1 for a in expected]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in expected)]
        assert found.gt_boxes.tensor.tolist() == boxes
        if mask_format == "bitmask":
            areas = found.gt_masks.tensor.flatten(1).sum(1)
        else:
            areas = found.gt_masks.area()  # shoelace over pixel edges: exactly the pixels
        assert areas.tolist() == [a["area"] for a in expected]
