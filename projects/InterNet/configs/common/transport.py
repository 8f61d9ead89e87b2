"""The OT module of Table 1 (d): `model.roi_heads.intertwiner.update(large_source="d", transport=transport)`."""

from detectron2.config import LazyCall as L
from projects.InterNet import ScaleOT

transport = L(ScaleOT)(
    channels="${....backbone.out_channels}",
    num_levels=4,
    loss="ot",
    weight=1.0,
    eps=0.1,
    iters=10,
    pairs="adjacent",  # the authors' code: one F and one H a level
    generator="conv_up_conv",  # ours: the paper has two convolutions with small kernels
    critic_mode="trained",
    backprop_plan=False,
    log_domain=False,
    norm="${...makeup.norm}",
)
