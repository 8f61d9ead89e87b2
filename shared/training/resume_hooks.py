"""Hooks that save, evaluate and end a run so that it can be resumed bit for bit."""

import json
import os
import re
from collections.abc import Callable

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from shared.checkpoint import WeightsCheckpointer
from shared.errors import UserError
from shared.files import whole_file
from shared.training.losses import LossWatch
from shared.training.resume import Start
from shared.training.state import RunState
from shared.training.stops import Interrupted, RunStopped, StopSignals


class SaveCheckpoints(hooks.PeriodicCheckpointer):
    """PeriodicCheckpointer for all processes, of which the main one writes; also out of turn, see `save_now`.

    `max_to_keep` counts the checkpoints of the run's earlier parts, too. `saved` is the iteration of the last one.
    Weights that are not finite are never saved: they end the run.
    """

    def __init__(
        self,
        checkpointer: WeightsCheckpointer,
        state: RunState,
        watch: LossWatch,
        period: int,
        keep: int | None,
        start: Start,
    ):
        """keep: how many numbered checkpoints stay, None: all."""
        super().__init__(checkpointer, period)
        if keep is not None and keep < 1:
            raise UserError(f"train.checkpointer.max_to_keep must be at least 1, or null to keep all; got {keep}.")
        self._state, self._watch, self._keep, self.start = state, watch, keep, start
        self.saved = None if start.checkpoint is None else start.first_iter - 1

    def after_step(self):
        done = self.trainer.iter + 1
        if done % self.period == 0 or done >= self.max_iter:
            self._save(super().after_step)

    def save_now(self) -> None:
        """A checkpoint of the iteration that has been completed, unless it has one."""
        if self.saved != self.trainer.iter:
            self._save(self._write)

    def collect(self) -> None:
        """All processes, before what may end in `save_collected`: hand over what a checkpoint needs."""
        if self.saved != self.trainer.iter < self.max_iter:
            self._prepare()

    def save_collected(self) -> None:
        """As `save_now`, of what `collect` has taken in this iteration: by the main process alone."""
        if self.saved != self.trainer.iter < self.max_iter:
            self._write_and_drop(self._write)

    def _write(self) -> None:
        iteration = self.trainer.iter
        self.checkpointer.save(f"{self.file_prefix}_{iteration:07d}", iteration=iteration)

    def finish(self) -> None:
        """Write the final checkpoint of a run that was killed just before."""
        iteration = self.trainer.iter
        if iteration == self.max_iter - 1 and not self.start.checkpoint.endswith("_final.pth"):
            self._save(lambda: self.checkpointer.save(f"{self.file_prefix}_final", iteration=iteration))

    def _save(self, write: Callable[[], None]) -> None:
        self._prepare()
        if comm.is_main_process():
            self._write_and_drop(write)
        self.saved = self.trainer.iter

    def _prepare(self) -> None:
        self._watch.require_finite_weights()
        self._state.collect(self.trainer.storage)

    def _write_and_drop(self, write: Callable[[], None]) -> None:
        write()
        self._drop_old()
        self.saved = self.trainer.iter

    def _drop_old(self) -> None:
        if self._keep is None:
            return
        folder, found = self.checkpointer.save_dir, []
        for name in os.listdir(folder):
            match = re.fullmatch(rf"{self.file_prefix}_(\d{{7,}})\.pth", name)
            if match and int(match[1]) <= self.trainer.iter:  # later ones: a run that fell back behind a damaged one
                found.append((int(match[1]), name))
        for _, name in sorted(found)[: -self._keep]:
            os.remove(os.path.join(folder, name))

    def where_resume_begins(self) -> str:
        """A sentence."""
        if self.saved is None:
            return "No checkpoint was written yet: --resume begins anew."
        if self.saved + 1 >= self.max_iter:
            return "All iterations are done: --resume evaluates."
        return f"--resume goes on from iteration {self.saved + 1}."


class StopWhenAsked(HookBase):
    """Ends the run with a checkpoint at the end of the iteration in which a signal has come. Register it last."""

    def __init__(self, watch: LossWatch, saver: SaveCheckpoints):
        self._watch, self._saver = watch, saver

    def stop_if_asked(self) -> None:
        """All processes do, or none."""
        if self._watch.stop_signal is not None:
            self._saver.save_now()
            raise RunStopped(self._watch.stop_signal, self._saver.where_resume_begins())

    def after_step(self):
        self.stop_if_asked()


class Evaluate(hooks.EvalHook):
    """EvalHook that a signal interrupts, and that a resumed run need not repeat.

    A checkpoint is written before the evaluation of its iteration, so `finish` makes up for it; results that are known
    already come from `evaluated.json`.
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[], dict],
        prepare: Callable[[], None],
        file: str,
        stop: StopSignals,
        stopper: StopWhenAsked,
        saver: SaveCheckpoints,
    ):
        """prepare: what `evaluate` does to the model. file: `evaluated.json`."""
        super().__init__(period, self._results)
        self._evaluate, self._prepare, self._file = evaluate, prepare, file
        self._stop, self._stopper, self._saver = stop, stopper, saver
        self._finishing = False
        self.last: dict = {}

    def after_train(self):
        if self.trainer.iter >= self.trainer.max_iter:  # upstream's looks at the number alone: not after an error
            super().after_train()

    def finish(self) -> None:
        """Evaluate, if that was due after this iteration."""
        self._finishing = True
        self.after_step()
        self._finishing = False

    def _results(self) -> dict:
        self._stopper.stop_if_asked()
        known = comm.all_gather(self._known())[0] if self._finishing else None
        if known is not None:
            self._prepare()
            self.last = known if comm.is_main_process() else {}
            return self.last
        self._saver.collect()
        try:
            with self._stop.interrupting():
                self.last = self._evaluate()
        except Interrupted:
            self._end_early()
        if comm.is_main_process():
            with whole_file(self._file, "w") as f:
                json.dump({"iteration": self.trainer.iter, "results": self.last}, f)
        return self.last

    def _known(self) -> dict | None:
        try:
            with open(self._file) as f:
                content = json.load(f)
            return content["results"] if content["iteration"] == self.trainer.iter else None
        except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged
            return None

    def _end_early(self) -> None:
        """Each process for itself: the others may be anywhere in their evaluation, and cannot take part in saving."""
        if not comm.is_main_process():
            raise SystemExit(128 + self._stop.signal)
        self._saver.save_collected()
        sentence = f"the evaluation was broken off. {self._saver.where_resume_begins()}"
        raise RunStopped(self._stop.signal, sentence, everywhere=False)


class FinishIteration(HookBase):
    """A checkpoint is written in the middle of its iteration's hooks; what follows there the resumed run does first.

    Register it after the hooks that it calls.
    """

    def __init__(self, state: RunState, saver: SaveCheckpoints, others: list[HookBase]):
        """others: what is registered after `saver` and does something at the end of an iteration."""
        self._state, self._saver, self._others = state, saver, others

    def before_train(self):
        trainer, saved = self.trainer, self._saver.saved
        self._state.resume_metrics(trainer.storage, trainer.start_iter)
        if saved is None or not self._state.was_loaded:
            return
        trainer.iter = trainer.storage.iter = saved
        self._saver.finish()
        for hook in self._others:
            hook.finish() if isinstance(hook, Evaluate) else hook.after_step()
        trainer.iter = trainer.storage.iter = trainer.start_iter
