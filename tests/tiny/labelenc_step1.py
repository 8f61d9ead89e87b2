"""Step 1 of LabelEnc with the detector of retinanet.py, in which the distance begins at the third of four steps."""

from detectron2.config import LazyCall as L
from projects.LabelEnc import LabelEnc, LabelEncRetinaNet
from shared.solver import iterations

from .retinanet import dataloader, lr_multiplier, model, optimizer, train

model.update(
    _target_=LabelEncRetinaNet,
    label_enc=L(LabelEnc)(
        mode="step1",
        stem_out=8,
        res2_out=32,
        blocks=[1, 1, 1, 1],
        warmup_iters=L(iterations)(max_iter="${train.max_iter}", share=1 / 2),
        aux_loss_iters=L(iterations)(max_iter="${train.max_iter}", share=3 / 4),
        step1_weights="",
        teacher_config="",
        teacher_weights="",
    ),
)
