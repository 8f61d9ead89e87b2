"""MODEL.LABELENC: the keys of LabelEnc's YAML form."""

import inspect

from detectron2.config import CfgNode
from shared.config import register_project_config

from .label_enc import LabelEnc


@register_project_config
def add_labelenc_config(cfg: CfgNode) -> None:
    """The arguments of `LabelEnc` in capitals, with its defaults: MODE, SOURCE, PIXEL_OFFSET, AUG_STEP1, ..."""
    node = cfg.MODEL.LABELENC = CfgNode()
    for name, parameter in inspect.signature(LabelEnc).parameters.items():
        node[name.upper()] = parameter.default


def label_enc_of(cfg: CfgNode) -> LabelEnc:
    """The LabelEnc that MODEL.LABELENC describes."""
    return LabelEnc(**{name.lower(): value for name, value in cfg.MODEL.LABELENC.items()})
