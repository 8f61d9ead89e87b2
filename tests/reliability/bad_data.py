"""The corpus' annotation files and pictures. Each record of SKIPPABLE can be left out with --skip-bad-records."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.reliability.corpus import (
    COMPARE,
    LAZY,
    PREDICT,
    TRAIN,
    WITH_DATA,
    YAML,
    Case,
    Sandbox,
    edit,
    picture,
    raw,
    save_png,
)

BOTH = (LAZY, YAML)
NAN, INF = float("nan"), float("inf")
FILES = [
    ("not JSON", raw(lambda _: b"{"), "is not valid JSON"),
    ("truncated", raw(lambda text: text[: len(text) // 2]), "is not valid JSON"),
    ("empty file", raw(lambda _: b""), "is not valid JSON"),
    ("not UTF-8", raw(lambda text: text.replace(b"green", b"gr\xfcn")), "is not valid JSON"),
    ("nested without end", raw(lambda _: b"[" * 200_000), "nested too deeply"),
    ("number of 5000 digits", raw(lambda text: text.replace(b"64", b"6" * 5000, 1)), "is not valid JSON"),
    ("a list", raw(lambda _: b"[]"), "no object at its top"),
    ("no images key", edit(lambda d: d.pop("images")), "no list 'images'"),
    ("no annotations key", edit(lambda d: d.pop("annotations")), "no list 'annotations'"),
    ("no categories key", edit(lambda d: d.pop("categories")), "no list 'categories'"),
    ("images is a number", edit(lambda d: d.update(images=3)), "no list 'images'"),
    ("annotation is a number", edit(lambda d: d.update(annotations=[3])), "'annotations' holds something but objects"),
    ("no image", edit(lambda d: d.update(images=[])), "'images' is empty"),
    ("no category", edit(lambda d: d.update(categories=[])), "'categories' is empty"),
    ("no object", edit(lambda d: d.update(annotations=[])), "cannot be used"),
    ("crowds only", edit(lambda d: [a.update(iscrowd=1) for a in d["annotations"]]), "cannot be used"),
    ("category id is text", edit(lambda d: d["categories"][0].update(id="5")), "'id' must be int, got '5'"),
    ("category id twice", edit(lambda d: d["categories"][0].update(id=2)), "category id 2 occurs 2 times"),
    ("category without name", edit(lambda d: d["categories"][0].pop("name")), "category 5: 'name' must be str"),
    (
        "other categories than in validation",
        edit(lambda d: d["categories"][0].update(name="black")),
        "different classes (black, green in one of them only)",
    ),
    (
        "categories in another order",
        edit(lambda d: [c.update(id=11 - c["id"]) for c in d["categories"] if c["id"] != 5]),
        "different classes (the same ones in another order)",
    ),
    ("file is missing", lambda box: box.json_file().unlink(), "does not exist"),
    ("file is a folder", lambda box: (box.json_file().unlink(), box.json_file().mkdir()), "does not exist"),
]
ANNOTATIONS = [  # fields of the fourth one, the sentence, the kind
    (dict(bbox=[1, 1, NAN, 5]), "four finite numbers", "box"),
    (dict(bbox=[1, 1, INF, 5]), "four finite numbers", "box"),
    (dict(bbox=["1", "1", "9", "9"]), "four finite numbers", "box"),
    (dict(bbox=[1, 1, 9]), "got [1, 1, 9]", "box"),
    (dict(bbox=None), "got None", "box"),
    (dict(bbox=[1, 1, 10**400, 9]), "four finite numbers", "box"),
    (dict(bbox=[1, 1, True, 9]), "four finite numbers", "box"),
    (dict(bbox=[1, 1, -5, 5]), "zero or negative size: [1, 1, -5, 5]", "box of no size"),
    (dict(bbox=[1, 1, 0, 5]), "zero or negative size: [1, 1, 0, 5]", "box of no size"),
    (dict(bbox=[60, 1, 30, 5]), "outside its 64 x 64 image: [60, 1, 30, 5]", "box outside its image"),
    (dict(bbox=[0, 0, 1e308, 1e308]), "outside its 64 x 64 image", "box outside its image"),
    (dict(category_id=1), "has category 1, which is not listed", "unknown category_id"),
    (dict(category_id=[2]), "has category [2], which is not listed", "unknown category_id"),
    (dict(category_id="2"), "has category '2', which is not listed", "unknown category_id"),
    (dict(image_id=77), "belongs to image 77, which is not listed", "unknown image_id"),
    (dict(image_id={}), "belongs to image {}, which is not listed", "unknown image_id"),
    (dict(image_id=True), "'image_id' must be int, got True", "image_id of another type"),
    (dict(iscrowd=2), "'iscrowd' must be 0 or 1, got 2", "iscrowd"),
    (dict(iscrowd="no"), "'iscrowd' must be 0 or 1, got 'no'", "iscrowd"),
    (dict(ignore=1), "has 'ignore' set", "ignore"),
    (dict(area=NAN), "'area' must be a number of square pixels", "area"),
    (dict(area="many"), "'area' must be a number of square pixels, got 'many'", "area"),
    (dict(keypoints=["a"]), "'keypoints' must be a list of finite numbers", "keypoints"),
    (dict(segmentation="mask"), "'segmentation' must be a list of polygons", "segmentation"),
    (dict(segmentation=[[1, 1, 5, NAN, 5, 5]]), "of finite numbers", "segmentation"),
    (dict(segmentation=[[1, 1, 5, 1, 5]]), "a polygon of 5 numbers", "polygon"),
    (dict(segmentation=[[1, 1, 5, 5]]), "a polygon of 4 numbers", "polygon"),
    (dict(segmentation=[[1, 1, 1e9, 1, 1e9, 1e9]]), "leaves its 64 x 64 image", "polygon far outside its image"),
    (dict(segmentation=dict(size=[32, 32], counts=[1024])), "its image's [height, width]", "run-length encoding"),
    (dict(segmentation=dict(size=[64, 64], counts=[9])), "of 9 pixels: its image has 4096", "run-length encoding"),
    (dict(segmentation=dict(size=[64, 64], counts=[-9])), "are no run lengths", "run-length encoding"),
    (dict(segmentation=dict(size=[64, 64], counts="\x7f~")), "are no run lengths", "run-length encoding"),
    (dict(segmentation=dict(size=[64, 64], counts="PPPP1")), "pixels: its image has 4096", "run-length encoding"),
    (dict(segmentation=dict(size=[64, 64])), "are no run lengths", "run-length encoding"),
    (dict(id=1), "annotation id 1 occurs more than once", "repeated annotation id"),
    (dict(id="4"), "'id' must be int, got '4'", "id of another type"),
]
IMAGES = [  # fields of the second image's record, the sentence, the kind
    (dict(width=0), "image 2 has size 0 x 64", "image of no size"),
    (dict(height=-64), "image 2 has size 64 x -64", "image of no size"),
    (dict(width=None), "'width' must be int, got None", "width of another type"),
    (dict(width="64"), "'width' must be int, got '64'", "width of another type"),
    (dict(height=64.0), "'height' must be int, got 64.0", "height of another type"),
    (dict(file_name=None), "'file_name' must be str, got None", "file_name of another type"),
    (
        dict(file_name="/etc/hostname"),
        "'/etc/hostname' leads out of the image folder",
        "image outside the image folder",
    ),
    (dict(file_name="../annotations.json"), "leads out of the image folder", "image outside the image folder"),
    (dict(file_name="../../val/images/0.png"), "leads out of the image folder", "image outside the image folder"),
    (dict(file_name="a\0.png"), "leads out of the image folder", "image outside the image folder"),
    (dict(file_name="\ud800.png"), "leads out of the image folder", "image outside the image folder"),
    (dict(file_name=""), "leads out of the image folder", "image outside the image folder"),
    (dict(file_name="none.png"), "images/none.png does not exist", "image file missing"),
    (dict(file_name="a\n\x1b[2Jb.png"), "a \\x1b[2Jb.png does not exist", "image file missing"),
    (dict(id=1), "image id 1 occurs more than once", "repeated image id"),
    (dict(id="2"), "'id' must be int, got '2'", "id of another type"),
    (dict(id=10**30), "'id' must be int, got 1000000", "id of another type"),
]


def _symlink(file: Path) -> None:
    """To a good picture, outside the image folder."""
    target = file.parent.parent / "elsewhere.png"
    os.rename(file, target)
    file.symlink_to(target)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _cut(file: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, format="PNG" if file.stem == "1" else None)
    file.write_bytes(file.read_bytes()[:4000])


def _cut_jpeg(file: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, format="JPEG")
    file.write_bytes(file.read_bytes()[:1000])


def _bomb(file: Path) -> None:
    """A PNG of 64 KiB whose header promises 50000 x 50000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (50000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    pixels = chunk(b"IDAT", zlib.compress(bytes(1 << 16)))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b""))


