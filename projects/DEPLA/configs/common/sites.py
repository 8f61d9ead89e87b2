"""What stands at the sites: in backbones (the paper's values for ResNet) and in FPN; every knob of DEPLA is here."""

from detectron2.config import LazyCall as L
from projects.DEPLA.depla import DEPLASpec

backbone_depla = L(DEPLASpec)(
    num_groups=16,  # L
    mid_channels=16,  # C'; 128 in the _wide configs
    maps_per_group=4,  # D
    temperature=1.0,
    back_filling="plain",  # or adaptive
    map_scale="peak",  # ours
    keep_sum=False,  # Y enters through the pooled vectors alone, as the text has it
    norm="",
    zero_init=True,  # ours
    impl="auto",
    mask_padding=False,
)

fpn_depla = L(DEPLASpec)(
    num_groups=16,
    mid_channels=16,
    maps_per_group=4,
    temperature=0.5,  # the best AP of Table 4
    back_filling="adaptive",
    map_scale="peak",
    keep_sum=True,  # ours: FPN's own sum stays
    norm="",
    zero_init=True,
    impl="auto",
    mask_padding=False,
)
