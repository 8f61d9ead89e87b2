"""Own data in COCO's format: checked, then registered with Detectron2's catalogs."""

import json
import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.util import get_temp_dir
from pathlib import Path

import pycocotools.mask as mask_util

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils import comm
from shared.data.coco_records import BadRecord, check_annotation, check_image, field, short
from shared.data.named_errors import picture_problem
from shared.errors import UserError
from shared.files import disk_errors

logger = logging.getLogger(__name__)
FLAG = "--skip-bad-records"
NAMED_IN_LOG = 5  # of the records that were left out; all are in SKIPPED_FILE
SKIPPED_FILE = "skipped_records.json"
LEFT_OUT = "annotation of an image left out"


@dataclass
class CheckedSet:
    """A COCO file after its check.

    coco: its content, without the records that were left out, and with what evaluation needs filled in. counts: of
    images, annotations, crowd and clipped boxes. skipped: what was left out. changed: whether `coco` differs from the
    file.
    """

    coco: dict
    counts: Counter
    skipped: list[BadRecord]
    changed: bool


@dataclass
class _OwnSet:
    """What was registered: arguments (json_file, image_root, skip), the file that is read, and what was left out."""

    source: tuple[str, str, bool]
    json_file: str
    skipped: list[BadRecord]
    pictures_checked: bool = False


_OWN_SETS: dict[str, _OwnSet] = {}


def register_coco_set(json_file: str, image_root: str, name: str | None = None, skip_bad_records: bool = False) -> str:
    """Check `json_file` (COCO format), register it and return the data set's name.

    Category ids may be any distinct integers; Detectron2 maps them, sorted, to 0..K-1. Where an annotation has no
    "area" or "iscrowd", or ids that pycocotools cannot count with (below 1), a corrected copy is read in its place; the
    file stays as it is.

    Args:
        name: default "<file stem>_<folder hash>", so that the same file has the same name in
            every process. A name that is registered already is left as it is.
        skip_bad_records: leave out bad records, see `leave_out_bad_pictures`; default: a UserError for the first.
    """
    source = os.path.abspath(json_file), os.path.abspath(image_root), bool(skip_bad_records)
    if name is None:
        name = f"{Path(json_file).stem}_{_hash('|'.join(source[:2]) + '|skip' * source[2])}"
    if name in DatasetCatalog.list():
        meta = MetadataCatalog.get(name)
        before = _OWN_SETS[name].source if name in _OWN_SETS else (meta.get("json_file"), meta.get("image_root"), False)
        if before != source:
            raise UserError(f"Data set name {name!r} is already taken by {before[0]}.")
        return name
    checked = check_coco_set(*source)
    own = _OwnSet(source, source[0], checked.skipped)
    if checked.changed or skip_bad_records:  # the latter: pictures may follow
        own.json_file = os.path.join(get_temp_dir(), f"{_hash(name)}.json")  # a name may have slashes
        _write(checked.coco, own.json_file)
    _OWN_SETS[name] = own
    DatasetCatalog.register(name, lambda: load_coco_json(own.json_file, source[1], name))
    MetadataCatalog.get(name).set(
        json_file=own.json_file,
        image_root=source[1],
        evaluator_type="coco",
        thing_classes=_names_by_id(checked.coco["categories"], source[0]),
    )
    return name


