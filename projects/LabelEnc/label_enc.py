"""What LabelEnc adds to a detector during training (arXiv:2007.03282): the encoder, the adaption net, the phases."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detectron2.modeling.backbone import FPN, Backbone
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage

from .distance import NORMS, REDUCTIONS, Adaption, pyramid_distance
from .encoder import INITS, STEM_ACTS, LabelEncoder, build_encoder
from .maps import SOURCES, label_maps
from .teacher import Teacher

CHOICES = {
    "mode": ("step1", "step2", "kd"),
    "source": SOURCES,
    "stem_act": STEM_ACTS,
    "init": INITS,
    "dist_norm": NORMS,
    "dist_reduction": REDUCTIONS,
    "init_fpn": ("encoder", "step1", "none"),
}


class LabelEnc(nn.Module):
    """Step 1 trains the encoder h beside a detector f, d with one head d; step 2 trains a detector towards h, frozen.

    Eq. (9):  L(d(h(y)), y) + L(d(f(I)), y) + L_dis(f(I), h(y)), the last without gradient to h
    Eq. (7):  L(d(f(I)), y) + L_dis(f(I), h(y))

    Mode "kd" is Sec. 4.4's "Vanilla KD": the maps of a trained detector take the place of h(y) in Eq. (7). The host's
    mixin calls `build`, which makes what the mode needs: `encoder`, an FPN like the host's own, and `adapt`. Both are
    None where no term uses them. The teacher is no submodule: neither checkpoints nor DDP know it.

    The arguments, in capitals, are the keys of MODEL.LABELENC:
    source, pixel_offset, aug_*: of the label maps, see `label_maps`; masks as the source are Sec. 4.5's.
    stem_out ... fold_stem: see LabelEncoder. adapt_*: see Adaption. dist_*: see `pyramid_distance`.
    weight_rec, weight_det, weight_dis: of Eq. (9)'s terms, in its order; Eq. (7) has the last one alone. Without both
        of the last, step 1 leaves the backbone alone (Table 2).
    warmup_iters: iterations of step 1 without its distance. aux_loss_iters: those of step 2 and kd with it.
    step1_weights: for step 2, a file of `export_step1` or a checkpoint of step 1, read when a new run starts.
    init_head: whether the head starts from step 1's (kd: the teacher's). init_fpn: where the FPN starts from, the
        "encoder" (kd: the teacher), step 1's detector ("step1", which a checkpoint alone holds), or "none".
    teacher_config, teacher_weights: for kd, the config.yaml of a run and its checkpoint. input_format: for kd, RGB or
        BGR, the order of the host's images, where the host does not say it itself (FCOS, RepPoints, MuSu).
    """

    def __init__(
        self,
        *,
        mode: str = "step1",
        source: str = "box",
        pixel_offset: float = 0.5,
        aug_step1: bool = True,
        aug_step2: bool = False,
        stem_out: int = 128,
        stem_act: str = "",
        res2_out: int = 256,
        blocks: Sequence[int] = (1, 2, 2, 1),
        init: str = "official",
        gather_classes: bool = True,
        fold_stem: bool = True,
        adapt_convs: int = 3,
        adapt_shared: bool = True,
        dist_norm: str = "chw",
        dist_reduction: str = "mean",
        weight_rec: float = 1.0,
        weight_det: float = 1.0,
        weight_dis: float = 1.0,
        warmup_iters: int = 30_000,
        aux_loss_iters: int = 80_000,
        step1_weights: str = "",
        init_head: bool = True,
        init_fpn: str = "encoder",
        teacher_config: str = "",
        teacher_weights: str = "",
        input_format: str = "",
    ):
        super().__init__()
        _check(mode=mode, source=source, stem_act=stem_act, init=init, init_fpn=init_fpn)
        _check(dist_norm=dist_norm, dist_reduction=dist_reduction)
        if mode == "step1" and not weight_rec > 0:
            raise ValueError(f"LabelEnc: with weight_rec (WEIGHT_REC) {weight_rec} step 1 trains no encoder: set 1.")
        self.mode = mode
        augment = {"step1": aug_step1, "step2": aug_step2, "kd": False}[mode]
        self.map_options = {"source": source, "pixel_offset": pixel_offset, "augment": augment}
        self.body_options = {"stem_out": stem_out, "stem_act": stem_act, "res2_out": res2_out, "blocks": tuple(blocks)}
        self.body_options |= {"init": init, "gather_classes": gather_classes, "fold_stem": fold_stem}
        self.adapt_convs, self.adapt_shared = adapt_convs, adapt_shared
        self.distance_options = {"norm": dist_norm, "reduction": dist_reduction}
        self.weight_rec, self.weight_det, self.weight_dis = weight_rec, weight_det, weight_dis
        self.warmup_iters, self.aux_loss_iters = warmup_iters, aux_loss_iters
        self.step1_weights, self.init_head, self.init_fpn = step1_weights, init_head, init_fpn
        self.teacher = Teacher(teacher_config, teacher_weights, input_format)
        self.encoder: FPN | None = None
        self.adapt: Adaption | None = None

    def build(self, backbone: Backbone, num_classes: int) -> None:
        """Make `encoder` and `adapt` for the host's backbone, an FPN, and number of classes.

        Raises ValueError for another backbone.
        """
        if not isinstance(backbone, FPN):
            raise ValueError(f"LabelEnc: the detector's backbone must be an FPN, got {type(backbone).__name__}.")
        levels = backbone.output_shape()
        if self.mode == "step1" or (self.mode == "step2" and self.weight_dis):
            self.encoder = build_encoder(LabelEncoder(num_classes, **self.body_options), backbone)
            self.encoder.requires_grad_(self.mode == "step1")
        if self.weight_dis:
            own = () if self.adapt_shared else tuple(levels)
            channels = next(iter(levels.values())).channels
            self.adapt = Adaption(channels=channels, num_convs=self.adapt_convs, levels=own)

    @property
    def uses_images(self) -> bool:
        """Whether any term looks at the backbone's maps; only step 1 can do without."""
        return self.mode != "step1" or bool(self.weight_det or self.weight_dis)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.mode == "step2" and self.encoder is not None:
            self.encoder.eval()  # a batch norm in its FPN keeps step 1's statistics
        return self

    def distance_on(self) -> bool:
        """Whether the distance is part of the loss in the current iteration."""
        iteration = get_event_storage().iter
        on = iteration >= self.warmup_iters if self.mode == "step1" else iteration < self.aux_loss_iters
        return on and bool(self.weight_dis)

    def encode(self, instances: list[Instances], size: tuple[int, int]) -> dict[str, Tensor]:
        """h(y): maps like the host's pyramid of a padded batch of `size`, (H, W)."""
        body, weight = self.encoder.bottom_up, self.encoder.bottom_up.stem.weight
        instances = [x.to(weight.device) for x in instances]
        options = {"num_classes": body.num_classes, "dtype": weight.dtype, **self.map_options}
        return self.encoder(label_maps(instances, size, **options))

    def distance(self, features: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        """weight_dis * L_dis of the host's pyramid from the targets, to which no gradient goes."""
        targets = {level: maps.detach() for level, maps in targets.items()}
        return self.weight_dis * pyramid_distance(self.adapt(features), targets, **self.distance_options)

    def no_distance(self) -> Tensor:
        """0, to which every parameter of `adapt` contributes: DDP waits for each of their gradients."""
        return sum((p.sum() * 0 for p in self.adapt.parameters()), torch.zeros(()))

    def after_backward(self) -> None:
        """Without the distance `adapt` gets no step at all: weight decay alone would shrink it by a quarter and more in
        the paper's warm-up (0.74 and 0.55 at learning rates of 0.01 and 0.02)."""
        if self.adapt is not None and not self.distance_on():
            for parameter in self.adapt.parameters():
                parameter.grad = None


def _check(**given: str) -> None:
    for name, value in given.items():
        if value not in CHOICES[name]:
            choices = ", ".join(map(repr, CHOICES[name]))
            raise ValueError(f"LabelEnc: {name} ({name.upper()}) is {value!r}, choose one of {choices}.")
