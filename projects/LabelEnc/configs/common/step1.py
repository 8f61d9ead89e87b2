"""Step 1: 1x after 30k iterations without the distance; the learning rate drops after 90k and 110k."""

from .label_enc import label_enc
from .recipe import lr_multiplier, train

label_enc.mode = "step1"
train.max_iter = 120_000
lr_multiplier.drops = [90 / 120, 110 / 120]
