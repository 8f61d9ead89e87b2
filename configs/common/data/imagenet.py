"""ImageNet-1k, or any images in one folder a class: random resized crops and flips, centre crops for the test.

`imagenet/train` and `imagenet/val` lie below $DETECTRON2_DATASETS.
"""

from omegaconf import OmegaConf
from torchvision.transforms import v2

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts
from shared.classification import ClassificationEvaluator, ClassificationMapper, register_image_folder

dataloader = OmegaConf.create()

dataloader.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names=L(register_image_folder)(root="imagenet/train")),
    mapper=L(ClassificationMapper)(
        transforms=[L(v2.RandomResizedCrop)(size=224), L(v2.RandomHorizontalFlip)(p=0.5)], image_format="RGB"
    ),
    total_batch_size=256,
    aspect_ratio_grouping=False,
    num_workers=8,
    collate_fn=None,  # L(MixBatch)(...) mixes images
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names=L(register_image_folder)(root="imagenet/val")),
    mapper=L(ClassificationMapper)(
        transforms=[L(v2.Resize)(size=256), L(v2.CenterCrop)(size=224)], image_format="${...train.mapper.image_format}"
    ),
    batch_size=32,  # a process
    num_workers=8,
)

dataloader.evaluator = L(ClassificationEvaluator)(dataset_name="${..test.dataset.names}")
