"""The loop over iterations."""

import logging

import torch

from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from shared.errors import UserError

logger = logging.getLogger(__name__)


def run_iterations(trainer: SimpleTrainer, start_iter: int, max_iter: int) -> None:
    """`trainer.train`, but: a run that is complete already (start_iter >= max_iter) has its hooks' before_train and
    after_train called, at max_iter, and a UserError leaves no traceback in the log.
    """
    # On a CPU a resumed run is to be the same to the bit, but TorchScript (fvcore's focal loss) rounds otherwise in its
    # first calls, which it profiles, than after them. GPUs keep its fused kernels
    on_cpu = next(trainer.model.parameters()).device.type == "cpu"
    with torch.jit.optimized_execution(not on_cpu):
        _run_iterations(trainer, start_iter, max_iter)


def _run_iterations(trainer: SimpleTrainer, start_iter: int, max_iter: int) -> None:
    trainer.iter = trainer.start_iter = start_iter
    trainer.max_iter = max_iter
    with EventStorage(start_iter) as trainer.storage:
        try:
            trainer.before_train()
            for trainer.iter in range(start_iter, max_iter):
                trainer.before_step()
                trainer.run_step()
                trainer.after_step()
            trainer.iter = max_iter  # tells after_train that training is complete
        except UserError:
            raise
        except Exception:
            logger.exception("Exception during training:")
            raise
        finally:
            trainer.after_train()