def _hash(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _write(coco: dict, file: str) -> None:
    """At once: another process of this run may read it."""
    part = f"{file}.{os.getpid()}"
    with disk_errors(os.path.dirname(file)):
        with open(part, "w") as f:
            json.dump(coco, f)
        os.replace(part, file)


# ---------------------------------------------------------------- the file
def read_coco_json(json_file: str) -> dict:
    """The parsed file with its three lists; UserError where it is missing, broken or incomplete."""
    if not os.path.isfile(json_file):
        raise UserError(f"Annotation file {json_file} does not exist.")
    try:
        with open(json_file, encoding="utf-8") as f:
            coco = json.load(f)
    except (ValueError, OSError) as e:
        raise UserError(f"Annotation file {json_file} is not valid JSON: {e}.") from e
    except RecursionError as e:
        raise UserError(f"Annotation file {json_file} is not valid JSON: it is nested too deeply.") from e
    if not isinstance(coco, dict):
        raise UserError(f"Annotation file {json_file} is not in COCO format: no object at its top.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(coco.get(key), list):
            raise UserError(f"Annotation file {json_file} is not in COCO format: no list {key!r}.")
        if not all(isinstance(row, dict) for row in coco[key]):
            raise UserError(f"Annotation file {json_file}: {key!r} holds something but objects.")
    return coco


def category_names(json_file: str) -> list[str]:
    """Names by rising category id, as Detectron2 maps them to 0..K-1."""
    return _names_by_id(read_coco_json(json_file)["categories"], json_file)


def _names_by_id(categories: list[dict], json_file: str) -> list[str]:
    if not categories:
        raise UserError(f"Annotation file {json_file} has no categories: 'categories' is empty.")
    ids = [field(c, "id", int, f"{json_file}: a category") for c in categories]
    value, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise UserError(f"{json_file}: category id {value} occurs {count} times.")
    names = {i: field(c, "name", str, f"{json_file}: category {i}") for i, c in zip(ids, categories)}
    return [names[i] for i in sorted(ids)]


# ---------------------------------------------------------------- its records
def check_coco_set(json_file: str, image_root: str, skip_bad_records: bool = False) -> CheckedSet:
    """Check every record, see shared/data/coco_records.py.

    Raises:
        UserError: naming the file and the first record that is wrong, such as an unknown image or category id, a
            repeated id, a box of zero size or outside its image, a missing image file. With `skip_bad_records` such
            records are left out, an image with its annotations, unless no image, or no annotation of several, remains.
    """
    coco = read_coco_json(json_file)
    _names_by_id(coco["categories"], json_file)
    if not os.path.isdir(image_root):
        raise UserError(f"Image folder {image_root} does not exist.")
    if not coco["images"]:
        raise UserError(f"Annotation file {json_file} has no images: 'images' is empty.")
    bad: list[BadRecord] = []
    images = _check_images(coco["images"], os.path.realpath(image_root), json_file, bad)
    counts, annotations = _check_annotations(coco, images, json_file, bad)
    if bad and not skip_bad_records:
        count = sum(record.kind != LEFT_OUT for record in bad)
        more = f"{count} bad records" if count > 1 else "a bad record"
        raise UserError(f"{str(bad[0]).removesuffix('.')} ({more} in this file; {FLAG} leaves such records out).")
    checked = CheckedSet({**coco, "images": list(images.values()), "annotations": annotations}, counts, bad, bool(bad))
    _require_some(checked, coco, json_file)
    checked.changed |= _fill_in(checked.coco)
    return checked


def _check_images(rows: list[dict], root: str, json_file: str, bad: list[BadRecord]) -> dict[int, dict]:
    """The good ones by id; appends the others to `bad`."""
    images: dict[int, dict] = {}
    for row in rows:
        where = f"{json_file}: image {short(row.get('id'))}"
        try:
            i, *_ = check_image(row, root, where)
            if i in images:
                raise BadRecord("repeated image id", f"{json_file}: image id {i} occurs more than once.")
            images[i] = row
        except BadRecord as e:
            bad.append(e)
    return images


def _check_annotations(
    coco: dict, images: dict[int, dict], json_file: str, bad: list[BadRecord]
) -> tuple[Counter, list[dict]]:
    """Counts, and the good ones; appends the others to `bad`. images: those that are left, by id."""
    sizes = {i: (row["width"], row["height"]) for i, row in images.items()}
    categories = {row["id"] for row in coco["categories"]}
    left_out = {row["id"] for row in coco["images"] if isinstance(row.get("id"), int)} - sizes.keys()
    counts, good, ids = Counter(images=len(images)), [], set()
    for row in coco["annotations"]:
        where = f"{json_file}: annotation {short(row.get('id'))}"
        try:
            if isinstance(row.get("image_id"), int) and row["image_id"] in left_out:
                raise BadRecord(LEFT_OUT, f"{where} belongs to an image that is left out.")
            i = field(row, "id", int, f"{json_file}: an annotation")
            clipped = check_annotation(row, sizes, categories, where)
            if i in ids:
                raise BadRecord("repeated annotation id", f"{json_file}: annotation id {i} occurs more than once.")
        except BadRecord as e:
            bad.append(e)
            continue
        ids.add(i)
        good.append(row)
        counts.update(annotations=1, crowd=int(row.get("iscrowd", 0)), clipped=int(clipped))
    return counts, good


def _require_some(checked: CheckedSet, before: dict, json_file: str) -> None:
    """UserError where nothing is left."""
    for key in ("images", "annotations"):
        if before[key] and not checked.coco[key]:
            raise UserError(
                f"Annotation file {json_file}: none of its {len(before[key])} {key} is left without the bad records; "
                f"the first: {checked.skipped[0]}"
            )


def _fill_in(coco: dict) -> bool:
    """Give annotations what pycocotools cannot do without: an area (of the mask, else of the box), iscrowd, and ids
    from 1, as its matching takes 0 for "none". Returns whether anything was missing."""
    rows = coco["annotations"]
    renumber = any(row["id"] < 1 for row in rows)
    changed = renumber or not all("area" in row and "iscrowd" in row for row in rows)
    if changed:
        sizes = {row["id"]: (row["height"], row["width"]) for row in coco["images"]}
        coco["annotations"] = [
            {
                **row,
                "id": number if renumber else row["id"],
                "iscrowd": int(row.get("iscrowd", 0)),
                "area": row["area"] if "area" in row else _area(row, *sizes[row["image_id"]]),
            }
            for number, row in enumerate(rows, start=1)
        ]
    return changed


def _area(row: dict, height: int, width: int) -> float:
    mask = row.get("segmentation")
    if not mask:
        return row["bbox"][2] * row["bbox"][3]
    if isinstance(mask, list):
        mask = mask_util.merge(mask_util.frPyObjects(mask, height, width))
    elif isinstance(mask["counts"], list):
        mask = mask_util.frPyObjects(mask, height, width)
    return float(mask_util.area(mask))


def require_masks(names: Iterable[str], mask_format: str) -> None:
    """UserError where an object (crowds apart) of own data has no segmentation, which training masks needs, or a
    run-length encoded one, which needs `mask_format` "bitmask"."""
    for own in (_OWN_SETS[name] for name in names if name in _OWN_SETS):
        for row in read_coco_json(own.json_file)["annotations"]:
            if not row.get("iscrowd"):
                _require_mask(row, mask_format, f"{own.source[0]}: annotation {row['id']}")


def _require_mask(row: dict, mask_format: str, where: str) -> None:
    if not row.get("segmentation"):
        raise UserError(
            f"{where} has no segmentation, but this config trains masks: "
            f"choose a config without masks, such as configs/quickstart.py, or add them."
        )
    if isinstance(row["segmentation"], dict) and mask_format != "bitmask":
        raise UserError(
            f"{where} has a run-length encoded mask: set dataloader.train.mapper.instance_mask_format "
            f"(INPUT.MASK_FORMAT) to bitmask."
        )


# ---------------------------------------------------------------- pictures, and what was left out
def leave_out_bad_pictures(names: Iterable[str]) -> None:
    """Decode every picture of the sets that skip bad records; leave those out that cannot be, or have another size.

    All processes call it; they share the work. Nothing is drawn in the place of a picture: training and evaluation
    see the same set in every epoch, and after --resume. UserError where no image is left.
    """
    for name in names:
        own = _OWN_SETS.get(name)
        if own is None or own.pictures_checked or not own.source[2]:
            continue
        rows = read_coco_json(own.json_file)["images"][comm.get_rank() :: comm.get_world_size()]
        files = [(os.path.join(own.source[1], row["file_name"]), (row["width"], row["height"])) for row in rows]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            problems = pool.map(picture_problem, *zip(*files)) if files else ()
            mine = {row["id"]: problem for row, problem in zip(rows, problems) if problem}
        found = {i: problem for part in comm.all_gather(mine) for i, problem in part.items()}
        own.pictures_checked = True
        if found:
            _leave_out(own, dict(sorted(found.items())))


def _leave_out(own: _OwnSet, found: dict[int, str]) -> None:
    before = read_coco_json(own.json_file)
    own.skipped += [BadRecord("picture", f"{own.source[0]}: image {i}: {text}") for i, text in found.items()]
    images = [row for row in before["images"] if row["id"] not in found]
    annotations = [row for row in before["annotations"] if row["image_id"] not in found]
    left = CheckedSet({**before, "images": images, "annotations": annotations}, Counter(), own.skipped, True)
    _require_some(left, before, own.source[0])
    _write(left.coco, own.json_file)


def report_skipped(names: Iterable[str], folder: str | None) -> None:
    """Log how many records of these sets were left out, by kind, and the first; all go to a file in `folder`."""
    sets = {_OWN_SETS[name].source[0]: _OWN_SETS[name].skipped for name in names if name in _OWN_SETS}
    sets = {file: skipped for file, skipped in sets.items() if skipped}
    for file, skipped in sets.items():
        kinds = ", ".join(f"{count} of {kind!r}" for kind, count in Counter(e.kind for e in skipped).most_common())
        logger.warning("Left out %d bad records of %s: %s.", len(skipped), file, kinds)
        for record in skipped[:NAMED_IN_LOG]:
            logger.warning("  %s", record)
    if sets and folder is not None and comm.is_main_process():
        content = {file: [{"kind": e.kind, "record": str(e)} for e in skipped] for file, skipped in sets.items()}
        with open(os.path.join(folder, SKIPPED_FILE), "w") as f:
            json.dump(content, f, indent=1)
        logger.warning("All of them: %s", os.path.join(folder, SKIPPED_FILE))
