"""The folder of a run: who may write to it, its config, and where an evaluation goes."""

import glob
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from shared.config import config_text
from shared.errors import CommonError, UserError
from shared.files import alone_in, disk_errors, whole_file
from shared.training.run import Run

CONFIG, EVALUATION = "config.yaml", "inference"
TRACES = (CONFIG, "metrics.json", "last_checkpoint", "model_*.pth", f"{EVALUATION}/results.json")


def from_main(find: Callable[[], Any]) -> Any:
    """What `find` returns in the main process, in all of them; so a UserError that it raises."""
    found = None
    if comm.is_main_process():
        try:
            found = find()
        except UserError as e:
            found, e.everywhere = e, True
    found = comm.all_gather(found)[0]
    if isinstance(found, UserError):
        raise found
    return found


@contextmanager
def alone_in_run(folder: str) -> Iterator[None]:
    """UserError, in all processes, where another training writes to `folder`."""
    with ExitStack() as stack:
        from_main(lambda: stack.enter_context(alone_in(folder, "train_net.py")))
        yield


def trace_of_run(folder: str) -> str | None:
    """A file that a run, or an evaluation, has left in `folder`."""
    found = (glob.glob(os.path.join(glob.escape(folder), pattern)) for pattern in TRACES)
    return next((os.path.relpath(files[0], folder) for files in found if files), None)


def save_config(run: Run, folder: str) -> None:
    """The main process writes the resolved config; a different one from before stays, under the first free number."""
    if not comm.is_main_process():
        return
    file = Path(folder, CONFIG)
    with disk_errors(folder):
        os.makedirs(folder, exist_ok=True)
        before, text = _read(file), config_text(run.cfg)
        if before not in (None, text):
            old = next(f for i in itertools.count() if not (f := file.with_suffix(f".{i}.yaml")).exists())
            with whole_file(str(old)) as f:
                f.write(before.encode())
        with whole_file(str(file)) as f:
            f.write(text.encode())


def _read(config: Path) -> str | None:
    return config.read_text(encoding="utf-8", errors="replace") if config.exists() else None


def evaluation_folder(run: Run) -> str:
    """Where an evaluation of the run's weights is written; in all processes the same.

    `inference`, or `inference_<weights>` in the folder of a run, whose training writes the former; with a number where
    that holds another evaluation. The same evaluation again replaces its own results.
    """
    if not run.weights:
        key = "train.init_checkpoint" if run.device_key == "train.device" else "MODEL.WEIGHTS"
        raise CommonError(f"--eval-only needs weights: set {key}=FILE.")
    return from_main(lambda: _evaluation_folder(run))


def _evaluation_folder(run: Run) -> str:
    name, text = EVALUATION, config_text(run.cfg)
    if os.path.exists(os.path.join(run.output_dir, CONFIG)):
        name += f"_{Path(run.weights.partition('?')[0]).stem}"
    for number in itertools.count(1):
        folder = Path(run.output_dir, name if number == 1 else f"{name}_{number}")
        before = _read(folder / CONFIG)
        if before == text or (before is None and not (folder / "results.json").exists()):
            return str(folder)
