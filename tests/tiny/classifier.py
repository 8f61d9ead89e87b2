"""A classifier small enough for a test: ResNet-8 on 16 px images, classes and data left to the command line."""

from omegaconf import OmegaConf
from torchvision.transforms import v2

from detectron2.config import LazyCall as L

from ...configs.common.data.imagenet import dataloader
from ...configs.common.models.classifier_cifar_resnet import model
from ...configs.common.optim import SGD as optimizer
from ...configs.common.schedule import steps as lr_multiplier
from ...configs.common.train import train

model.backbone.depth = 8
model.num_classes = None
dataloader.train.dataset.names.root = "???"
dataloader.train.mapper.transforms = [L(v2.Resize)(size=[16, 16])]
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 0
dataloader.test.dataset.names.root = "???"
dataloader.test.mapper.transforms = [L(v2.Resize)(size=[16, 16])]
dataloader.test.batch_size = 2
dataloader.test.num_workers = 0
optimizer.lr = 0.05
lr_multiplier.warmup_iters = 0
train = OmegaConf.merge(
    train, dict(max_iter=4, eval_period=0, device="cpu", seed=1, log_period=1, checkpointer=dict(period=2))
)
