"""InterNet, Table 1 (d) OT with the critic H as initialised (ours): a trained one can collapse."""

from .internet_r101_fpn_800_d_ot import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.intertwiner.transport.critic_mode = "frozen"