def _thin(box: Sandbox) -> None:
    """Of a pixel's height; its record agrees."""
    for part in ("train", "val"):
        save_png(box.picture(part=part), size=(4000, 1))
        edit(lambda d: d["images"][1].update(width=4000, height=1), part)(box)
        boxes = [a for a in json.loads(box.json_file(part).read_text())["annotations"] if a["image_id"] == 2]
        for row in boxes:
            row.update(bbox=[0, 0, 9, 1], segmentation=[])
        changed = {row["id"]: row for row in boxes}
        edit(lambda d, c=changed: d.update(annotations=[c.get(a["id"], a) for a in d["annotations"]]), part)(box)


PICTURES = [
    ("text", lambda file: file.write_text("no picture"), "cannot be read"),
    ("empty", lambda file: file.write_bytes(b""), "cannot be read"),
    ("truncated PNG", _cut, "cannot be read"),
    ("truncated JPEG", _cut_jpeg, "cannot be read"),
    ("decompression bomb", _bomb, "cannot be read"),
    ("of 16 bits", lambda file: save_png(file, "I;16"), "has grey values of more than 8 bits"),
    ("of another size", lambda file: save_png(file, size=(32, 64)), "is not 64 x 64, as its annotation file says"),
    ("turned by its EXIF tag", lambda file: _turned(file, (48, 64)), "it is 64 x 48, upright"),
]


