"""Small image folders in ImageNet's layout, for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.scenes import COLOURS

CLASSES = ("a_red", "b_green", "c_blue")  # in alphabetical order, as labels 0, 1, 2


def make_image_folder(folder: Path, images: int = 4, seed: int = 0) -> Path:
    """Write `images` noisy pictures of each class's colour below `folder`; returns it."""
    rng = np.random.default_rng(seed)
    for name, colour in zip(CLASSES, COLOURS, strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(images):
            noise = rng.integers(-30, 30, (20, 24, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def folder_settings(train: Path, val: Path) -> list[str]:
    """Overrides that point a classifier's config at two folders."""
    return [f"dataloader.train.dataset.names.root={train}", f"dataloader.test.dataset.names.root={val}"]
