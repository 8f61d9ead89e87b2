"""The digits data set: a small COCO-format set that is made on the spot, nothing downloaded.

    python -m shared.data.digits --stats          # make it if need be, print what is in it

Handwritten digits (scikit-learn's `load_digits`) stuck onto photographs (`load_sample_images`) at
small, medium and large COCO scale, partly hidden by each other, with boxes and polygons of what
shows. `digits_train` and `digits_val` share no digit sample and no photo region. See
`digit_scenes.py` for the pictures; here are files, cache, catalog and command line.

The same `DigitsSpec` gives the same bytes (annotations and JPEG) with the same library versions.
"""

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from shared.errors import EXIT_CODE, UserError

VERSION = 1  # raise it whenever the same spec gives other pictures or annotations
CLASSES = tuple("0123456789")
SPLITS = ("train", "val")
SMALL, LARGE = 32**2, 96**2  # COCO's bounds of area, pixels
MIN_SIDE = 144  # a large sticker needs that much


@dataclass(frozen=True)
class DigitsSpec:
    """What determines the set. Image size in pixels; the first images of a split never change
    with its number of images."""

    width: int = 224
    height: int = 192
    train_images: int = 1000
    val_images: int = 128
    seed: int = 0

    def __post_init__(self):
        if min(self.width, self.height) < MIN_SIDE:
            raise UserError(
                f"Digits images of {self.width} x {self.height} cannot hold an object of COCO's "
                f"large scale: use at least {MIN_SIDE} pixels a side."
            )
        if min(self.train_images, self.val_images) < 1 or self.seed < 0:
            raise UserError(f"Each split needs an image and the seed must be >= 0, got {self}.")

    @property
    def name(self) -> str:
        counts = f"{self.train_images}+{self.val_images}"
        return f"v{VERSION}-{self.width}x{self.height}-{counts}-seed{self.seed}"

    @property
    def manifest(self) -> dict:
        return {"generator": "digits", "version": VERSION, **asdict(self)}


def default_root() -> Path:
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser() / "digits"


def make_digits(spec: DigitsSpec | None = None, root: str | os.PathLike | None = None) -> Path:
    """Return the folder of the set, made first if `root` does not hold it yet.

    It holds `manifest.json`, `train.json`, `val.json` and the images in `train/`, `val/`. Every
    spec has a folder of its own. It is written elsewhere and renamed when it is complete, so a
    killed run leaves no half set, and of several processes making the same one the first wins.
    """
    spec = spec or DigitsSpec()
    root = default_root() if root is None else Path(root)
    folder = root / spec.name
    if _is_complete(folder, spec):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=root) as temporary:
        draft = Path(temporary) / spec.name
        draft.mkdir()
        for split in SPLITS:
            _write_json(draft / f"{split}.json", _write_split(draft / split, split, spec))
        _write_json(draft / "manifest.json", spec.manifest)
        try:
            draft.rename(folder)
        except OSError:
            if not _is_complete(folder, spec):  # else another process was faster: same bytes
                raise
    return folder


def _is_complete(folder: Path, spec: DigitsSpec) -> bool:
    """Whether the folder is there; one that another generator or hand made is an error."""
    if not folder.exists():
        return False
    manifest = folder / "manifest.json"
    found = json.loads(manifest.read_text()) if manifest.exists() else None
    if found != spec.manifest:
        raise UserError(
            f"{folder} is not the digits set of this name (its manifest is {found}, expected "
            f"{spec.manifest}): delete or rename that folder, it is made again on the next use."
        )
    return True


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, separators=(",", ":")))


