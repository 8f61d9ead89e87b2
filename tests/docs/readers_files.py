"""What a reader of the documentation has: small stand-ins of COCO and ImageNet, own data, others' weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

from detectron2.data import MetadataCatalog
from shared.config import load_config
from shared.training.run import make_run
from tests.paths import ROOT
from tests.projects.lip.test_import_weights import official
from tests.scenes import make_coco

SIZE = 96  # px


def make_coco_2017(datasets: Path) -> None:
    """Four images for training and two for validation, with masks; COCO's 80 classes, of which three occur."""
    ids = MetadataCatalog.get("coco_2017_train").thing_dataset_id_to_contiguous_id
    names = MetadataCatalog.get("coco_2017_train").thing_classes
    for split, count, seed in (("train2017", 4, 0), ("val2017", 2, 1)):
        file, images = make_coco(datasets / "coco" / f".{split}", images=count, size=SIZE, seed=seed)
        content = json.loads(file.read_text())
        content["categories"] = [{"id": i, "name": names[k]} for i, k in ids.items()]
        target = datasets / "coco/annotations" / f"instances_{split}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(content))
        shutil.move(images, datasets / "coco" / split)


def make_imagenet(datasets: Path) -> None:
    """1000 classes with one picture each."""
    picture = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    for split in ("train", "val"):
        for k in range(1000):
            folder = datasets / "imagenet" / split / f"n{k:04d}"
            folder.mkdir(parents=True)
            Image.fromarray(np.roll(picture, k, axis=1)).save(folder / "0.png")


def make_users_files(folder: Path) -> None:
    """Own data, pictures, and weights with the names and shapes of the published ones."""
    for name, images, seed in (("train", "images", 0), ("val", "val_images", 1)):
        file, pictures = make_coco(folder / f".{name}", images=3, size=SIZE, seed=seed)
        shutil.move(file, folder / f"{name}.json")
        shutil.move(pictures, folder / images)
    shutil.copytree(folder / "val_images", folder / "photos")
    for name in ("image.png", "example.png"):
        shutil.copy(folder / "images/0.png", folder / name)
    generator = torch.Generator().manual_seed(0)
    weights = official(50)
    for name, value in weights.items():  # of a network that could have been trained
        if name.endswith("running_var"):
            value.fill_(1)
        elif value.ndim == 4:
            torch.nn.init.kaiming_normal_(value, generator=generator)
    torch.save(weights, folder / "lip_resnet-50.pth")
    resnet = torchvision.models.resnet50()
    torch.nn.init.normal_(resnet.fc.weight, std=0.01, generator=generator)
    torch.save(resnet.state_dict(), folder / "resnet50-0676ba61.pth")
    config = load_config(str(ROOT / "configs/baselines/faster_rcnn_r50_fpn_1x.py"), ["train.device=cpu"])
    torch.save({"model": make_run(config).build_model().state_dict()}, folder / "faster_rcnn.pth")
