"""MSFM: multi-scale fusion modules (ICLR 2021 submission). Importing it registers the backbones and MODEL.MSFM."""

from . import backbones
from .config import add_msfm_config
from .module import MSFM, SafeGroupNorm
from .resnet import MSFMBottleneckBlock, MSFMDeformBottleneckBlock, make_msfm_stages
from .spec import MSFMSpec
