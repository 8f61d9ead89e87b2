"""Table 2, Scales: 5S."""

from .default import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.scales = [0.5, 0.6, 0.7, 0.85, 1.0]
