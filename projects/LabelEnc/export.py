"""What step 1 leaves for step 2: the encoder and the head (LabelEnc, arXiv:2007.03282, Secs. 3.2, 3.3)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shared.checkpoint import NOT_WEIGHTS, WeightsCheckpointer, check_weights_file
from shared.errors import UserError

ENCODER, BACKBONE, BODY = "label_enc.encoder.", "backbone.", "bottom_up."


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def head_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All but the backbone with its FPN, and LabelEnc's own."""
    return {
        k: v for k, v in state.items() if not k.startswith((BACKBONE, "label_enc.")) and not k.endswith(NOT_WEIGHTS)
    }


def fpn_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of an FPN without the network that it stands on; `state`: of the FPN alone."""
    return {k: v for k, v in state.items() if not k.startswith(BODY)}


def export_step1(source: nn.Module | Mapping) -> dict:
    """A step-1 model, or its checkpoint (with or without "model"), to {"encoder", "head", "meta"}, all on the CPU.

    meta: format, torch's version, num_classes, channels; from a model also host and levels, {name: stride}. Save it
    with torch.save; `step1_weights` reads it. UserError without an encoder.
    """
    is_model = isinstance(source, nn.Module)
    state = source.state_dict() if is_model else source.get("model", source)
    state = {k: v.detach().cpu().clone() for k, v in state.items() if isinstance(v, Tensor)}
    encoder = below(state, ENCODER)
    if not encoder:
        raise UserError(f"This is no model of LabelEnc's step 1: it has no entries {ENCODER}*.")
    meta = {"format": 1, "torch": str(torch.__version__), "num_classes": encoder["bottom_up.stem.weight"].shape[1]}
    meta["channels"] = next(v.shape[0] for k, v in encoder.items() if k.startswith("fpn_output"))
    return {"encoder": encoder, "head": head_of(state), "meta": {**meta, **(describe(source) if is_model else {})}}


def describe(model: nn.Module) -> dict:
    """Of a model with LabelEnc: host, num_classes, channels, levels."""
    levels = model.backbone.output_shape()
    return {
        "host": type(model).__name__.removeprefix("LabelEnc"),
        "num_classes": getattr(model, "roi_heads", model).num_classes,
        "channels": next(iter(levels.values())).channels,
        "levels": {name: shape.stride for name, shape in levels.items()},
    }


def read_step1(path: str) -> dict:
    """What `export_step1` returned, from its file or a whole checkpoint of step 1, which adds "fpn": the detector's.

    UserError for a file that is neither.
    """
    check_weights_file(path)
    if not path.endswith(".pth"):
        raise UserError(f"Step-1 weights {path!r} must be a .pth file.")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if {"encoder", "head", "meta"} <= content.keys():
        return content
    return {**export_step1(content), "fpn": fpn_of(below(content.get("model", content), BACKBONE))}


def merge_step1(model: nn.Module, weights: str) -> dict[str, dict[str, Tensor]]:
    """{"model": ...}: one checkpoint that starts step 2 in any training script, as train_net.py starts it.

    model: of a step-2 config with `step1_weights`; its tensors change. weights: the backbone's, ImageNet's for example.
    A script that begins with the result needs no `step1_weights`.
    """
    checkpointer = WeightsCheckpointer(model)
    checkpointer.load(weights, checkpointables=[])
    checkpointer.require(weights, every=False)
    checkpointer.begin_new_run()
    return {"model": {k: v.cpu() for k, v in model.state_dict().items()}}
