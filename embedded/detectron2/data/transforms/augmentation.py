"""The interface of augmentations: choose a transform for an input, apply it, return it."""

import inspect
import pprint
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

__all__ = "AugInput Augmentation AugmentationList apply_augmentations".split()
__all__ += "StandardAugInput TransformGen apply_transform_gens".split()


class Augmentation:
    """Chooses a `Transform` from attributes of the input, with NumPy's global RNG. `get_transform` names the attributes
    it needs, e.g. `get_transform(self, image, boxes)`; a single parameter is the image, whatever its name."""

    input_args: tuple[str, ...] | None = None

    def _init(self, params: dict[str, Any]) -> None:
        """Store `locals()` of a constructor as attributes."""
        vars(self).update((k, v) for k, v in params.items() if v is not self and not k.startswith("_"))

    def get_transform(self, *args) -> Transform:
        raise NotImplementedError

    def __call__(self, aug_input: "AugInput") -> Transform:
        """Transform `aug_input` in place. Raises AttributeError if it lacks a needed attribute."""
        if self.input_args is None:
            names = tuple(inspect.signature(self.get_transform).parameters)
            self.input_args = ("image",) if len(names) == 1 else names
        transform = self.get_transform(*(getattr(aug_input, name) for name in self.input_args))
        aug_input.transform(transform)
        return transform

    def _rand_range(self, low: float = 1.0, high: float | None = None, size=None):
        """Uniform in [low, high), or in [0, low) without `high`."""
        low, high = (0, low) if high is None else (low, high)
        return np.random.uniform(low, high, size)

    def __repr__(self) -> str:
        """The constructor call, without arguments that are their default."""
        shown = []
        for name, param in inspect.signature(self.__init__).parameters.items():
            if param.kind in (param.VAR_POSITIONAL, param.VAR_KEYWORD) or name not in vars(self):
                return super().__repr__()
            if (value := getattr(self, name)) is not param.default:
                shown.append(f"{name}={pprint.pformat(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


class AugmentationList(Augmentation):
    """Augmentations (or transforms) one after the other; each sees the result of the last."""

    def __init__(self, augs):
        self.augs = list(augs)

    def __call__(self, aug_input: "AugInput") -> TransformList:
        tfms = []
        for aug in self.augs:
            if isinstance(aug, Transform):
                aug_input.transform(aug)
            tfms.append(aug if isinstance(aug, Transform) else aug(aug_input))
        return TransformList(tfms)

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(str, self.augs))}]"


class AugInput:
    """What augmentations see and change. image: (H, W) or (H, W, C), uint8 in [0, 255] or floating point. boxes: (N, 4)
    float xyxy in pixels. sem_seg: (H, W), the pixels' classes."""

    def __init__(self, image: np.ndarray, *, boxes=None, sem_seg=None):
        assert isinstance(image, np.ndarray), f"AugInput needs an array, got {type(image)}."
        assert image.ndim in (2, 3), f"AugInput needs an HW or HWC image, got {image.shape}."
        self.image, self.boxes, self.sem_seg = image, boxes, sem_seg

    def transform(self, tfm: Transform) -> None:
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations) -> TransformList:
        return AugmentationList(augmentations)(self)


def apply_augmentations(augmentations, inputs):
    """inputs: an image or an AugInput. Returns (the same kind, TransformList)."""
    aug_input = AugInput(inputs) if isinstance(inputs, np.ndarray) else inputs
    tfms = aug_input.apply_augmentations(augmentations)
    return (inputs if aug_input is inputs else aug_input.image), tfms


TransformGen, StandardAugInput, apply_transform_gens = Augmentation, AugInput, apply_augmentations
