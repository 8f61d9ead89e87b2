"""InterNet, Table 2b: KL, weight 10."""

from .internet_r50_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.intertwiner.update(loss="kl", loss_weight=10.0)
model.roi_heads.critic.activation = "softmax"
