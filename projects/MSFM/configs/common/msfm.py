"""ResNet-50 with MSFM in the paper's final setting (Table 3, row "2, 3"); every knob is here."""

from detectron2.config import LazyCall as L
from projects.MSFM import MSFMSpec, make_msfm_stages

stages = L(make_msfm_stages)(
    depth=50,
    msfm=L(MSFMSpec)(
        positions=[2, 3],
        stages=["res3", "res4", "res5"],
        ratios=[16, 32, 64],  # of those stages
        norm_groups=[8, 4, 32],  # at positions 1, 2, 3
        scales=[0.5, 0.7, 1.0, 1.4, 2.0],
        conv_num=2,
        conv_num_small=0,  # 0: conv_num; 1: the paper's "2*"
        fusion="add",
        align_corners=False,  # ours, as everything below
        squeeze_bias=True,
        squeeze_norm=True,
        zero_init=True,
        out_relu=False,
        impl="folded",
    ),
    res2_channels=256,
    norm="FrozenBN",
    stride_in_1x1=False,
    num_groups=1,
    width_per_group=64,
    deform_on_per_stage=[False, False, False, False],
    deform_modulated=False,
    deform_num_groups=1,
)
