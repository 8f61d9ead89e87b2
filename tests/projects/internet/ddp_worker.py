"""One process of test_distributed: steps of the intertwiner under DDP, of one process with the whole batch or of two
with an image each. Writes buffers, losses and gradients of all cases to {folder}/{world size}_{rank}.pt."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from projects.InterNet import MakeUp
from projects.InterNet.intertwiner import Foreground

from .parts import CHANNELS, SIDES, SIZE, make_critic, make_intertwiner, make_maps, make_pooler, square

# Sides and classes of both images' foreground, per iteration: large ones in both, in one, in none; nothing at all
ITERATIONS = [
    (((10, 40, 60), (0, 0, 1)), ((20, 10), (1, 0))),
    (((10, 20), (0, 1)), ((10,), (0,))),
    (((60, 10, 10), (2, 2, 0)), ((), ())),
    (((), ()), ((), ())),
    (((), ()), ((40, 60, 20, 10), (0, 1, 1, 1))),
]


class Model(nn.Module):
    """Make-up, critic and intertwiner on given maps and foreground."""

    def __init__(self, norm="", **intertwiner):
        super().__init__()
        self.makeup, self.critic = MakeUp(channels=CHANNELS, norm=norm), make_critic(norm=norm)
        self.intertwiner, self.pooler = make_intertwiner(**intertwiner), make_pooler()

    def forward(self, maps, rois, classes, levels):
        features = self.critic(self.makeup(self.pooler.pool_from(maps, range(4), rois, levels), levels))
        losses = self.intertwiner(
            critic=self.critic,
            pooler=self.pooler,
            maps=maps,
            image_sizes=[SIZE] * len(maps[0]),
            foreground=Foreground(rois, levels, classes, features),
        )
        return sum(losses.values())


CASES = {
    "default": {},
    "class mean": dict(reduction="class_mean"),
    "not detached": dict(detach=False),
    "not detached, class mean": dict(detach=False, reduction="class_mean"),
    "window, per level": dict(buffer=dict(mode="partial", window=2, per_level=True)),
    "decay, supervised": dict(buffer=dict(mode="decay", decay=0.5), big_supervise=True),
    "transport": dict(transport=dict(loss="l2"), large_source="d"),
    "SyncBN": dict(norm="SyncBN"),
}


def make_batch(iteration, images):
    maps = [x[images] for x in make_maps(seed=iteration)]
    boxes, classes, levels = [], [], []
    for number, image in enumerate(images):
        sides, labels = ITERATIONS[iteration][image]
        boxes += [[float(number), *square(side)] for side in sides]
        levels += [SIDES.index(side) for side in sides]
        classes += labels
    long = torch.long
    return (
        maps,
        torch.tensor(boxes).reshape(-1, 5),
        torch.tensor(classes, dtype=long),
        torch.tensor(levels, dtype=long),
    )


def run(case, rank, world):
    torch.manual_seed(0)
    model = Model(**CASES[case])
    net = DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model
    images = [rank] if world > 1 else [0, 1]
    result = []
    for iteration in range(len(ITERATIONS)):
        model.zero_grad()
        with EventStorage(iteration):
            loss = net(*make_batch(iteration, images))
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.05 * p.grad
        result.append(
            {
                "loss": loss.detach(),
                "mean": model.intertwiner.buffer.mean.clone(),
                "count": model.intertwiner.buffer.count.clone(),
                "gradients": {name: p.grad.clone() for name, p in model.named_parameters()},
            }
        )
    return result


def main(folder: Path) -> None:
    rank, world = comm.get_rank(), comm.get_world_size()
    torch.save({case: run(case, rank, world) for case in CASES}, folder / f"{world}_{rank}.pt")
