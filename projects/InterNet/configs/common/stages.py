"""OT between the three stages of a CIFAR ResNet; all settings are ours, the paper gives none."""

from detectron2.config import LazyCall as L
from projects.InterNet import ScaleOT

transport = L(ScaleOT)(
    channels=[16, 32, 64],
    num_levels=3,
    loss="ot",
    weight=0.1,
    eps=0.1,
    iters=10,
    pairs="adjacent",
    generator="conv_up_conv",
    critic_mode="trained",
    backprop_plan=False,
    log_domain=False,
    norm="BN",
    first_level=1,
)
