"""Control of equal size (ours): make-up unit and critic fusion, no intertwiner. The paper has none."""

from .internet_r50_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.intertwiner = None
