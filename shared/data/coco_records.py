"""What one record of a COCO file, an image or an annotation, must be to be of use."""

import math
import os

import numpy as np

from shared.errors import UserError

EDGE_SLACK = 1.0  # pixels by which a box may stick out of its image: rounding in annotation tools
MAX_ID = 2**63 - 1  # what pycocotools and torch hold


class BadRecord(UserError):
    """One record is of no use. kind: what is wrong with it in a few words, to count by."""

    def __init__(self, kind: str, sentence: str):
        super().__init__(sentence)
        self.kind = kind


def check_image(row: dict, root: str, where: str) -> tuple[int, int, int]:
    """(id, width, height) of an image's record; BadRecord unless its file lies below `root`, a resolved folder."""
    size = [field(row, key, int, where) for key in ("width", "height")]
    if min(size) <= 0:
        raise BadRecord("image of no size", f"{where} has size {size[0]} x {size[1]}.")
    name = field(row, "file_name", str, where)
    file = os.path.join(root, name)
    if not is_inside(file, root):
        raise BadRecord(
            "image outside the image folder",
            f"{where}: file_name {name!r} leads out of the image folder {root}: files of that folder alone are read.",
        )
    if not os.path.isfile(file):
        what = "is no file" if os.path.exists(file) else "does not exist; check the image folder"
        raise BadRecord("image file missing", f"{where}: file {file} {what}.")
    return field(row, "id", int, where), *size


def is_inside(file: str, root: str) -> bool:
    """Whether `file`, with all symbolic links followed, lies below `root`, a folder that is resolved already."""
    try:
        return os.path.realpath(file).startswith(root.rstrip(os.sep) + os.sep)
    except ValueError:  # a null byte, half a surrogate pair: no file's name
        return False


def check_annotation(row: dict, images: dict[int, tuple[int, int]], categories: set[int], where: str) -> bool:
    """Whether the box sticks out of its image a little. images: (width, height) by id. BadRecord where it is no use."""
    for key, known, what in (("image_id", images, "belongs to image"), ("category_id", categories, "has category")):
        if isinstance(row.get(key), list | dict) or row.get(key) not in known:
            raise BadRecord(f"unknown {key}", f"{where} {what} {short(row.get(key))}, which is not listed.")
        field(row, key, int, where)  # True and 1.0 are among {1}
    if row.get("iscrowd", 0) not in (0, 1) or isinstance(row.get("iscrowd"), float):
        raise BadRecord("iscrowd", f"{where}: 'iscrowd' must be 0 or 1, got {short(row['iscrowd'])}.")
    if row.get("ignore"):
        raise BadRecord("ignore", f"{where} has 'ignore' set, which is not COCO's: use 'iscrowd', or remove it.")
    if "area" in row and not (finite([row["area"]]) and row["area"] >= 0):
        raise BadRecord("area", f"{where}: 'area' must be a number of square pixels, got {short(row['area'])}.")
    if "keypoints" in row and not (isinstance(row["keypoints"], list) and finite(row["keypoints"])):
        raise BadRecord("keypoints", f"{where}: 'keypoints' must be a list of finite numbers.")
    size = images[row["image_id"]]
    clipped = _check_box(row.get("bbox"), *size, where)
    _check_segmentation(row.get("segmentation"), *size, where)
    return clipped


def _check_box(box, width: int, height: int, where: str) -> bool:
    """Whether an XYWH box sticks out of its image a little; BadRecord where it is of no use."""
    if not (isinstance(box, list) and len(box) == 4 and finite(box)):
        raise BadRecord("box", f"{where} needs a bbox of four finite numbers [x, y, width, height], got {short(box)}.")
    x, y, w, h = box
    if w <= 0 or h <= 0:
        raise BadRecord(
            "box of no size", f"{where} has a box of zero or negative size: {short(box)}; remove or correct it."
        )
    if x < -EDGE_SLACK or y < -EDGE_SLACK or x + w > width + EDGE_SLACK or y + h > height + EDGE_SLACK:
        raise BadRecord(
            "box outside its image",
            f"{where} has a box outside its {width} x {height} image: {short(box)} (x, y, width, height).",
        )
    return x < 0 or y < 0 or x + w > width or y + h > height


def _check_segmentation(value, width: int, height: int, where: str) -> None:
    """Polygons or a run-length encoding of the image's size; none at all is fine here, see `require_masks`."""
    if isinstance(value, dict):
        return _check_rle(value, width, height, where)
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(polygon, list) and finite(polygon) for polygon in value):
        raise BadRecord(
            "segmentation",
            f"{where}: 'segmentation' must be a list of polygons [x, y, x, y, ...] of finite numbers, or a run-length "
            f"encoding, got {short(value)}.",
        )
    for polygon in value:
        if len(polygon) < 6 or len(polygon) % 2:
            raise BadRecord(
                "polygon",
                f"{where} has a polygon of {len(polygon)} numbers: it needs x and y of at least three points.",
            )
        xs, ys = polygon[::2], polygon[1::2]
        if min(xs) < -width or max(xs) > 2 * width or min(ys) < -height or max(ys) > 2 * height:
            raise BadRecord(
                "polygon far outside its image",
                f"{where} has a polygon that leaves its {width} x {height} image by more than the image's size.",
            )
    return None


def _check_rle(rle: dict, width: int, height: int, where: str) -> None:
    def bad(what: str) -> None:
        raise BadRecord("run-length encoding", f"{where} has a run-length encoded mask {what}.")

    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        bad(f"of size {short(size)}: its image's [height, width] is [{height}, {width}]")
    if isinstance(counts, str):
        counts = _rle_runs(counts)
    elif not (isinstance(counts, list) and counts and {int} == set(map(type, counts))):
        counts = None
    if counts is None or min(counts) < 0:
        bad("whose 'counts' are no run lengths")
    if sum(counts) != width * height:
        bad(f"of {sum(counts)} pixels: its image has {width * height}")


def _rle_runs(text: str) -> list[int] | None:
    """The run lengths of pycocotools' string, None where it is none. Its own decoder reads past the end of a bad one.

    Each number is written in groups of five bits, lowest first, the sixth says whether more follow, the sign is the
    last group's highest; from the fourth number on it is the difference to the last but one.
    """
    codes = np.frombuffer(text.encode("latin1", "replace"), dtype=np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # beyond 32 bits
        return None
    shift = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << shift, starts)
    numbers -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    for first in (1, 2):
        numbers[first::2] = numbers[first::2].cumsum()
    return numbers.tolist()


def finite(values: list) -> bool:
    """Whether all are plain finite numbers, booleans not counted."""
    try:
        return set(map(type, values)) <= {int, float} and all(map(math.isfinite, values))
    except OverflowError:  # an integer beyond every float
        return False


def field(row: dict, key: str, kind: type, where: str):
    value = row.get(key)
    if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and abs(value) > MAX_ID):
        raise BadRecord(f"{key} of another type", f"{where}: {key!r} must be {kind.__name__}, got {short(value)}.")
    return value


def short(value) -> str:
    """`repr` of a value out of a file, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a huge number"
    return text if len(text) <= 80 else text[:77] + "..."
