"""A ResNet of any builder, changed by one method or several."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from detectron2.modeling.backbone import ResNet


class ResNetChange(ABC):
    """What a method does to a built ResNet. Changes by different methods can be made in any order."""

    @abstractmethod
    def change(self, resnet: ResNet) -> None:
        """In place; frozen stages are frozen by then. Raises ValueError where the ResNet is of another kind."""


def changed_resnet(*, base: Callable[..., ResNet], freeze_at: int = 0, **kwargs: Any) -> ResNet:
    """`base(**kwargs)`, frozen like a ResNet, with the changes among `kwargs`: what these add is new, and trains in
    frozen stages, too.

    base: what makes the ResNet, itself and not its name: a saved config may call what its loader trusts, and nothing
    else. kwargs: its arguments, as in a config of its own, and `ResNetChange`s under any names.
    """
    changes = {name: value for name, value in kwargs.items() if isinstance(value, ResNetChange)}
    resnet = base(**{name: value for name, value in kwargs.items() if name not in changes})
    resnet.freeze(freeze_at)
    for name in sorted(changes):  # one order: that of the random numbers
        changes[name].change(resnet)
    return resnet
