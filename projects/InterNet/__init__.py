"""InterNet: "Feature Intertwiner for Object Detection" (ICLR 2019, arXiv:1903.11851)."""

from .assign import LevelAssigner
from .box_head import InterNetConvFCHead
from .buffer import ClassBuffer
from .cascade import InterNetCascadeROIHeads
from .classifier import StageAlignedClassifier
from .config import add_internet_config
from .intertwiner import FeatureIntertwiner
from .pooler import InterNetROIPooler
from .roi_heads import InterNetROIHeads
from .transport import ScaleOT
from .units import Critic, MakeUp
