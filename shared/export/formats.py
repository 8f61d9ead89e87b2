"""The three kinds of files: how each is written, read back and run."""

import importlib.util
import json
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shared.errors import UserError

from .program import ExportProgram
from .tracing import traceable

NOTES = "export.json"  # name of the notes in a file
Runner = Callable[[Tensor], tuple[Tensor, ...]]


class ExportFormat(ABC):
    """A kind of file. `tolerance`: largest difference to the model itself that is put down to rounding."""

    name: str
    suffix: str
    tolerance: float

    packages: tuple[str, ...] = ()  # which are no requirement of the collection

    def check_packages(self) -> None:
        """UserError where packages that this format needs are not installed."""
        if missing := [name for name in self.packages if importlib.util.find_spec(name) is None]:
            raise UserError(f"--format {self.name} needs packages: run pip install {' '.join(missing)}.")

    @abstractmethod
    def record(self, program: ExportProgram, image: Tensor) -> Any:
        """What `save` takes. Raises whatever the recorder does not follow."""

    @abstractmethod
    def text(self, recorded: Any) -> str:
        """The program's text."""

    @abstractmethod
    def save(self, recorded: Any, path: str, notes: dict) -> None: ...

    @abstractmethod
    def load(self, path: str) -> Runner: ...

    def native_ops(self, recorded: Any) -> list[str]:
        """The collection's own ops in the program: who runs it must load `shared/ops/_C.so` first."""
        return sorted(set(re.findall(r"\bd2ops(?:::|\.)(\w+)", self.text(recorded))))


class TorchScript(ExportFormat):
    name, suffix, tolerance = "torchscript", ".pt", 1e-3

    def record(self, program: ExportProgram, image: Tensor) -> torch.jit.ScriptModule:
        with warnings.catch_warnings(), traceable(), torch.no_grad():
            warnings.simplefilter("ignore")  # of every constant; what matters is checked on other images
            return torch.jit.trace(program, (image,), check_trace=False)

    def text(self, recorded: torch.jit.ScriptModule) -> str:
        return str(recorded.inlined_graph)

    def save(self, recorded: torch.jit.ScriptModule, path: str, notes: dict) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.save(recorded, path, _extra_files={NOTES: json.dumps(notes)})

    def load(self, path: str) -> Runner:
        return torch.jit.load(path)


class TorchExport(ExportFormat):
    name, suffix, tolerance = "torch.export", ".pt2", 1e-3

    def record(self, program: ExportProgram, image: Tensor) -> torch.export.ExportedProgram:
        with warnings.catch_warnings(), traceable(nms_dtype=torch.float64), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(program, (image,), strict=False)

    def text(self, recorded: torch.export.ExportedProgram) -> str:
        return recorded.graph_module.code

    def save(self, recorded: torch.export.ExportedProgram, path: str, notes: dict) -> None:
        torch.export.save(recorded, path, extra_files={NOTES: json.dumps(notes)})

    def load(self, path: str) -> Runner:
        return torch.export.load(path).module()


class Onnx(ExportFormat):
    """ONNX by torch's exporter; run with ONNX Runtime, whose kernels round differently."""

    name, suffix, tolerance = "onnx", ".onnx", 1e-2
    packages = ("onnx", "onnxscript", "onnxruntime")

    def record(self, program: ExportProgram, image: Tensor) -> Any:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            with traceable(nms_dtype=torch.float32):  # ONNX's NMS knows no other type
                exported = torch.export.export(program, (image,), strict=False)
            names = list(program.output_names)
            return torch.onnx.export(exported, input_names=["image"], output_names=names, verbose=False)

    def text(self, recorded: Any) -> str:
        return str(recorded.exported_program.graph_module.code)

    def save(self, recorded: Any, path: str, notes: dict) -> None:
        recorded.model.metadata_props[NOTES] = json.dumps(notes)
        recorded.save(path)

    def load(self, path: str) -> Runner:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda image: tuple(torch.from_numpy(x) for x in session.run(None, {"image": image.numpy()}))


FORMATS: dict[str, ExportFormat] = {f.name: f for f in (TorchScript(), TorchExport(), Onnx())}
