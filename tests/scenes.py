"""Small COCO-format sets of coloured rectangles, for tests."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ((220, 40, 40), (40, 200, 40), (40, 60, 230))


def make_coco(folder: Path, images: int = 4, objects: int = 2, size: int = 64, seed: int = 0):
    """Write images and `annotations.json` below `folder`; returns (json file, image folder).

    Category ids 2, 5 and 9 on purpose: not contiguous.
    """
    rng = np.random.default_rng(seed)
    root = Path(folder) / "images"
    root.mkdir(parents=True, exist_ok=True)
    rows, annotations = [], []
    for i in range(images):
        pixels = rng.integers(90, 130, (size, size, 3), dtype=np.uint8)
        for _ in range(objects):
            w, h = (int(v) for v in rng.integers(size // 5, size // 2, 2))
            x, y = int(rng.integers(0, size - w)), int(rng.integers(0, size - h))
            c = int(rng.integers(0, 3))
            pixels[y : y + h, x : x + w] = COLOURS[c]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": (2, 5, 9)[c],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        Image.fromarray(pixels).save(root / f"{i}.png")
        rows.append({"id": i + 1, "file_name": f"{i}.png", "width": size, "height": size})
    coco = {
        "info": {},
        "images": rows,
        "annotations": annotations,
        "categories": [{"id": 5, "name": "green"}, {"id": 2, "name": "red"}, {"id": 9, "name": "blue"}],
    }
    file = Path(folder) / "annotations.json"
    file.write_text(json.dumps(coco))
    return file, root


def own_data_flags(folder: Path) -> list[str]:
    """train_net.py's four flags for a training and a validation set below `folder`."""
    train, val = make_coco(folder / "train"), make_coco(folder / "val", images=3, seed=1)
    return [
        *("--train-json", str(train[0]), "--train-images", str(train[1])),
        *("--val-json", str(val[0]), "--val-images", str(val[1])),
    ]
