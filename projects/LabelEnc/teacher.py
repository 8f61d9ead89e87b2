"""A trained detector as the source of targets: the "Vanilla KD" of LabelEnc (arXiv:2007.03282, Sec. 4.4)."""

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from shared.checkpoint import WeightsCheckpointer
from shared.config import load_config
from shared.errors import UserError


class Teacher:
    """A frozen detector, `model`: built at its first use, or given.

    It is no module: weights of an ImageNet ResNet, matched by the ends of names, must not find its backbone, and
    neither checkpoints nor DDP must know its parameters.
    """

    def __init__(self, config: str = "", weights: str = ""):
        """config: a config file of a detector, a run's config.yaml for example. weights: its checkpoint."""
        self.config, self.weights = config, weights
        self.model: nn.Module | None = None

    def build(self) -> nn.Module:
        """A new copy, on the CPU. UserError for a missing config, or weights that are not all of its model."""
        if not (self.config and self.weights):
            raise UserError(
                "LabelEnc: mode 'kd' needs a teacher: set model.label_enc.teacher_config "
                "(MODEL.LABELENC.TEACHER_CONFIG) to the config.yaml of its run and teacher_weights (TEACHER_WEIGHTS) "
                "to its checkpoint."
            )
        cfg = load_config(self.config)
        if isinstance(cfg, CfgNode):
            cfg.MODEL.DEVICE = "cpu"
        model = build_model(cfg) if isinstance(cfg, CfgNode) else instantiate(cfg.model)
        checkpointer = WeightsCheckpointer(model)
        checkpointer.load(self.weights, checkpointables=[])
        checkpointer.require(self.weights, every=True, inference=True)
        return model.eval().requires_grad_(False)

    @torch.no_grad()
    def features(self, student: nn.Module, batched_inputs: list[dict], like: dict[str, Tensor]) -> dict[str, Tensor]:
        """The teacher's pyramid of the student's batch, padded alike, in the teacher's normalisation and channel order.

        like: the student's. Raises ValueError where the two pyramids differ in levels or shapes.
        """
        if self.model is None:
            self.model = self.build()
        teacher = self.model.to(next(iter(like.values())).device)
        orders = {getattr(model, "input_format", None) for model in (student, teacher)} - {None}
        if len(orders) == 2:  # BGR and RGB
            batched_inputs = [{**x, "image": x["image"].flip(0)} for x in batched_inputs]
        maps = teacher.backbone(teacher.preprocess_image(batched_inputs).tensor)
        shapes, wanted = ({level: tuple(m.shape[1:]) for level, m in maps_.items()} for maps_ in (maps, like))
        if shapes != wanted:
            raise ValueError(
                f"LabelEnc: the teacher's maps are {shapes}, the student's {wanted} (channels, height, width by "
                "level): teacher and student need the same levels, channels and padding."
            )
        return maps
