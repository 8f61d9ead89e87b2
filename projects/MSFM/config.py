"""MSFM's keys of the CfgNode route; their values are `MSFMSpec`'s own defaults."""

from dataclasses import fields

from detectron2.config import CfgNode
from shared.config import register_project_config

from .spec import MSFMSpec


@register_project_config
def add_msfm_config(cfg: CfgNode) -> None:
    """MODEL.MSFM: every value of `MSFMSpec` in capitals, and ENABLED. The ResNet itself is MODEL.RESNETS'."""
    node = cfg.MODEL.MSFM = CfgNode()
    node.ENABLED = True  # False: the builders' plain ResNet
    for field in fields(MSFMSpec):
        value = field.default
        node[field.name.upper()] = list(value) if isinstance(value, tuple) else value


def spec_of(cfg: CfgNode) -> MSFMSpec:
    """The `MSFMSpec` of MODEL.MSFM."""
    return MSFMSpec(**{field.name: cfg.MODEL.MSFM[field.name.upper()] for field in fields(MSFMSpec)})
