"""Checkpoints: ours, the model zoo's and Caffe2's, loaded without running code from the file."""

import codecs
import os
import pickle
from collections import OrderedDict
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np
import torch
import torch.distributed as dist
from fvcore.common.checkpoint import Checkpointer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .c2_model_loading import align_and_update_state_dicts

_DTYPES = [type(np.dtype(code)) for code in "?bBhHiIlLqQefdFDSU"]
_NUMPY_GLOBALS = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
for _core in ("numpy.core", "numpy._core"):  # what numpy's arrays and scalars call, before and since numpy 2
    _NUMPY_GLOBALS[f"{_core}.multiarray._reconstruct"] = np.zeros(1).__reduce__()[0]
    _NUMPY_GLOBALS[f"{_core}.multiarray.scalar"] = np.float64(0).__reduce__()[0]
    _NUMPY_GLOBALS[f"{_core}.numeric._frombuffer"] = np.zeros(1).__reduce_ex__(5)[0]
_PICKLE_GLOBALS = {**_NUMPY_GLOBALS, "collections.OrderedDict": OrderedDict, "_codecs.encode": codecs.encode}


class _ArrayUnpickler(pickle.Unpickler):
    """Knows numpy arrays and builtin containers; refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _PICKLE_GLOBALS:
            raise pickle.UnpicklingError(
                f"The checkpoint wants {module}.{name}, which is neither a numpy array nor a builtin container, and "
                "could run any code. If you trust the file, load it with pickle yourself and save its arrays alone."
            )
        return _PICKLE_GLOBALS[f"{module}.{name}"]


class DetectionCheckpointer(Checkpointer):
    """fvcore's Checkpointer, saving on the main process only; it also loads .pkl files of the model zoo and of Caffe2,
    and matches names by `path?matching_heuristics=True`.
    Loading never runs code from the file. `.pkl` may hold numpy arrays and builtin containers; everything else goes
    through `torch.load(weights_only=True)`, numpy admitted. Other content raises pickle.UnpicklingError."""

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ):
        save_to_disk = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager
        self._is_distributed = isinstance(model, DistributedDataParallel)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load; returns what else is in the file. Nothing happens for an empty path.
        A distributed model may have the file on the main worker alone: the others then get the weights (and nothing
        but those) by broadcast."""
        url = urlparse(path)
        query = parse_qs(url.query)
        self._matching_heuristics = query.pop("matching_heuristics", []) == ["True"]
        if query:
            raise ValueError(f"Unsupported query in {path}: only ?matching_heuristics=True is understood.")
        path = url._replace(query="").geturl()
        if not path or not self._is_distributed:
            return super().load(path, checkpointables)
        path = self.path_manager.get_local_path(path)
        has_file = comm.all_gather(os.path.isfile(path))
        if not has_file[0]:
            raise OSError(f"File {path} not found on the main worker.")
        extra = super().load(path, checkpointables) if has_file[comm.get_rank()] else {}
        if not all(has_file):
            self.logger.warning(f"Not all workers can read {path}; they get its weights sent.")
            for tensor in self.model.state_dict().values():
                dist.broadcast(tensor, 0)
        return extra

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            with PathManager.open(filename, "rb") as f:
                checkpoint = _ArrayUnpickler(f, encoding="latin1").load()
            if not {"model", "__author__"} <= checkpoint.keys():
                blobs = checkpoint.get("blobs", checkpoint)
                weights = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
                checkpoint = {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        else:
            aliases = [(obj, name) for name, obj in _NUMPY_GLOBALS.items()]
            with torch.serialization.safe_globals(aliases + _DTYPES):
                checkpoint = torch.load(filename, map_location="cpu", weights_only=True)
        if "model" not in checkpoint:
            checkpoint = {"model": checkpoint}
        if self._matching_heuristics:
            checkpoint["matching_heuristics"] = True
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]):
        if checkpoint.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            checkpoint["model"] = align_and_update_state_dicts(
                self.model.state_dict(), checkpoint["model"], c2_conversion=checkpoint.get("__author__") == "Caffe2"
            )
        incompatible = super()._load_model(checkpoint)
        # Constants of old checkpoints and new models: neither loss nor surprise.
        missing, unexpected = incompatible.missing_keys, incompatible.unexpected_keys
        missing[:] = [k for k in missing if not k.endswith(("pixel_mean", "pixel_std"))]
        unexpected[:] = [k for k in unexpected if "anchor_generator.cell_anchors" not in k]
        return incompatible
