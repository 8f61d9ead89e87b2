"""A6: weights are scores relative to the bag's best, not of ranks."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.weight_fn = "score_norm"
