"""Reading pictures: errors name the file, and a COCO file's records cannot name files outside its image folder."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import SizeMismatchError, read_image
from shared.data.coco_records import is_inside
from shared.errors import UserError


def read_picture(file: str, format: str = "BGR") -> np.ndarray:
    """Detectron2's `read_image`: (H, W, C), upright. UserError naming the file where it cannot be read."""
    if not os.path.exists(file):
        raise UserError(f"Image file {file} does not exist.")
    if problem := _depth_problem(file):
        raise UserError(problem)
    try:
        return read_image(file, format=format)
    except Exception as e:  # Pillow's decoders raise almost anything, also what is no subclass of OSError
        raise UserError(f"Image file {file} cannot be read: {' '.join(str(e).split()) or type(e).__name__}.") from e


def _depth_problem(file: str) -> str | None:
    """Pillow cuts grey values above 255 off, where a picture has more than 8 bits: almost all of it turns white."""
    try:
        with Image.open(file) as picture:
            mode = picture.mode
    except Exception:  # whoever reads the picture says why it cannot be read
        return None
    if mode == "F" or mode.startswith("I"):
        return f"Image file {file} has grey values of more than 8 bits (Pillow's mode {mode}): convert it to 8 bits."
    return None


def picture_problem(file: str, size: tuple[int, int] | None = None) -> str | None:
    """A sentence that says why a picture cannot be decoded, or is not of `size`, (width, height); None where it can."""
    try:
        height, width = read_picture(file).shape[:2]
    except UserError as e:
        return str(e)
    if size is not None and tuple(size) != (width, height):
        return (
            f"Image file {file} is not {size[0]} x {size[1]}, as its annotation file says: it is {width} x {height}, "
            f"upright."
        )
    return None


@contextlib.contextmanager
def thin_pictures_named(file: str) -> Iterator[None]:
    """While a picture is resized: a side that becomes shorter than half a pixel ends in a UserError."""
    try:
        yield
    except ValueError as e:
        if "must be > 0" not in str(e):  # Pillow's
            raise
        height, width = read_picture(file).shape[:2]
        raise UserError(
            f"Image file {file} of {width} x {height} pixels is too thin for the config's resizing: leave it out."
        ) from e


class NamedErrors:
    """Wraps a mapper: an image that is missing, corrupt, of another size, of more than 8 bits or outside its folder
    ends in a `UserError`.

    Anything else (a bug, say) passes as it is.
    """

    def __init__(self, mapper: Callable[[dict], dict | None], names: Iterable[str] = ()):
        """names: of the data sets; where one is in COCO's format and the others have an image folder too, only files in
        these folders are read."""
        metadata = [MetadataCatalog.get(name) for name in names]
        coco = [meta.get("image_root") for meta in metadata]
        voc = [os.path.join(meta.get("dirname"), "JPEGImages") if meta.get("dirname") else None for meta in metadata]
        roots = [a or b for a, b in zip(coco, voc)]
        self.mapper, self.roots = mapper, [os.path.realpath(r) for r in roots] if any(coco) and all(roots) else []

    def __call__(self, record: dict) -> dict | None:
        file = record.get("file_name")
        if self.roots and not any(is_inside(file, root) for root in self.roots):
            raise UserError(
                f"Image file {file} leads out of the image folder {' or '.join(self.roots)}: it is not read."
            )
        if file is not None and (problem := _depth_problem(file)):
            raise UserError(problem)
        try:
            with thin_pictures_named(file):
                return self.mapper(record)
        except UserError:
            raise
        except SizeMismatchError as e:
            raise UserError(picture_problem(file, (record["width"], record["height"])) or str(e)) from e
        except Exception as e:
            if file is None or (problem := picture_problem(file)) is None:
                raise
            raise UserError(problem) from e
