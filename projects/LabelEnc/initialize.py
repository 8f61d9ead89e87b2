"""The start of step 2 (LabelEnc, arXiv:2007.03282, Sec. 3.3) and of its control with a teacher (Sec. 4.4).

The body of the backbone keeps the weights it has, ImageNet's. The head starts from step 1's. The paper says no more;
its authors' code also starts the host's FPN, which the head reads, from the encoder's.
"""

import logging
from collections.abc import Mapping, Set

from torch import Tensor, nn

from shared.errors import UserError

from .export import BACKBONE, ENCODER, below, describe, fpn_of, head_of, read_step1

logger = logging.getLogger(__name__)


def start_from_step1(model: nn.Module, unfilled: Set[str]) -> None:
    """Load the encoder, and what `init_head` and `init_fpn` ask for, from `step1_weights`.

    unfilled: the model's entries without weights so far. Without `step1_weights` the encoder must not be among them.
    UserError for that, and for a file whose encoder or head is not the model's.
    """
    enc = model.label_enc
    if not enc.step1_weights:
        if any(name.startswith(ENCODER) for name in unfilled):
            raise UserError(
                "LabelEnc: step 2 needs the encoder that step 1 trained: set model.label_enc.step1_weights "
                "(MODEL.LABELENC.STEP1_WEIGHTS) to the file that was exported from it, or to its checkpoint."
            )
        return
    step1, own = read_step1(enc.step1_weights), model.state_dict()
    source = f"Step-1 weights {enc.step1_weights!r}"
    _require_same_kind(step1["meta"], describe(model), source)
    new = {}
    if enc.encoder is not None:
        new |= _strict({ENCODER + name: value for name, value in step1["encoder"].items()}, own, ENCODER, source)
    if enc.init_head:
        new |= _strict(step1["head"], head_of(own), "", source)
    if enc.init_fpn != "none":
        if enc.init_fpn == "step1" and "fpn" not in step1:
            raise UserError(
                f"{source} were exported, without the detector's FPN, which init_fpn (INIT_FPN) 'step1' wants: give "
                "step 1's checkpoint."
            )
        fpn = fpn_of(step1["encoder"]) if enc.init_fpn == "encoder" else step1["fpn"]
        new |= _fitting(fpn, own, source)
    _copy(new, own, source)


def start_from_teacher(model: nn.Module) -> None:
    """Load what `init_head` and `init_fpn` ask for from the teacher, as step 2 does from step 1."""
    enc, own = model.label_enc, model.state_dict()
    teacher = enc.teacher.build().state_dict()
    source, new = f"The teacher's weights {enc.teacher.weights!r}", {}
    if enc.init_head:
        new |= _strict(head_of(teacher), head_of(own), "", source)
    if enc.init_fpn != "none":
        new |= _fitting(fpn_of(below(teacher, BACKBONE)), own, source)
    _copy(new, own, source)


def _copy(new: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    """Into the model's state. `load_state_dict` of some entries would reset the statistics of frozen batch norms."""
    for name, value in new.items():
        own[name].copy_(value)
    logger.info("%s: %d of the model's %d entries start from them.", source, len(new), len(own))


def _require_same_kind(theirs: Mapping, ours: Mapping, source: str) -> None:
    for key in ("host", "num_classes", "levels", "channels"):
        if key in theirs and theirs[key] != ours[key]:
            raise UserError(
                f"{source} are of a model with {key} {theirs[key]}, this one has {ours[key]}: train step 1 "
                "with the same."
            )


def _strict(given: Mapping[str, Tensor], own: Mapping[str, Tensor], prefix: str, source: str) -> dict[str, Tensor]:
    """`given`; UserError naming every entry that it and those of `own` under `prefix` do not share."""
    wanted = {name: value for name, value in own.items() if name.startswith(prefix)}
    wrong = [f"{name} (not in the file)" for name in wanted.keys() - given.keys()]
    wrong += [f"{name} (not in the model)" for name in given.keys() - wanted.keys()]
    for name in wanted.keys() & given.keys():
        if given[name].shape != wanted[name].shape:
            wrong.append(f"{name} {tuple(given[name].shape)}, in the model {tuple(wanted[name].shape)}")
    if wrong:
        raise UserError(f"{source} do not fit the model: {'; '.join(sorted(wrong))}.")
    return dict(given)


def _fitting(fpn: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The entries of an FPN that the model's backbone has too, in the same shape."""
    named = {BACKBONE + name: value for name, value in fpn.items()}
    new = {name: value for name, value in named.items() if name in own and value.shape == own[name].shape}
    if left_out := sorted(named.keys() - new.keys()):
        logger.warning("%s: of the FPN, %s fit no entry of the model and are left out.", source, ", ".join(left_out))
    return new
