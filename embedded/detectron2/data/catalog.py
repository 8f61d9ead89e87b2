"""Datasets and their metadata by name."""

from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class _Catalog(UserDict):
    def list(self) -> list[str]:
        return list(self)

    def remove(self, name: str) -> None:
        self.pop(name)


class _DatasetCatalog(_Catalog):
    """Name -> function that returns the dataset: a list of dicts, or a torch Dataset."""

    def register(self, name: str, func: Callable[[], Any]) -> None:
        """Raises AssertionError if the name is taken or `func` is not callable."""
        assert callable(func), f"Dataset {name!r} needs a function that loads it, got {func!r}."
        assert name not in self, f"Dataset {name!r} is already registered: remove() it first."
        self[name] = func

    def get(self, name: str) -> Any:
        """Call the registered function. Raises KeyError for an unknown name."""
        if name not in self:
            raise KeyError(f"Dataset {name!r} is not registered. Registered: {', '.join(self)}.")
        return self[name]()


class Metadata(SimpleNamespace):
    """Facts about one dataset as attributes; a fact cannot be set to another value later."""

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        raise AttributeError(f"Metadata of dataset {self.name!r} has no {key!r}, only: {', '.join(self.__dict__)}.")

    def __setattr__(self, key: str, value: Any) -> None:
        if (old := self.get(key, value)) != value:
            name = f"Attribute {key!r} in the metadata of {self.name!r}"
            raise AssertionError(f"{name} cannot be set to a different value: it is {old!r}, got {value!r}.")
        super().__setattr__(key, value)

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def set(self, **kwargs) -> "Metadata":
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        return self.__dict__.get(key, default)


class _MetadataCatalog(_Catalog):
    """Name -> `Metadata`, created at the first `get`."""

    def get(self, name: str) -> Metadata:
        assert name, "A dataset needs a non-empty name."
        return self.setdefault(name, Metadata(name=name))


DatasetCatalog, MetadataCatalog = _DatasetCatalog(), _MetadataCatalog()
