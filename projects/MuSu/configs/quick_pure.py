"""Control: quick.py, pure mutual; each head sees only the other's score."""

from .quick import dataloader, lr_multiplier, model, optimizer, train

model.assigner.update(mix_own_cls=0.0, mix_own_reg=0.0)
train.output_dir = "./output/musu_quick_pure"
