"""Losses and weights that are not finite end a run, with the images or the parameters that are to blame."""

import logging
import math
import os
from typing import Any

import torch
from torch import Tensor, nn

from detectron2.engine import HookBase
from detectron2.utils import comm
from shared.errors import UserError
from shared.files import DiskError, disk_errors, whole_file
from shared.training.stops import StopSignals

logger = logging.getLogger(__name__)

DEBUG_FILE = "model_nonfinite.pth"


class NonFiniteLoss(UserError):
    everywhere = True


class LossWatch(HookBase):
    """Looks at the losses of every iteration before the optimizer's step, and tells all processes what one of them has
    met: a loss that is not finite, or a signal to stop (`stop_signal`, from then on).

    Of a loss that is not finite all processes raise NonFiniteLoss, after the main one has saved `model_nonfinite.pth`:
    the weights from before the step, the iteration, and each affected process's losses and image files. A
    FloatingPointError of the model itself (Detectron2's proposals that are not finite) counts as one.
    """

    def __init__(self, model: nn.Module, stop: StopSignals, folder: str):
        """model: without DDP around it."""
        self.stop_signal: int | None = None
        self._model, self._stop, self._folder = model, stop, folder
        self._forward = model.forward
        self._batch: list[dict] = []
        self._losses: dict[str, Tensor] = {}
        self._error = ""

    def before_train(self):
        self._model.forward = self._watched_forward

    def after_train(self):
        vars(self._model).pop("forward", None)  # the class's own is there again

    def _watched_forward(self, batched_inputs, *args, **kwargs):
        if not self._model.training:
            return self._forward(batched_inputs, *args, **kwargs)
        self._batch, self._error = batched_inputs, ""
        try:
            losses = self._forward(batched_inputs, *args, **kwargs)
        except FloatingPointError as e:
            # the other processes wait for this one's gradients, so the backward pass has to come
            self._error = " ".join(str(e).split()).rstrip(".")
            losses = {"loss": sum(p.sum() for p in self._model.parameters() if p.requires_grad) * math.nan}
        self._losses = {"total_loss": losses} if isinstance(losses, Tensor) else losses
        return losses

    def after_backward(self):
        mine = self._stop.signal, self._report()
        self._batch, self._losses = [], {}
        everyone = comm.all_gather(mine)
        self.stop_signal = max((signum for signum, _ in everyone if signum is not None), default=None)
        reports = [report for _, report in everyone if report is not None]
        if reports:
            raise NonFiniteLoss(self._tell(reports))

    def _report(self) -> dict[str, Any] | None:
        """None where all losses and their sum are finite."""
        names = list(self._losses)
        values = [self._losses[name].detach().double().sum() for name in names]
        values = torch.stack([value.to(values[0].device) for value in values])
        values = torch.cat([values, values.sum()[None]]).tolist()  # one wait for the device
        if all(map(math.isfinite, values)):
            return None
        files = [str(x.get("file_name", x.get("image_id", "an image in memory"))) for x in self._batch]
        return {"losses": dict(zip(names, values)), "files": files, "error": self._error, "rank": comm.get_rank()}

    def _tell(self, reports: list[dict[str, Any]]) -> str:
        iteration, first = self.trainer.iter, reports[0]
        values = first["losses"]
        odd = [k for k, v in values.items() if not math.isfinite(v)] or list(values)  # or their sum overflows
        what = first["error"] or ", ".join(f"{k} is {values[k]}" for k in odd)
        files = ", ".join(file for report in reports for file in report["files"])
        saved = self._save(iteration, reports, "from before the step") if comm.is_main_process() else ""
        return (
            f"Iteration {iteration}: {what}, and training cannot go on. The images of the batch: {files}. {saved} "
            f"Lower the learning rate, bound the gradients' norm, or look at these images."
        )

    def require_finite_weights(self) -> None:
        """Before a checkpoint, in all processes: NonFiniteLoss where gradients that were not finite, under losses that
        were, have reached the parameters."""
        names, parameters = zip(*self._model.named_parameters())
        finite = torch.stack([p.detach().isfinite().all() for p in parameters]).tolist()
        mine = [name for name, is_finite in zip(names, finite) if not is_finite]
        found = sorted({name for names in comm.all_gather(mine) for name in names})
        if not found:
            return
        iteration = self.trainer.iter
        saved = self._save(iteration, [{"parameters": found}], "of now") if comm.is_main_process() else ""
        some = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if found[3:] else "")
        raise NonFiniteLoss(
            f"Iteration {iteration}: the losses were finite, the weights are not ({some}), and training cannot go on. "
            f"{saved} Lower the learning rate, bound the gradients' norm, or look for what has no finite gradient."
        )

    def _save(self, iteration: int, reports: list[dict[str, Any]], which: str) -> str:
        """Returns a sentence."""
        file = os.path.join(self._folder, DEBUG_FILE)
        try:
            with disk_errors(self._folder), whole_file(file) as f:
                torch.save({"model": self._model.state_dict(), "iteration": iteration, "processes": reports}, f)
        except DiskError as e:
            return f"The weights {which} could not be saved: {e}"
        return f"The weights {which} are in {file}."
