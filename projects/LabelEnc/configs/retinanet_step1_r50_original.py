"""RetinaNet, step 1 in the released code's first schedule: 40k without the distance, drops after 80k and 105k."""

from .retinanet_step1_r50 import dataloader, lr_multiplier, model, optimizer, train

model.label_enc.warmup_iters.share = 40 / 120
lr_multiplier.drops = [80 / 120, 105 / 120]
train.output_dir = "./output/labelenc/retinanet_step1_r50_original"
