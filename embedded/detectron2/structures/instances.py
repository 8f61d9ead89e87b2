"""The instances of one image: fields of equal length under names of one's choice."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Instances:
    """Fields (tensors, Boxes, masks, lists) of the instances of an image of (height, width). `inst.name = value` adds a
    field, `inst.name` reads it, `inst[item]` indexes all fields."""

    def __init__(self, image_size: tuple[int, int], **fields: Any):
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in fields.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "image_size":
            raise AttributeError("image_size is read-only; make a new Instances of that size.")
        (super().__setattr__ if name.startswith("_") else self.set)(name, value)

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", {})  # not yet there while being unpickled
        if name not in fields:
            raise AttributeError(f"Instances have no field {name!r}; fields: {sorted(fields)}.")
        return fields[name]

    def set(self, name: str, value: Any) -> None:
        """Add or replace a field; its length must be that of the others."""
        if self._fields:
            assert len(value) == len(self), f"Field {name!r} has length {len(value)}, the instances have {len(self)}."
        self._fields[name] = value

    def has(self, name: str) -> bool:
        return name in self._fields

    def remove(self, name: str) -> None:
        del self._fields[name]

    def get(self, name: str) -> Any:
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """The live dict of the fields."""
        return self._fields

    def _map(self, function: Callable[[Any], Any]) -> "Instances":
        return Instances(self._image_size, **{name: function(value) for name, value in self._fields.items()})

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """Call `to` of every field that has it."""
        return self._map(lambda value: value.to(*args, **kwargs) if hasattr(value, "to") else value)

    def __getitem__(self, item: int | slice | Tensor) -> "Instances":
        """Index every field; an int keeps one row."""
        if isinstance(item, int):
            if not -len(self) <= item < len(self):
                raise IndexError(f"Index {item} is out of range for {len(self)} instances.")
            item = slice(item, None, len(self))
        return self._map(lambda value: value[item])

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without fields have no length.")

    def __iter__(self):
        raise NotImplementedError("Instances cannot be iterated; index them, or one of the fields.")

    @staticmethod
    def cat(instance_lists: Sequence["Instances"]) -> "Instances":
        """Chain the fields of the first element over all; one element is returned as it is."""
        assert len(instance_lists) > 0, "Instances.cat needs at least one element."
        if len(instance_lists) == 1:
            return instance_lists[0]
        sizes = {tuple(i.image_size) for i in instance_lists}
        assert len(sizes) == 1, f"Cannot cat instances of different image sizes {sorted(sizes)}."
        out = Instances(instance_lists[0].image_size)
        for name, first in instance_lists[0].get_fields().items():
            values = [i.get(name) for i in instance_lists]
            if isinstance(first, Tensor):
                values = torch.cat(values, dim=0)
            elif isinstance(first, list):
                values = list(itertools.chain(*values))
            elif hasattr(type(first), "cat"):
                values = type(first).cat(values)
            else:
                raise ValueError(f"Cannot cat field {name!r} of type {type(first)}; add a `cat`.")
            out.set(name, values)
        return out

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        (h, w), count = self._image_size, len(self) if self._fields else 0
        return f"Instances(num_instances={count}, image_height={h}, image_width={w}, fields=[{fields}])"
