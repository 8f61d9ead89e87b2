"""ResNet-20 on CIFAR-10, stages aligned by ot_debiased in the place of OT."""

from .cifar10_resnet20_ot import dataloader, lr_multiplier, model, optimizer, train

model.transport.loss = "ot_debiased"
