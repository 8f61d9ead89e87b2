"""Control: quick.py with hard labels at every location inside an object, the smallest object first."""

from .quick import dataloader, lr_multiplier, model, optimizer, train

model.assigner.update(bag_filter="none", conflict="min_area", weight_fn="hard")
train.output_dir = "./output/musu_quick_hard"
