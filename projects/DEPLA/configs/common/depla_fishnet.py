"""FishNet-150 with DEPLA as a classifier's backbone; aggregation null is the host."""

from detectron2.config import LazyCall as L
from shared.modeling.fishnet import FishNet

from .sites import backbone_depla

backbone = L(FishNet)(
    depth=150,
    width=64,
    norm="BN",
    aggregation=backbone_depla,  # the paper gives no values for FishNet
    tap="refined",
    out_norm_act=True,
    out_features=["final"],
    freeze_at=0,
)
