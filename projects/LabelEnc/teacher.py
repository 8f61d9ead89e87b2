"""A trained detector as the source of targets: the "Vanilla KD" of LabelEnc (arXiv:2007.03282, Sec. 4.4)."""

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from shared.checkpoint import WeightsCheckpointer
from shared.config import load_config
from shared.errors import UserError
from shared.predictor import lazy_input_format


class Teacher:
    """A frozen detector, `model`: built at its first use, or given.

    It is no module: weights of an ImageNet ResNet, matched by the ends of names, must not find its backbone, and
    neither checkpoints nor DDP must know its parameters.
    """

    def __init__(self, config: str = "", weights: str = "", student_order: str = ""):
        """config: a config file of a detector, a run's config.yaml for example. weights: its checkpoint. student_order:
        RGB or BGR, of the images of a student that has no `input_format`.
        """
        self.config, self.weights, self.student_order = config, weights, student_order
        self.model: nn.Module | None = None
        self.order = ""  # of the images that it was trained on

    def build(self) -> nn.Module:
        """A new copy, on the CPU. UserError for a missing config, or weights that are not all of its model."""
        if not (self.config and self.weights):
            raise UserError(
                "LabelEnc: mode 'kd' needs a teacher: set model.label_enc.teacher_config "
                "(MODEL.LABELENC.TEACHER_CONFIG) to the config.yaml of its run and teacher_weights (TEACHER_WEIGHTS) "
                "to its checkpoint."
            )
        cfg = load_config(self.config, named_by="teacher_config")
        self.order = cfg.INPUT.FORMAT if isinstance(cfg, CfgNode) else lazy_input_format(cfg)
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

        like: the student's. UserError: the two pyramids differ in levels or shapes; the student's order is not known.
        """
        if self.model is None:
            self.model = self.build()
        teacher = self.model.to(next(iter(like.values())).device)
        order = getattr(student, "input_format", None) or self.student_order
        if not order:
            raise UserError(
                "LabelEnc: mode 'kd' must know the channel order of the student's images, which "
                f"{type(student).__name__} does not say: set model.label_enc.input_format to the value of "
                "dataloader.train.mapper.image_format."
            )
        if order != self.order:  # BGR and RGB
            batched_inputs = [{**x, "image": x["image"].flip(0)} for x in batched_inputs]
        maps = teacher.backbone(teacher.preprocess_image(batched_inputs).tensor)
        shapes, wanted = ({level: tuple(m.shape[1:]) for level, m in maps_.items()} for maps_ in (maps, like))
        if shapes != wanted:
            raise UserError(
                f"LabelEnc: the teacher's maps are {shapes}, the student's {wanted} (channels, height, width by "
                "level): teacher and student need the same levels, channels and padding."
            )
        return maps
