"""LabelEnc's module, every knob at the released code's setting; step1.py and step2.py make the two steps of it."""

from detectron2.config import LazyCall as L
from projects.LabelEnc import LabelEnc
from shared.solver import iterations

label_enc = L(LabelEnc)(
    mode="step1",
    # label maps
    source="box",
    pixel_offset=0.5,  # ours, for Detectron2's continuous boxes; 0 as released
    aug_step1=True,
    aug_step2=False,
    # encoder
    stem_out=128,
    stem_act="",
    res2_out=256,
    blocks=[1, 2, 2, 1],  # sec. 3.3
    init="official",
    gather_classes=True,  # ours, exact
    fold_stem=True,  # ours, exact
    # distance, Eq. (10)
    adapt_convs=3,
    adapt_shared=True,
    dist_norm="chw",
    dist_reduction="mean",
    # Eq. (9) and (7)
    weight_rec=1.0,
    weight_det=1.0,
    weight_dis=1.0,
    warmup_iters=L(iterations)(max_iter="${train.max_iter}", share=1 / 4),  # step 1: 30k of 120k without the distance
    aux_loss_iters=L(iterations)(max_iter="${train.max_iter}", share=8 / 9),  # step 2: 80k of 90k with it
    # from step 1, or from the teacher of mode "kd"
    step1_weights="",
    init_head=True,
    init_fpn="encoder",
    teacher_config="",
    teacher_weights="",
    input_format="",  # RGB or BGR, for "kd" in hosts that do not say it
)
