"""LIP-DenseNet-121 (Bottleneck-128 at all four sites), as a detector's `bottom_up`; without sites the plain host."""

from detectron2.config import LazyCall as L
from projects.LIP.densenet import DenseNet
from projects.LIP.pooling import Pooling

bottom_up = L(DenseNet)(
    norm="FrozenBN",
    pooling=L(Pooling)(kind="lip", logit="bottleneck", width=128, gate=12.0, init="random"),
    sites=["stem", "dense3", "dense4", "dense5"],
    out_features=["dense2", "dense3", "dense4", "dense5"],
    freeze_at=2,  # stem and dense2
    freeze_stem_pool=True,
)
