"""InterNet, Table 1 (d) OT: the paper's best."""

from .common.transport import transport
from .internet_r101_fpn_800 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.intertwiner.update(large_source="d", transport=transport)
del transport