def _write_split(folder: Path, split: str, spec: DigitsSpec) -> dict:
    """Write the images of a split. Returns its annotations as a COCO dict."""
    from PIL import Image

    from . import digit_scenes

    folder.mkdir()
    sources = digit_scenes.load_sources(split)
    size = (spec.width, spec.height)
    images, annotations = [], []
    for i in range(getattr(spec, f"{split}_images")):
        rng = np.random.default_rng([spec.seed, SPLITS.index(split), i])
        picture, objects = digit_scenes.make_scene(sources, size, rng)
        name = f"{i + 1:06d}.jpg"
        Image.fromarray(picture).save(folder / name, quality=95, subsampling=0)
        images.append({"id": i + 1, "file_name": name, "width": spec.width, "height": spec.height})
        for label, mask, hidden in objects:
            polygons = digit_scenes.mask_to_polygons(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": label + 1,
                    "bbox": _box(mask),
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": polygons,
                    "hidden": round(float(hidden), 4),
                }
            )
    return {
        "info": {"description": f"Digits on photographs, {split}", "version": str(VERSION)},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": c, "supercategory": "digit"} for i, c in enumerate(CLASSES)],
    }


def _box(mask: np.ndarray) -> list[int]:
    """XYWH in whole pixels of a non-empty (H, W) mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def statistics(coco: dict) -> dict[str, dict[str, float]]:
    """Count the objects of a COCO dict: per class, per COCO scale (of `area`), partly hidden.

    "hidden" needs the key of that name, which other sets lack: they count as not hidden.
    """
    names = {c["id"]: c["name"] for c in coco["categories"]}
    annotations = coco["annotations"]
    classes = Counter(names[a["category_id"]] for a in annotations)
    scales = Counter("small" if a["area"] < SMALL else "medium" if a["area"] < LARGE else "large" for a in annotations)
    hidden = [a.get("hidden", 0.0) for a in annotations]
    total = max(len(annotations), 1)
    return {
        "set": {"images": len(coco["images"]), "objects": len(annotations)},
        "classes": {name: classes[name] for name in names.values()},
        "scales": {scale: scales[scale] for scale in ("small", "medium", "large")},
        "hidden": {
            "share of objects": round(sum(h > 0 for h in hidden) / total, 3),
            "share of objects, over 25%": round(sum(h > 0.25 for h in hidden) / total, 3),
        },
    }


def register_digits() -> None:
    """Add `digits_train` and `digits_val` to Detectron2's catalogs; makes nothing yet.

    The set is made, under `$DETECTRON2_DATASETS/digits`, when one of them is first loaded.
    Calling it again changes nothing.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    spec, root = DigitsSpec(), default_root()
    for split in SPLITS:
        name = f"digits_{split}"
        if name in DatasetCatalog.list():
            continue
        DatasetCatalog.register(name, _loader(name, split, spec, root))
        MetadataCatalog.get(name).set(
            json_file=str(root / spec.name / f"{split}.json"),
            image_root=str(root / spec.name / split),
            evaluator_type="coco",
            thing_classes=list(CLASSES),
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(CLASSES))},
        )


def _loader(name: str, split: str, spec: DigitsSpec, root: Path) -> Callable[[], list[dict]]:
    def load() -> list[dict]:
        from detectron2.data.datasets import load_coco_json

        folder = make_digits(spec, root)
        return load_coco_json(str(folder / f"{split}.json"), str(folder / split), name)

    return load


def main(arguments: list[str] | None = None) -> None:
    spec = DigitsSpec()
    parser = argparse.ArgumentParser(
        prog="python -m shared.data.digits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", help="folder for sets (default $DETECTRON2_DATASETS/digits)")
    parser.add_argument("--size", type=int, nargs=2, default=(spec.width, spec.height), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--train-images", type=int, default=spec.train_images)
    parser.add_argument("--val-images", type=int, default=spec.val_images)
    parser.add_argument("--seed", type=int, default=spec.seed)
    parser.add_argument("--stats", action="store_true", help="print the statistics of each split")
    args = parser.parse_args(arguments)
    try:
        spec = DigitsSpec(*args.size, args.train_images, args.val_images, args.seed)
        folder = make_digits(spec, args.out)
    except UserError as e:
        parser.exit(EXIT_CODE, f"error: {e}\n")
    print(folder)
    for split in SPLITS if args.stats else ():
        for title, counts in statistics(json.loads((folder / f"{split}.json").read_text())).items():
            print(f"{split:<6}{title:<9}" + "  ".join(f"{k} {v}" for k, v in counts.items()))


if __name__ == "__main__":
    main()
