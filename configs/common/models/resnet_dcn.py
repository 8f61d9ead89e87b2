"""ResNet stages with deformable convolutions in res3-res5 (c3-c5, arXiv:1703.06211)."""

from detectron2.config import LazyCall as L
from shared.modeling.resnet import resnet_stages

stages = L(resnet_stages)(
    depth=50,
    norm="FrozenBN",
    stride_in_1x1=True,
    deform_on_per_stage=[False, True, True, True],
    deform_modulated=False,
    deform_num_groups=1,
)
