"""One process of test_distributed: iterations of step 1 and step 2 on one image, alone or under DDP with another
process's. Writes losses, gradients and the normalizer to {folder}/{world size}_{image}.pt."""

from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from .hosts import enc_host, make_batch

CASES = {  # LabelEnc's arguments, and iterations without and with the distance
    "step 1": ({"aug_step1": False}, (1, 2)),
    "step 1, labels alone": ({"aug_step1": False, "weight_det": 0.0, "weight_dis": 0.0}, (0,)),
    "step 2": ({"mode": "step2"}, (2, 3)),
}


def run(case, image, wrap):
    """Of each iteration, without a step between them. The second image has no objects."""
    options, iterations = CASES[case]
    model = enc_host(**options)
    net = DistributedDataParallel(model, broadcast_buffers=False) if wrap else model
    result = []
    for iteration in iterations:
        model.zero_grad()
        with EventStorage(iteration):
            losses = net(make_batch()[image : image + 1])
            sum(losses.values()).backward()
            model.after_backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        losses = {name: loss.detach() for name, loss in losses.items()}
        result.append({"losses": losses, "gradients": grads, "normalizer": model.loss_normalizer})
    return result


def main(folder: Path) -> None:
    world = comm.get_world_size()
    for image in [comm.get_rank()] if world > 1 else [0, 1]:
        torch.save({case: run(case, image, world > 1) for case in CASES}, folder / f"{world}_{image}.pt")
