"""LIP: local importance-based pooling (arXiv:1908.04156). Importing it registers the backbones and MODEL.LIP."""

from . import backbones
from .config import add_lip_config
from .densenet import DenseNet
from .pooling import LIPPool2d, Pooling
from .resnet import LIPBottleneckBlock, LIPStem, lip_resnet
