"""LIP's keys of the CfgNode route; their values are `Pooling`'s and the backbones' own defaults."""

from detectron2.config import CfgNode
from shared.config import register_project_config

from . import densenet, resnet
from .pooling import Pooling


@register_project_config
def add_lip_config(cfg: CfgNode) -> None:
    """MODEL.LIP. LIP-ResNet takes depth, widths, norm and DCN from MODEL.RESNETS, DenseNet from MODEL.LIP.DENSENET."""
    default = Pooling()
    lip = cfg.MODEL.LIP = CfgNode()
    lip.POOL = default.kind  # at every site: lip, softpool, detail, average or max
    lip.LOGIT = default.logit  # bottleneck, projection, simplified or plain
    lip.LOGIT_WIDTH = default.width  # N of Bottleneck-N
    lip.GATE = default.gate  # coefficient of the sigmoid; None: logits without a gate
    lip.LOGIT_INIT = default.init  # zero_conv, zero_gamma or random
    lip.SITES = list(resnet.SITES)  # also single branches: res3.main, res3.shortcut
    lip.KERNEL_AFTER = 1  # of the main branch's convolution after the pooling
    lip.FREEZE_STEM_POOL = True  # whether FREEZE_AT holds for the stem's logit module
    lip.DENSENET = CfgNode()
    lip.DENSENET.NORM = "FrozenBN"
    lip.DENSENET.LOGIT_INIT = "random"  # what the published LIP-DenseNet started from
    lip.DENSENET.SITES = list(densenet.SITES)
    lip.DENSENET.OUT_FEATURES = list(densenet.STAGES)


def pooling_of(cfg: CfgNode, init: str) -> Pooling:
    """The `Pooling` of MODEL.LIP with this init of its logit modules."""
    lip = cfg.MODEL.LIP
    return Pooling(kind=lip.POOL, logit=lip.LOGIT, width=lip.LOGIT_WIDTH, gate=lip.GATE, init=init)
