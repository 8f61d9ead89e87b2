"""Data sets of labelled images for Detectron2's catalogs and loaders.

A record is {"file_name": ...} or {"image": (H, W, 3) uint8 RGB}, and "label", an index of the class. The
`register_*` functions return the data set's name, for `get_detection_dataset_dicts(names=...)`; each process
calls them anew. Relative folders lie below $DETECTRON2_DATASETS (default `datasets`).
"""

import os
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from detectron2.data import DatasetCatalog, MetadataCatalog
from shared.data.digit_scenes import load_sources
from shared.data.digits import CLASSES as DIGITS
from shared.data.digits import SPLITS
from shared.errors import UserError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _below_datasets(path: str) -> str:
    root = os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    return os.path.abspath(os.path.join(root, os.path.expanduser(path)))


def _register(name: str, load: Callable[[], list[dict]], classes: Sequence[str]) -> str:
    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(thing_classes=list(classes), evaluator_type="classification")
    return name


def register_image_folder(root: str) -> str:
    """A folder with one folder of images a class (torchvision's ImageFolder, ImageNet's layout).

    Classes are the folders' names in alphabetical order. Hidden folders are no classes.

    Raises:
        UserError: no such folder, no class in it; when the data are loaded: a class without an image.
    """
    folder = _below_datasets(root)
    if not os.path.isdir(folder):
        raise UserError(
            f"Image folder {folder} does not exist: set DETECTRON2_DATASETS or dataset.names.root to where it lies."
        )
    classes = _class_folders(folder)
    if not classes:
        raise UserError(f"Image folder {folder} holds no class: it needs one folder of images for each.")
    name = f"{os.path.basename(folder)}_{zlib.crc32(folder.encode()):08x}"
    return _register(name, lambda: _read_image_folder(folder), classes)


def _class_folders(folder: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


class _VisibleFolders(ImageFolder):
    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        classes = _class_folders(directory)
        return classes, {name: i for i, name in enumerate(classes)}


def _read_image_folder(folder: str) -> list[dict]:
    try:
        samples = _VisibleFolders(folder).samples
    except FileNotFoundError as e:  # torchvision's for a class without a file of a known suffix
        raise UserError(f"Image folder {folder}: {' '.join(str(e).split())}") from e
    return [{"file_name": file, "label": label} for file, label in samples]


def register_cifar10(split: str, root: str = ".") -> str:
    """CIFAR-10, "train" or "test", from `cifar-10-batches-py` below `root` (the python version, unpacked).

    Raises:
        UserError: unknown split, no such folder; when the data are loaded: a file is missing or damaged.
    """
    if split not in ("train", "test"):
        raise UserError(f"CIFAR-10 has the splits train and test, got {split!r}.")
    folder = _below_datasets(root)
    if not os.path.isdir(os.path.join(folder, CIFAR10.base_folder)):
        raise UserError(
            f"CIFAR-10 must lie in {os.path.join(folder, CIFAR10.base_folder)}: unpack {CIFAR10.filename} in {folder}, "
            f"or set DETECTRON2_DATASETS or dataset.names.root."
        )
    name = f"cifar10_{split}_{zlib.crc32(folder.encode()):08x}"
    return _register(name, lambda: _read_cifar10(folder, split), CIFAR10_CLASSES)


def _read_cifar10(folder: str, split: str) -> list[dict]:
    try:
        data = CIFAR10(folder, train=split == "train", download=False)
    except RuntimeError as e:  # a checksum differs
        raise UserError(f"CIFAR-10 in {os.path.join(folder, CIFAR10.base_folder)} is incomplete or damaged.") from e
    return [{"image": image, "label": label} for image, label in zip(data.data, data.targets)]


def register_digit_images(split: str) -> str:
    """scikit-learn's handwritten digits, "train" or "val", as 8 x 8 images; nothing is downloaded.

    The split is that of the digit scenes: a detector that starts from a classifier of `train` has seen none
    of the digits in `digits_val`.
    """
    if split not in SPLITS:
        raise UserError(f"The digit images have the splits {' and '.join(SPLITS)}, got {split!r}.")
    return _register(f"digit_images_{split}", lambda: _read_digits(split), DIGITS)


def _read_digits(split: str) -> list[dict]:
    sources = load_sources(split)
    grey = np.round(sources.glyphs * (255 / 16)).astype(np.uint8)  # 16 is white
    return [
        {"image": np.repeat(image[:, :, None], 3, axis=2), "label": int(label)}
        for image, label in zip(grey, sources.labels)
    ]


class ClassificationMapper:
    """From a record to what `ImageClassifier` takes: "image", (3, H, W) uint8, and "label"."""

    def __init__(self, *, transforms: Sequence[Callable], image_format: str = "RGB"):
        """
        Args:
            transforms: torchvision's transforms (v2) of a PIL image, in order.
            image_format: "RGB" or "BGR", the order of the channels; must agree with the model's pixel_mean.
        """
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"ClassificationMapper: image_format must be RGB or BGR, got {image_format!r}.")
        self.transforms, self.image_format = v2.Compose([*transforms, v2.PILToTensor()]), image_format

    def __call__(self, record: dict) -> dict:
        record = dict(record)
        image = record.pop("image", None)
        image = default_loader(record["file_name"]) if image is None else Image.fromarray(image)
        image = self.transforms(image)
        record["image"] = image.flip(0) if self.image_format == "BGR" else image
        return record


class MixBatch:
    """`collate_fn` that mixes the images of a batch and their labels with each other.

    The images become float32 in 0-255, each label a vector of class probabilities, (K,).
    """

    def __init__(self, *, mixes: Sequence[Callable]):
        """mixes: torchvision's v2.MixUp and v2.CutMix, of which each batch draws one."""
        if len(mixes) == 0:
            raise ValueError("MixBatch needs at least one of v2.MixUp and v2.CutMix in mixes.")
        self.mix = v2.RandomChoice(list(mixes))

    def __call__(self, batch: list[dict]) -> list[dict]:
        images = torch.stack([x["image"] for x in batch]).float()
        labels = torch.tensor([x["label"] for x in batch])
        images, labels = self.mix(images, labels)
        return [{**x, "image": image, "label": label} for x, image, label in zip(batch, images, labels)]
