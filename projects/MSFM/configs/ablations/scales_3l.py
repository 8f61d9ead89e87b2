"""Table 2, Scales: 3L."""

from .default import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.scales = [1.0, 1.4, 2.0]
