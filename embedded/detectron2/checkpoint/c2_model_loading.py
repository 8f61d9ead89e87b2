"""Weights under other names: Caffe2's, and parts of a model by the end of their names."""

import logging
import re

import torch

logger = logging.getLogger(__name__)

_C2_RENAMES = [  # (regular expression, replacement), applied in this order after "_" has become "."
    (r"\.[bg]n\.(s|gamma)$", ".norm.weight"),
    (r"\.[bg]n\.(b|beta|bias)$", ".norm.bias"),
    (r"\.bn\.(rm|running\.mean)$", ".norm.running_mean"),
    (r"\.bn\.(riv|running\.var)$", ".norm.running_var"),
    (r"\.w$", ".weight"),
    (r"\.b$", ".bias"),
    # ResNet
    (r"^(res\.)?conv1\.", "stem.conv1."),
    (r"\.branch1\.", ".shortcut."),
    (r"\.branch2a\.", ".conv1."),
    (r"\.branch2b\.", ".conv2."),
    (r"\.branch2c\.", ".conv3."),
    (r"^pred\.", "linear."),
    # FPN: "fpn.res4.5.sum" is what comes after block 5 of stage 4
    (r"^fpn\.inner\.res(\d)\.\d+\.sum\.(lateral\.)?", r"fpn_lateral\1."),
    (r"^fpn\.res(\d)\.\d+\.sum\.", r"fpn_output\1."),
    # heads
    (r"^conv\.rpn\.(fpn\d\.)?", "proposal_generator.rpn_head.conv."),
    (r"^rpn\.cls\.logits\.(fpn\d\.)?", "proposal_generator.rpn_head.objectness_logits."),
    (r"^rpn\.bbox\.pred\.(fpn\d\.)?", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^fc6\.", "box_head.fc1."),
    (r"^fc7\.", "box_head.fc2."),
    (r"^head\.conv", "box_head.conv"),
    (r"^cls\.score\.", "cls_score."),
    (r"^bbox\.pred\.", "bbox_pred."),
    (r"^\.\[mask\]\.fcn", "mask_head.mask_fcn"),
    (r"^conv5\.mask\.", "mask_head.deconv."),
    (r"^mask\.fcn\.logits\.", "mask_head.predictor."),
]


def convert_c2_detectron_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Caffe2 names to ours. Rows of the background, first there, move to our layout: last in the classifier, absent
    from box regression and masks."""
    logger.info("Renaming Caffe2 weights ......")
    converted = {}
    for old, value in weights.items():
        name = old.replace("_", ".")
        for pattern, new in _C2_RENAMES:
            name = re.sub(pattern, new, name)
        layer = name.rpartition(".")[0]
        if layer == "cls_score":
            value = torch.cat([value[1:], value[:1]])
        background_rows = {"bbox_pred": 4, "mask_head.predictor": 1}.get(layer, 0)
        converted[name] = value[background_rows:] if background_rows else value
    return converted


def _longest_suffix(key: str, names) -> str | None:
    """The longest of `names` that is `key`, or what follows one of its dots."""
    while key and key not in names:
        key = key.partition(".")[2]
    return key or None


def align_and_update_state_dicts(
    model_state_dict: dict[str, torch.Tensor], ckpt_state_dict: dict[str, torch.Tensor], c2_conversion: bool = True
) -> dict[str, torch.Tensor]:
    """The checkpoint under the model's names; what is not matched keeps its name.
    A model key takes the longest checkpoint key that equals it or is a suffix of it after a dot:
    `stem.conv1.weight` goes to `backbone.bottom_up.stem.conv1.weight`. Weights of another shape are skipped with a
    warning. ValueError: a checkpoint key fits several model keys."""
    if c2_conversion:
        ckpt_state_dict = convert_c2_detectron_names(ckpt_state_dict)
    model_key_of: dict[str, str] = {}  # by checkpoint key
    for model_key in sorted(model_state_dict):
        key = _longest_suffix(model_key, ckpt_state_dict)
        if key is None:
            continue
        shape, wanted = tuple(ckpt_state_dict[key].shape), tuple(model_state_dict[model_key].shape)
        if shape != wanted:
            logger.warning(f"{key} of shape {shape} is not loaded: {model_key} of the model has shape {wanted}.")
        elif key in model_key_of:
            raise ValueError(
                f"Cannot match one checkpoint key to multiple keys in the model: {key} fits {model_key_of[key]} and "
                f"{model_key}. Rename it in the checkpoint."
            )
        else:
            model_key_of[key] = model_key
    if not model_key_of:
        logger.warning("No weights in checkpoint matched with model.")
        return ckpt_state_dict
    logger.info(f"Matched {len(model_key_of)} of {len(ckpt_state_dict)} weights by their names.")
    return {model_key_of.get(key, key): value for key, value in ckpt_state_dict.items()}
