"""Weights: checked before they are read, and never loaded half in silence.

`.pth` files are read by torch's weights-only unpickler, which runs no code. `.pkl` is Detectron2's
format of its model zoo, a plain pickle; here it may hold arrays and plain containers only.
"""

import os
import pickle
from collections.abc import Iterable
from dataclasses import replace

import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from shared.classification.weights import BackboneWeights, fit_backbone
from shared.errors import UserError
from shared.training_only import training_only_prefixes

PICKLE_GLOBALS = {  # what an ndarray, an OrderedDict and old Python 2 pickles need
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}
# constants, filled from cfg at construction; their absence from a file means nothing
NOT_WEIGHTS = ("pixel_mean", "pixel_std")


def check_weights_file(path: str) -> None:
    """Refuse a file that does not exist, is not a checkpoint, or would run code when loaded.

    Only local files and URLs that Detectron2's PathManager knows; the file is fetched if it must.
    """
    name = path.partition("?")[0]
    if "://" not in name and not os.path.isfile(name):
        raise UserError(f"Weights file {name!r} does not exist.")
    try:
        local = PathManager.get_local_path(name)
    except Exception as e:  # a handler's own: no network, unknown scheme, 404
        raise UserError(f"Weights {name!r} cannot be fetched: {e}.") from e
    if local.endswith(".pkl"):
        _check_pickle(local)
        return
    try:
        content = torch.load(local, map_location="meta", weights_only=True)
    except Exception as e:
        raise UserError(
            f"Weights file {name!r} is not a checkpoint of tensors and plain values: {' '.join(str(e).split())[:200]}"
        ) from e
    if not isinstance(content, dict):
        raise UserError(f"Weights file {name!r} holds no state dict but {type(content).__name__}.")


def _check_pickle(path: str) -> None:
    try:
        with open(path, "rb") as f:
            _ArraysOnly(f, encoding="latin1").load()
    except UserError as e:
        raise UserError(f"Weights file {path!r} {e}") from e
    except Exception as e:  # whatever a broken pickle ends in
        raise UserError(f"Weights file {path!r} is not a pickle of arrays: {e}.") from e


class _ArraysOnly(pickle.Unpickler):
    """Unpickles arrays and plain containers, and refuses every other callable."""

    def find_class(self, module: str, name: str):
        if (module, name) not in PICKLE_GLOBALS:
            raise UserError(
                f"would run {module}.{name} when loaded: refused. Only arrays and plain containers are accepted."
            )
        return super().find_class(module, name)


class WeightsCheckpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` that checks the file first and keeps what did not match.

    A classifier's checkpoint and torchvision's ResNets fill the model's backbone, see `fit_backbone`.
    After `load`, `report` is None (nothing loaded) or (matched, missing, unexpected, wrong_shape):
    a count and three lists of names.
    """

    report: tuple[int, list[str], list[str], list[str]] | None = None
    _backbone: BackboneWeights | None = None

    def load(self, path: str, *args, **kwargs):
        self.report = self._backbone = None
        if path and comm.is_main_process():
            check_weights_file(path)
        return super().load(path, *args, **kwargs)

    def _load_model(self, checkpoint):
        fitted = fit_backbone(checkpoint["model"], self.model)
        if fitted is not None:
            checkpoint["model"] = fitted.weights
            self._backbone = replace(fitted, weights=dict.fromkeys(fitted.weights))  # the names alone stay
        incompatible = super()._load_model(checkpoint)
        wrong = [row[0] for row in incompatible.incorrect_shapes]
        missing = [k for k in incompatible.missing_keys if not k.endswith(NOT_WEIGHTS)]
        ours = [k for k in self.model.state_dict() if not k.endswith(NOT_WEIGHTS)]
        matched = len(ours) - len(set(missing) | set(wrong))
        self.report = (matched, missing, list(incompatible.unexpected_keys), wrong)
        return incompatible

    def describe(self) -> str:
        """One sentence on the last load: how many of the model's entries matched, which did not."""
        matched, missing, unexpected, wrong = self.report
        total = matched + len(set(missing) | set(wrong))
        text = f"{matched} of the model's {total} entries matched"
        if self._backbone is not None:
            text = f"{self._describe_backbone()}; {text}"
        for what, keys in (
            ("of another shape", wrong),
            ("not in the file", [k for k in missing if k not in wrong]),
            ("in the file only", unexpected),
        ):
            if keys:
                text += f"; {len(keys)} {what} ({_some(keys)})"
        return text

    def begin_new_run(self) -> None:
        """Training begins, not resumed, with what has been loaded: let the model take over further weights.

        A model may have a method `after_initial_weights(unfilled)`, with the names of its entries that no file has
        filled yet.
        """
        if hasattr(self.model, "after_initial_weights"):
            _, missing, _, wrong = self.report or (0, list(self.model.state_dict()), [], [])
            self.model.after_initial_weights({*missing, *wrong})

    def _describe_backbone(self) -> str:
        """One clause: how many of the backbone's entries matched, and what of the file has no place here."""
        source, prefix = self._backbone.source, self._backbone.prefix
        entries = [k for k in self.model.state_dict() if k.startswith(prefix)]
        absent = [k for k in entries if k not in self._backbone.weights or k in self.report[3]]
        text = f"{source}: {len(entries) - len(absent)} of {len(entries)} backbone entries matched ({prefix}*)"
        text += f", not in it: {_some(absent)}" if absent else ""
        return text + (f", its head is unused ({_some(self._backbone.unused)})" if self._backbone.unused else "")

    def require(self, path: str, every: bool, inference: bool = False) -> None:
        """UserError unless something matched; with `every`, unless every entry of the model did.

        For `inference` what training alone needs may be absent, see tools/strip_checkpoint.py.
        """
        if self.report is None:
            return
        matched, missing, _, wrong = self.report
        if inference:
            spare = tuple(training_only_prefixes(self.model))
            missing = [k for k in missing if not k.startswith(spare)]
        if matched == 0 or (every and (missing or wrong)):
            raise UserError(f"Weights {path!r} are of another architecture than the config's model: {self.describe()}.")


def _some(keys: Iterable[str], n: int = 3) -> str:
    keys = list(keys)
    return ", ".join(keys[:n]) + (", ..." if len(keys) > n else "")
