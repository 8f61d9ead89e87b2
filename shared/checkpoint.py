"""Weights: checked before they are read, and never loaded half in silence.

`.pth` files are read by torch's weights-only unpickler, which runs no code. `.pkl` is Detectron2's
format of its model zoo, a plain pickle; here it may hold arrays and plain containers only.
"""

import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from shared.classification.weights import BackboneWeights, fit_backbone
from shared.errors import CommonError, UserError
from shared.files import disk_errors, whole_file
from shared.training_only import training_only_prefixes

logger = logging.getLogger(__name__)

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
RUN_ENTRIES = {  # of a run's checkpoint beside its weights: what --resume takes from them
    "trainer": {"iteration": int, "optimizer": dict},
    "ema": {"trained_model": dict, "updates": int},
    "run": {"seed": int, "processes": list, "metrics": dict},
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
            content = _ArraysOnly(f, encoding="latin1").load()
        if not isinstance(content, dict):
            raise UserError(f"holds no state dict but {type(content).__name__}.")
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


def checkpoint_to_resume(folder: str) -> str | None:
    """The run's last checkpoint or, with a warning, the newest whole one before it. None where the run has none.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    damaged: dict[str, str] = {}
    for file in _newest_first(folder):
        problem = _damage(file)
        if problem is None:
            for name, why in damaged.items():
                logger.warning("Checkpoint %s %s: the run goes on from %s, the one before it.", name, why, file)
            return file
        damaged[file] = problem
    if damaged:
        problems = "; ".join(f"{os.path.basename(file)} {problem}" for file, problem in damaged.items())
        raise UserError(
            f"No checkpoint in {folder} is whole ({problems}): bring one back, or start again in a new folder."
        )
    return None


def _newest_first(folder: str) -> Iterable[str]:
    """What `last_checkpoint` names, then the other checkpoints of the run from the highest iteration on."""
    try:
        with open(os.path.join(folder, "last_checkpoint"), errors="replace") as f:
            last = os.path.basename(f.read().strip())
    except OSError:
        last = ""
    if last:
        yield os.path.join(folder, last)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    others = [os.path.join(folder, n) for n in names if n != last and re.fullmatch(r"model_(\d{7,}|final)\.pth", n)]
    yield from sorted(others, key=lambda file: (_iteration(file), file), reverse=True)


def _iteration(file: str) -> int:
    """-1 where it cannot be told."""
    try:
        return int(torch.load(file, map_location="meta", weights_only=True).get("iteration", -1))
    except Exception:  # whatever a damaged file ends in
        return -1


def _damage(file: str) -> str | None:
    """What is wrong with a checkpoint, as the end of a sentence. Reads all of it: the checksums are the zip file's."""
    if not os.path.isfile(file):
        return "is missing"
    try:
        zipped = zipfile.is_zipfile(file)
        if zipped:
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:
                    return "is damaged"
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception:  # whatever a damaged file ends in
        return "is damaged or incomplete"
    return _damage_of_content(content) if isinstance(content, dict) else "holds no state dict"


def _damage_of_content(content: dict) -> str | None:
    iteration, weights = content.get("iteration"), content.get("model")
    if type(iteration) is not int or iteration < 0:
        return "holds no iteration"
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        return "holds no weights"
    for name, entries in RUN_ENTRIES.items():
        entry = content.get(name, ...)
        if entry is not ... and not (
            isinstance(entry, dict) and all(isinstance(entry.get(k), t) for k, t in entries.items())
        ):
            return f"is damaged in its entry {name!r}"
    # of a run that diverged before checkpoints were looked at; a buffer may hold NaN, see `check_state_dict`
    odd = (k for k, v in weights.items() if k.endswith(("weight", "bias")) and not v.isfinite().all())
    odd = next(odd, None)
    return None if odd is None else f"holds weights that are not finite ({odd})"


def check_state_dict(state, name: str, parameters: set[str]) -> None:
    """UserError unless `state`, of the file `name`, maps names to tensors or arrays, and none of `parameters` to NaN.

    A buffer may hold NaN: Dynamic R-CNN's marks what it has not measured yet.
    """
    if not isinstance(state, dict) or not state:
        raise CommonError(f"Weights file {name!r} holds no weights.")
    for key, value in state.items():
        if not (isinstance(key, str) and isinstance(value, torch.Tensor | np.ndarray)):
            raise CommonError(f"Weights file {name!r}: its entry {str(key)[:60]!r} is no tensor.")
        if key in parameters and isinstance(value, torch.Tensor) and value.isnan().any():
            raise CommonError(f"Weights file {name!r}: its entry {key!r} holds NaN, as after a training that diverged.")


class _WholeFiles:
    """A path manager whose written files are whole or not there."""

    def __init__(self, manager):
        self._manager = manager

    def __getattr__(self, name: str):
        return getattr(self._manager, name)

    def open(self, path: str, mode: str = "r", **kwargs):
        return whole_file(path, mode) if "w" in mode else self._manager.open(path, mode, **kwargs)


class WeightsCheckpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` that writes files whole or not at all (`last_checkpoint` after the checkpoint that it
    names), checks a file before loading it, and keeps what did not match.

    A classifier's checkpoint and torchvision's ResNets fill the model's backbone, see `fit_backbone`.
    After `load`, `report` is None (nothing loaded) or (matched, missing, unexpected, wrong_shape):
    a count and three lists of names.
    """

    report: tuple[int, list[str], list[str], list[str]] | None = None
    _backbone: BackboneWeights | None = None
    _resumed = ""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.path_manager = _WholeFiles(self.path_manager)

    def save(self, name: str, **kwargs) -> None:
        """Raises DiskError; then the folder is as it was."""
        with disk_errors(self.save_dir):
            super().save(name, **kwargs)

    def load(self, path: str, *args, **kwargs):
        self.report = self._backbone = None
        if path:
            check_weights_file(path)  # by every process: each of them reads it
        return super().load(path, *args, **kwargs)

    def resume(self, path: str) -> dict:
        """`load` everything of a checkpoint of the same run. UserError where its model or another part differs."""
        self._resumed = path
        try:
            return self.load(path)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as e:
            raise CommonError(
                f"Checkpoint {path} cannot be resumed ({type(e).__name__}: {' '.join(str(e).split())[:200]}): give the "
                f"config, the overrides and the methods (--with) of its run; where they are that already, the file is "
                f"damaged: delete it, and --resume takes the one before it."
            ) from e
        finally:
            self._resumed = ""

    def _load_file(self, filename: str) -> dict:
        if filename.endswith(".pkl"):  # here it has the name by which it is opened
            _check_pickle(filename)
        checkpoint = super()._load_file(filename)
        check_state_dict(checkpoint["model"], filename, {name for name, _ in self.model.named_parameters()})
        return checkpoint

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
        unexpected = list(incompatible.unexpected_keys)
        self.report = (matched, missing, unexpected, wrong)
        if self._resumed and (missing or wrong or unexpected):  # before the optimizer, which fits this model alone
            raise CommonError(
                f"Checkpoint {self._resumed} is of another architecture than the config's model: {self.describe()}; "
                f"--resume needs the config, the overrides and the methods (--with) of the run."
            )
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
            raise CommonError(
                f"Weights {path!r} are of another architecture than the config's model: {self.describe()}."
            )


def _some(keys: Iterable[str], n: int = 3) -> str:
    keys = list(keys)
    return ", ".join(keys[:n]) + (", ..." if len(keys) > n else "")
