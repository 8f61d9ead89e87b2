"""What dense detectors divide their losses by: numbers of this process's images, or of all processes' together."""

import torch
from torch import nn

from detectron2.utils import comm
from shared.distributed import sum_over_workers


def sync_normalizers(model: nn.Module) -> None:
    """Have a dense detector divide by what all processes' images have together, its moving average included: training
    is then that of one process with the whole batch. Other models stay as they are.

    By default each process has its own normalizer, as in Detectron2, and an image counts the more the fewer objects
    the others of its process have. A model of ours has an attribute `sync_normalizers`; of Detectron2's RetinaNet and
    FCOS the average (`_ema_update`) is replaced. Theirs count a process without any object as one with one.
    """
    if hasattr(model, "sync_normalizers"):
        model.sync_normalizers = True
    elif hasattr(model, "_ema_update"):
        own = model._ema_update

        def of_all_processes(name: str, value: float, initial_value: float, momentum: float = 0.9) -> float:
            total = sum_over_workers(torch.tensor(value, dtype=torch.float64, device=model.device))
            workers = comm.get_world_size()  # gradients are averaged over them
            return own(name, total.item() / workers, initial_value / workers, momentum)

        model._ema_update = of_all_processes
