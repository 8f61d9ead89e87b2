"""InterNet at a lower cost (ours): make-up on whole maps, RoIs of 7 x 7, the light critic."""

from detectron2.layers import ShapeSpec

from .internet_r50_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.box_pooler.output_size = 7
model.roi_heads.makeup_on = "map"
model.roi_heads.critic.variant = "light"
model.roi_heads.box_head.update(input_shape=ShapeSpec(channels=256, height=7, width=7), pool=1)
