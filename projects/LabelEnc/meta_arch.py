"""Detectors that train with LabelEnc (arXiv:2007.03282) and are, at inference, the detectors they inherit from."""

from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.utils.events import EventStorage, get_event_storage
from shared.modeling.memory import memories_held

from .config import label_enc_of
from .initialize import start_from_step1, start_from_teacher
from .label_enc import LabelEnc

PREFIX = "labelenc/"  # of losses and scalars that the plain host does not have


class LabelEncMixin:
    """Before any detector whose training forward calls `self.backbone`, an FPN, once and returns a dict of losses:

        @META_ARCH_REGISTRY.register()
        class LabelEncHost(LabelEncMixin, Host): ...

    Its state dict is the host's and `label_enc.*`, its forward in eval mode the host's own. In training it returns the
    host's losses and
    - labelenc/<name of each>: of the head on the encoder's maps, with proposals and samples of their own (step 1);
    - labelenc/loss_dis: the distance, 0 in phases without it.
    """

    @configurable
    def __init__(self, *, label_enc: LabelEnc, **kwargs):
        """kwargs: the host's. Raises ValueError for a backbone that is no FPN, and in step 1 for batch norm in the
        head, whose statistics would mix both kinds of maps."""
        super().__init__(**kwargs)
        if label_enc.mode == "step1":
            _refuse_batch_norm(self)
        label_enc.build(self.backbone, getattr(self, "roi_heads", self).num_classes)
        if not label_enc.uses_images:
            self.backbone.requires_grad_(False)
        self.label_enc = label_enc
        self.training_only = (*getattr(self, "training_only", ()), "label_enc")

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "label_enc": label_enc_of(cfg)}

    def forward(self, batched_inputs: list[dict]):
        """As the host's; in training also the losses above."""
        if not self.training:
            return super().forward(batched_inputs)
        return self._step1(batched_inputs) if self.label_enc.mode == "step1" else self._step2(batched_inputs)

    def after_initial_weights(self, unfilled: Set[str]) -> None:
        """A new run begins, see `WeightsCheckpointer.begin_new_run`: take over what step 1 or the teacher has."""
        if self.label_enc.mode == "step2":
            start_from_step1(self, unfilled)
        elif self.label_enc.mode == "kd":
            start_from_teacher(self)

    def after_backward(self) -> None:
        """See `shared.training.hooks.ModelAfterBackward`."""
        self.label_enc.after_backward()

    def _step1(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """Eq. (9): the host on its images, the host on the encoder's maps, and the distance of the two."""
        enc, before = self.label_enc, _plain_numbers(self)
        losses, features, second_pass = {}, {}, ExitStack()
        if enc.uses_images:
            losses, features, _ = self._detect(batched_inputs)
            second_pass.enter_context(_with_plain_numbers(self, before))
            second_pass.enter_context(memories_held(self))  # of the images' features and boxes
        with second_pass:
            reconstruction, encoded = self._reconstruct(batched_inputs)
        losses = {name: enc.weight_det * loss for name, loss in losses.items()}
        losses |= {PREFIX + name: enc.weight_rec * loss for name, loss in reconstruction.items()}
        return losses | self._distance(features, lambda: encoded)

    def _step2(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """Eq. (7): the host on its images, and the distance of its maps from h(y) or from a teacher's."""
        losses, features, size = self._detect(batched_inputs)

        @torch.no_grad()
        def targets() -> dict[str, Tensor]:
            if self.label_enc.mode == "kd":
                return self.label_enc.teacher.features(self, batched_inputs, features)
            return self.label_enc.encode([x["instances"] for x in batched_inputs], size)

        return losses | self._distance(features, targets)

    def _detect(self, batched_inputs: list[dict]) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[int, int]]:
        """The host's losses, its pyramid, and (H, W) of the padded batch."""
        forward, seen = self.backbone.forward, []

        def observe(images: Tensor) -> dict[str, Tensor]:
            features = forward(images)
            seen.append((features, tuple(images.shape[-2:])))
            return features

        with _forward_of(self.backbone, observe):
            losses = super().forward(batched_inputs)
        return losses, *seen[0]

    def _reconstruct(self, batched_inputs: list[dict]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The host's losses where its backbone returns the encoder's maps, and these maps.

        What the host puts into the event storage gets our prefix, pictures are dropped.
        """
        encoded = {}

        def encode(images: Tensor) -> dict[str, Tensor]:
            encoded.update(self.label_enc.encode([x["instances"] for x in batched_inputs], tuple(images.shape[-2:])))
            return dict(encoded)

        storage = get_event_storage()
        with _forward_of(self.backbone, encode), EventStorage(storage.iter) as own:
            losses = super().forward(batched_inputs)
        for name, (value, _) in own.latest().items():
            storage.put_scalar(PREFIX + name, value, smoothing_hint=own.smoothing_hints()[name])
        return losses, encoded

    def _distance(self, features: dict[str, Tensor], targets: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        enc = self.label_enc
        if not enc.weight_dis:
            return {}
        loss = enc.distance(features, targets()) if enc.distance_on() else enc.no_distance()
        return {PREFIX + "loss_dis": loss}


@contextmanager
def _forward_of(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Inside, `module` computes `forward`."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _plain_numbers(host: nn.Module) -> dict[str, float]:
    """What a dense host keeps between iterations in plain attributes: the moving average of its losses' normalizer."""
    return {name: value for name, value in vars(host).items() if type(value) in (int, float)}


@contextmanager
def _with_plain_numbers(host: nn.Module, numbers: dict[str, float]) -> Iterator[None]:
    """Inside, the host's plain numbers are `numbers`; after, what they were before.

    So both passes of an iteration have one normalizer, and its average moves once.
    """
    after = _plain_numbers(host)
    _set_plain_numbers(host, numbers)
    try:
        yield
    finally:
        _set_plain_numbers(host, after)


def _set_plain_numbers(host: nn.Module, numbers: dict[str, float]) -> None:
    for name in _plain_numbers(host).keys() - numbers.keys():
        delattr(host, name)
    vars(host).update(numbers)


def _refuse_batch_norm(host: nn.Module) -> None:
    allowed = set(host.backbone.modules())
    for name, module in host.named_modules():
        if isinstance(module, _BatchNorm) and module not in allowed:
            raise ValueError(
                f"LabelEnc: step 1 runs the head on images' and on labels' maps, and batch norm ({name}) would mix "
                "their statistics: set the head's norm to 'GN' or ''."
            )


@META_ARCH_REGISTRY.register()
class LabelEncRetinaNet(LabelEncMixin, RetinaNet):
    """RetinaNet, trained with LabelEnc."""


@META_ARCH_REGISTRY.register()
class LabelEncGeneralizedRCNN(LabelEncMixin, GeneralizedRCNN):
    """Faster, Mask and Cascade R-CNN, and others that differ in their RoI heads alone, trained with LabelEnc."""


class LabelEncFCOS(LabelEncMixin, FCOS):
    """FCOS, trained with LabelEnc; for LazyConfigs, as Detectron2's FCOS is."""
