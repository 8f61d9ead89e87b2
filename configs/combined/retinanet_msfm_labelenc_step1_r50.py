"""RetinaNet, R-50-FPN with MSFM, step 1 of LabelEnc. In no paper.

Data and weights are MSFM's; drops and length are LabelEnc's step 1.
"""

from projects.combine import combine

from ...projects.LabelEnc.configs.common.step1 import lr_multiplier as _step1
from ...projects.LabelEnc.configs.common.step1 import train as _step1_train
from ...projects.MSFM.configs.retinanet_msfm_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model = combine(model, "labelenc")
lr_multiplier.drops = _step1.drops
train.max_iter = _step1_train.max_iter
train.output_dir = "./output/combined/retinanet_msfm_labelenc_step1_r50"
