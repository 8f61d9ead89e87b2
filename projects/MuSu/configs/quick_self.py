"""Control: quick.py with self-supervision; each head ranks by its own score."""

from .quick import dataloader, lr_multiplier, model, optimizer, train

model.assigner.update(mix_own_cls=1.0, mix_own_reg=1.0)
train.output_dir = "./output/musu_quick_self"
