"""Hooks of our own."""

import sys

from torch import nn
from tqdm import tqdm

from detectron2.engine import HookBase
from detectron2.utils import comm
from shared.randomness import Use, seed_generators


class SeedEachIteration(HookBase):
    """The random numbers of an iteration depend on the seed, the process and the iteration alone. Register it first."""

    def __init__(self, seed: int):
        self._seed = seed

    def before_step(self):
        seed_generators(self._seed, comm.get_rank(), Use.STEP, self.trainer.iter, devices=True)


class ModelAfterBackward(HookBase):
    """Lets a model change its gradients: calls its `after_backward()`, if it has one, before each optimizer step.

    A parameter whose gradient becomes None there gets no step: no momentum, no weight decay.
    """

    def __init__(self, model: nn.Module):
        """model: without DDP around it."""
        self._call = getattr(model, "after_backward", lambda: None)

    def after_backward(self):
        self._call()


class ProgressBar(HookBase):
    """A progress bar on stderr where that is a terminal; nothing elsewhere."""

    def __init__(self):
        self._bar = None

    def before_train(self):
        if sys.stderr.isatty():
            trainer = self.trainer
            self._bar = tqdm(total=trainer.max_iter, initial=trainer.start_iter, unit="it", dynamic_ncols=True)

    def after_step(self):
        if self._bar is not None:
            loss = self.trainer.storage.latest().get("total_loss")
            if loss is not None:
                self._bar.set_postfix(loss=f"{loss[0]:.3g}", refresh=False)
            self._bar.update()

    def after_train(self):
        if self._bar is not None:
            self._bar.close()
