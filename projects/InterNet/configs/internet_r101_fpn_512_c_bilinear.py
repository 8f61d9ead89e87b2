"""InterNet, Table 1 (c): the large objects' level resized."""

from .common.transport import transport
from .internet_r101_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

transport.update(loss="none", generator="bilinear")
model.roi_heads.intertwiner.update(large_source="c_bilinear", transport=transport)
del transport
