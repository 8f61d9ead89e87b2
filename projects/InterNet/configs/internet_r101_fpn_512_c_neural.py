"""InterNet, Table 1 (c) neural; with detach nothing trains the generators, see c_neural_no_detach."""

from .common.transport import transport
from .internet_r101_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

transport.loss = "none"
model.roi_heads.intertwiner.update(large_source="c_neural", transport=transport)
del transport
