"""Helpers for tests."""

import os
import tempfile

import torch
from omegaconf import DictConfig

from detectron2 import model_zoo
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.structures import Instances


def random_boxes(num_boxes: int, max_coord: float = 100, device="cpu") -> torch.Tensor:
    """(num_boxes, 4) non-empty xyxy boxes: corner and size at least 1, at most max_coord / 2."""
    boxes = (torch.rand(num_boxes, 4, device=device) * (max_coord / 2)).clamp_(min=1.0)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def get_model_no_weights(config_path: str) -> torch.nn.Module:
    """The model of a zoo config with its initial weights, on the CPU if there is no CUDA."""
    cfg = model_zoo.get_config(config_path)
    if not isinstance(cfg, CfgNode):
        return instantiate(cfg.model)
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    return build_model(cfg)


def reload_lazy_config(cfg: DictConfig) -> DictConfig:
    """What is left of a lazy config after saving and loading it."""
    with tempfile.TemporaryDirectory(prefix="detectron2") as folder:
        filename = os.path.join(folder, "config.yaml")
        LazyConfig.save(cfg, filename)
        return LazyConfig.load(filename)


def assert_instances_allclose(
    input: Instances, other: Instances, *, rtol: float = 1e-5, msg: str = "", size_as_tensor: bool = False
) -> None:
    """Equal image sizes (with or without `size_as_tensor`, tensors too) and fields; floats may differ by rtol of the
    field's largest magnitude. ValueError for fields without a tensor."""
    sizes = [[int(side) for side in x.image_size] for x in (input, other)]
    assert sizes[0] == sizes[1], f"{msg}: image sizes {sizes[0]} and {sizes[1]}"
    names = sorted(input.get_fields())
    assert names == sorted(other.get_fields()), f"{msg}: fields differ from {names}"
    for name in names:
        a, b = (getattr(x.get(name), "tensor", x.get(name)) for x in (input, other))
        if not isinstance(a, torch.Tensor):
            raise ValueError(f"{msg}: cannot compare field {name!r} of type {type(a).__name__}.")
        atol = rtol * a.abs().max().item() if a.is_floating_point() and a.numel() else 0.0
        torch.testing.assert_close(b, a, rtol=0.0, atol=atol, msg=lambda m, name=name: f"{msg}: {name} differs: {m}")
