"""Configs by name, e.g. "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml", and their weights."""

import os
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model

BUCKET = "https://dl.fbaipublicfiles.com/detectron2/"
CHECKPOINTS = {  # config without extension: the rest of the address
    "COCO-Detection/faster_rcnn_R_50_FPN_1x": "137257794/model_final_b275ba.pkl",
    "COCO-Detection/faster_rcnn_R_50_FPN_3x": "137849458/model_final_280758.pkl",
    "COCO-Detection/faster_rcnn_R_101_FPN_3x": "137851257/model_final_f6e8b1.pkl",
    "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x": "139173657/model_final_68b088.pkl",
    "COCO-Detection/retinanet_R_50_FPN_1x": "190397773/model_final_bfca0b.pkl",
    "COCO-Detection/retinanet_R_50_FPN_3x": "190397829/model_final_5bd44e.pkl",
    "COCO-Detection/retinanet_R_101_FPN_3x": "190397697/model_final_971ab9.pkl",
    "COCO-Detection/rpn_R_50_FPN_1x": "137258492/model_final_02ce48.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": "137260431/model_final_a54504.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x": "137849600/model_final_f10217.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x": "138205316/model_final_a3ec72.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x": "139653917/model_final_2d9806.pkl",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x": "138602847/model_final_e9d89b.pkl",
    "Misc/cascade_mask_rcnn_R_50_FPN_3x": "144998488/model_final_480dd8.pkl",
    "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5": "138602867/model_final_65c703.pkl",
    "Misc/mask_rcnn_R_50_FPN_3x_gn": "138602888/model_final_dc5d9e.pkl",
    "Misc/mask_rcnn_R_50_FPN_3x_syncbn": "169527823/model_final_3b3c51.pkl",
    "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn": "138602908/model_final_01ca85.pkl",
}


def get_checkpoint_url(config_path: str) -> str:
    """Address of the trained weights; RuntimeError if there are none."""
    name = os.path.splitext(config_path)[0]
    if name not in CHECKPOINTS:
        raise RuntimeError(f"{name} has no trained weights in the model zoo. These have: {', '.join(CHECKPOINTS)}.")
    return f"{BUCKET}{name}/{CHECKPOINTS[name]}"


def get_config_file(config_path: str) -> str:
    """Path of a config of the zoo, relative to its folder `configs`; RuntimeError if missing."""
    file = Path(__file__).parent / "configs" / config_path
    if not file.is_file():
        raise RuntimeError(f"{config_path} is not in the model zoo ({file.parent}).")
    return str(file)


def get_config(config_path: str, trained: bool = False) -> CfgNode | DictConfig:
    """A CfgNode for .yaml, a DictConfig for .py; trained: with the zoo's weights for it."""
    file = get_config_file(config_path)
    if file.endswith(".yaml"):
        cfg = get_cfg()
        cfg.merge_from_file(file)
        if trained:
            cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
        return cfg
    cfg = LazyConfig.load(file)
    if trained:
        cfg.train.init_checkpoint = get_checkpoint_url(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """The model with its weights (trained, or those that training starts from), in training mode.
    device: default the config's, or the CPU of a machine without CUDA."""
    cfg = get_config(config_path, trained)
    device = device or (None if torch.cuda.is_available() else "cpu")
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
        model, weights = build_model(cfg), cfg.MODEL.WEIGHTS
    else:
        model, weights = instantiate(cfg.model).to(device or cfg.train.device), cfg.train.init_checkpoint
    DetectionCheckpointer(model).load(weights)
    return model
