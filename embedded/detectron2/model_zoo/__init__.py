"""Detectron2's well known models: their configs and the addresses of their weights."""

from .model_zoo import get, get_checkpoint_url, get_config, get_config_file
