"""Saving and loading of models, also of weights under other libraries' names."""

from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from . import catalog  # makes the PathManager open catalog:// paths
from .detection_checkpoint import DetectionCheckpointer