def _turned(file: Path, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    Image.new("RGB", size).save(file, format="JPEG", exif=exif)


def _culprit(says: str) -> str:
    """The file, unless the sentence is about the whole set."""
    of_the_set = "cannot be used" in says or "different classes" in says
    return "Training" if of_the_set else "{folder}/train/annotations.json"


def _cases() -> list[Case]:
    cases = [
        Case(name, damage, (_culprit(says), says), (TRAIN, COMPARE) if "cannot be used" in says else WITH_DATA, BOTH)
        for name, damage, says in FILES
    ]
    for fields, says, kind in ANNOTATIONS:
        change = edit(lambda d, fields=fields: d["annotations"][3].update(fields))
        where = "{folder}/train/annotations.json: "
        cases.append(Case(f"annotation {_name(fields)}", change, (where, says), WITH_DATA, BOTH, kind))
    for fields, says, kind in IMAGES:
        change = edit(lambda d, fields=fields: d["images"][1].update(fields))
        where = "{folder}/train/annotations.json: "
        cases.append(Case(f"image {_name(fields)}", change, (where, says), WITH_DATA, BOTH, kind))
    for name, change, kind in (
        ("image is a link out of its folder", _symlink, "image outside the image folder"),
        ("image is a folder", _folder, "image file missing"),
    ):
        says = ("image 2", "leads out of the image folder" if change is _symlink else "1.png is no file")
        cases.append(Case(name, picture(change), says, WITH_DATA, BOTH, kind))
    says = ("images/1.png of 4000 x 1 pixels is too thin",)
    cases.append(Case("picture too thin", _thin, says, (*WITH_DATA, PREDICT), BOTH))
    for name, change, says in PICTURES:
        commands = WITH_DATA if "as its" in says or "upright" in says else (*WITH_DATA, PREDICT)
        cases.append(Case(f"picture {name}", picture(change), ("images/1.png", says), commands, BOTH, "picture"))
    return cases


def _name(fields: dict) -> str:
    key, value = next(iter(fields.items()))
    return f"{key} {str(value)[:40]!r}"


CASES = _cases()
