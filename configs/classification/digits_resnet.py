"""ResNet-8 on scikit-learn's handwritten digits: a minute on two CPU cores, from nothing."""

from omegaconf import OmegaConf

from ..common.data.digit_images import dataloader
from ..common.models.classifier_cifar_resnet import model
from ..common.optim import SGD as optimizer
from ..common.schedule import cosine as lr_multiplier
from ..common.train import train

model.backbone.depth = 8
# of the training images
model.pixel_mean = [77.8, 77.8, 77.8]
model.pixel_std = [95.9, 95.9, 95.9]

optimizer.lr = 0.1
optimizer.weight_decay = 5e-4
lr_multiplier.update(warmup_iters=20, warmup_factor=0.01)

train = OmegaConf.merge(
    train,
    dict(
        output_dir="./output/digits_resnet",
        max_iter=400,
        eval_period=100,
        checkpointer=dict(period=200),
        ema=dict(enabled=True, decay=0.98),
        device="cpu",
        seed=0,
    ),
)
