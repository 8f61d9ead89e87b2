"""A3: temperatures grow with the bag's size, not its root; as large as before for 25 samples."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.update(temp_exp=1.0, temp_div_cls=10.0, temp_div_reg=5.0)
