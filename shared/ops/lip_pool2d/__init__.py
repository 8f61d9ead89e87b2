"""Local importance-based pooling (arXiv:1908.04156)."""

from .op import lip_pool2d
from .reference import lip_pool2d_reference
