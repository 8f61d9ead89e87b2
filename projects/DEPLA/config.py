"""DEPLA's and FishNet's keys of the CfgNode route; their values are the constructors' own defaults."""

from detectron2.config import CfgNode
from shared.config import register_project_config
from shared.modeling.fishnet import FEATURES

from .depla import DEPLASpec
from .fpn import FPN_SPEC
from .resnet import LAST_THREE


@register_project_config
def add_depla_config(cfg: CfgNode) -> None:
    """MODEL.DEPLA (sites in a ResNet or FishNet), MODEL.DEPLA_FPN (sites in FPN) and MODEL.FISHNET.

    ResNets take depth, widths and norm from MODEL.RESNETS.
    """
    node = cfg.MODEL.DEPLA = _node(DEPLASpec())
    node.STAGE = "res4"
    node.BLOCKS = list(LAST_THREE)  # of the stage; negative ones count from the end
    node.SE_RATIO = 0  # 16: SE-ResNet
    cfg.MODEL.DEPLA_FPN = _node(FPN_SPEC)
    fish = cfg.MODEL.FISHNET = CfgNode()
    fish.DEPTH = 150  # or 99, 201
    fish.WIDTH = 64
    fish.NORM = "BN"
    fish.OUT_FEATURES = list(FEATURES)
    fish.TAP = "refined"  # or concat
    fish.OUT_NORM_ACT = True


def _node(spec: DEPLASpec) -> CfgNode:
    node = CfgNode()
    node.ENABLED = True  # False: the builders' plain host
    node.L = spec.num_groups
    node.C_MID = spec.mid_channels
    node.D = spec.maps_per_group
    node.TEMPERATURE = spec.temperature
    node.BFN = spec.back_filling  # plain or adaptive
    node.MAP_SCALE = spec.map_scale  # peak, area or none
    node.KEEP_SUM = spec.keep_sum
    node.NORM = spec.norm  # of the last convolution: "", BN, SyncBN
    node.ZERO_INIT = spec.zero_init
    node.IMPL = spec.impl  # auto, fused, reference or sdpa
    node.MASK_PADDING = spec.mask_padding  # wants META_ARCHITECTURE PaddingMaskRCNN
    return node


def spec_of(node: CfgNode) -> DEPLASpec | None:
    """The `DEPLASpec` of MODEL.DEPLA or MODEL.DEPLA_FPN; None where it is not ENABLED."""
    if not node.ENABLED:
        return None
    return DEPLASpec(
        num_groups=node.L,
        mid_channels=node.C_MID,
        maps_per_group=node.D,
        temperature=node.TEMPERATURE,
        back_filling=node.BFN,
        map_scale=node.MAP_SCALE,
        keep_sum=node.KEEP_SUM,
        norm=node.NORM,
        zero_init=node.ZERO_INIT,
        impl=node.IMPL,
        mask_padding=node.MASK_PADDING,
    )
