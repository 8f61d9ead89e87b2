"""ResNet-20 on CIFAR-10 with OT between its stages, the critics H as initialised: trained ones can collapse."""

from .cifar10_resnet20_ot import dataloader, lr_multiplier, model, optimizer, train

model.transport.critic_mode = "frozen"
