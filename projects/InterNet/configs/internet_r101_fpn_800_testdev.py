"""InterNet, Table 4: (d) OT on COCO test-dev; its results are for COCO's server."""

from .internet_r101_fpn_800_d_ot import dataloader, lr_multiplier, model, optimizer, train

dataloader.test.dataset.names = "coco_2017_test-dev"
