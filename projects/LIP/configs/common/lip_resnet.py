"""LIP-ResNet-50 (Bottleneck-128 at all seven sites), as a detector's `bottom_up`; every knob of LIP is here."""

from detectron2.config import LazyCall as L
from projects.LIP.pooling import Pooling
from projects.LIP.resnet import lip_resnet

bottom_up = L(lip_resnet)(
    depth=50,
    norm="FrozenBN",
    pooling=L(Pooling)(kind="lip", logit="bottleneck", width=128, gate=12.0, init="zero_conv"),
    sites=["stem", "res3", "res4", "res5"],
    kernel_after=1,
    deform_on_per_stage=[False, False, False, False],
    deform_modulated=False,
    zero_init_residual=False,
    out_features=["res2", "res3", "res4", "res5"],
    freeze_at=2,  # stem and res2, the stem's LIP included (ours; the authors' was probably trainable)
    freeze_stem_pool=True,
)
