"""DEPLA: aggregation with feature detection (ICCV 2021). Importing it registers backbones, keys, PaddingMaskRCNN."""

from . import backbones
from .config import add_depla_config
from .depla import DEPLA, DEPLASpec, SoftRPN
from .fpn import DEPLAFPN
from .padding import PaddingMaskRCNN, image_sizes
from .resnet import DEPLABottleneckBlock, depla_resnet
