"""fvcore's deterministic transforms, ours, and the augmentations that choose them at random."""

from fvcore.transforms.transform import *

from .augmentation import *
from .augmentation_impl import *
from .transform import *
