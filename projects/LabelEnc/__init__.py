"""LabelEnc: intermediate supervision by a label encoding function (ECCV 2020, arXiv:2007.03282)."""

from shared.modeling import mobilenet

from .config import add_labelenc_config
from .encoder import LabelEncoder, LabelMaps
from .export import export_step1, merge_step1, read_step1
from .label_enc import LabelEnc
from .mapper import LabelMaskMapper
from .meta_arch import LabelEncFCOS, LabelEncGeneralizedRCNN, LabelEncMixin, LabelEncRetinaNet
