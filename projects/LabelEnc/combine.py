"""LabelEnc as a function of a LazyConfig model: around any detector whose backbone is an FPN."""

from typing import Any

from omegaconf import DictConfig

from detectron2.modeling import GeneralizedRCNN, RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from projects import hosts
from projects.DEPLA.padding import PaddingMaskRCNN
from projects.Detectors.reppoints import RepPoints
from projects.InterNet.combine import without_batch_norm
from projects.MuSu import MuSu
from shared.errors import UserError

from .meta_arch import LabelEncFCOS, LabelEncGeneralizedRCNN, LabelEncMixin, LabelEncRetinaNet


class LabelEncMuSu(LabelEncMixin, MuSu):
    """MuSu, trained with LabelEnc; for LazyConfigs, as the two below."""


class LabelEncRepPoints(LabelEncMixin, RepPoints):
    """RepPoints, trained with LabelEnc."""


class LabelEncPaddingMaskRCNN(LabelEncMixin, PaddingMaskRCNN):
    """An R-CNN with DEPLA that masks padding, trained with LabelEnc."""


AROUND = {
    RetinaNet: LabelEncRetinaNet,
    GeneralizedRCNN: LabelEncGeneralizedRCNN,
    FCOS: LabelEncFCOS,
    MuSu: LabelEncMuSu,
    RepPoints: LabelEncRepPoints,
    PaddingMaskRCNN: LabelEncPaddingMaskRCNN,
}


def with_labelenc(model: DictConfig, **knobs: Any) -> DictConfig:
    """LabelEnc around the host: step 1, unless mode="step2" (with step1_weights) or "kd" (with a teacher) says more.

    knobs: of `LabelEnc`. The encoder is as much narrower as the host's ResNet. Its phases are parts of
    ${train.max_iter}: the model must be part of a training config. Data stay the host's; source="mask" needs
    masks, dataloader.train.mapper.use_instance_mask=True. In step 1, InterNet's units get group norm.
    """
    model = hosts.copy_of(model)
    if "label_enc" in model:
        raise UserError("The model has LabelEnc already.")
    target = hosts.target_of(model)
    if target not in AROUND:
        known = ", ".join(host.__name__ for host in AROUND)
        raise UserError(f"LabelEnc has no form around {target.__name__}: it knows {known}.")
    hosts.require_fpn(model, "LabelEnc")
    node = hosts.project_node("LabelEnc/configs/common/label_enc.py", "label_enc")
    narrow = hosts.narrowness(hosts.built(hosts.bottom_up_of(model)))
    node.update(stem_out=node.stem_out // narrow, res2_out=node.res2_out // narrow)
    hosts.set_knobs(node, knobs, "LabelEnc")
    model.update(_target_=AROUND[target], label_enc=node)
    if hosts.shares_heads(model):
        without_batch_norm(model)
    return model
