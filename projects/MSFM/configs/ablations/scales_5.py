"""Table 2, Scales: 5."""

from .default import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.scales = [0.5, 0.7, 1.0, 1.4, 2.0]
