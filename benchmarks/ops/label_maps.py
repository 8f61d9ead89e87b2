"""Label maps of two 800 x 1344 images with 7 and 8 objects of 3 and 4 classes (5 in all), as a batch of COCO has them.

eager: dense rendering of all 80 classes, the formula over the full canvas for every object (the axes' distances as
vectors, which costs it less than canvases of them). torch.compile: the same, compiled for these very classes.
slices: PyTorch without the kernel, the classes present only, each object over its own pixels only.
"""

import torch

from benchmarks.ops.harness import Case
from shared.ops.label_maps import dense_label_maps, render_label_maps

SIZE = (800, 1344)
CLASSES = ((0, 0, 2, 0, 56, 2, 0), (0, 16, 41, 0, 0, 2, 16, 0))


def make_boxes(count, rng):
    """Boxes of 10 to 500 pixels a side in an 800 x 1333 image."""
    corner = torch.rand(count, 2, generator=rng) * torch.tensor([1233.0, 700.0])
    side = 10 * 50 ** torch.rand(count, 2, generator=rng)
    return torch.cat([corner, torch.minimum(corner + side, torch.tensor([1333.0, 800.0]))], dim=1)


def dense_compiled():
    """Dense rendering with the classes as constants: one graph, in which each plane with objects is written once."""
    slots = [80 * image + label for image, labels in enumerate(CLASSES) for label in sorted(set(labels))]

    @torch.compile(fullgraph=True)
    def render(*boxes):
        columns, rows = (torch.arange(n, dtype=torch.float32, device=boxes[0].device) + 0.5 for n in SIZE[::-1])
        planes = dict.fromkeys(slots, torch.zeros((), device=boxes[0].device))
        for image, (group, labels) in enumerate(zip(boxes, CLASSES)):
            for box, label in zip(group, labels):
                x0, y0, x1, y1 = box.unbind()
                along = (columns - (x0 + x1) / 2).abs() / (x1 - x0)
                across = (rows - (y0 + y1) / 2).abs() / (y1 - y0)
                p = 1 - torch.maximum(along[None, :], across[:, None])
                slot = 80 * image + label
                planes[slot] = torch.maximum(planes[slot], torch.where(p >= 0.5, p, 0))
        maps = torch.zeros((160, *SIZE), device=boxes[0].device)
        for slot, plane in planes.items():
            maps[slot] = plane
        return maps.view(2, 80, *SIZE)

    return render


def slices(boxes, classes):
    """The classes present, and each object where it can be at least 0.5."""
    present = torch.cat(classes).unique()
    maps = torch.zeros((len(boxes), len(present), *SIZE), device=boxes[0].device)
    for image, (group, labels) in enumerate(zip(boxes, classes)):
        for box, slot in zip(group.tolist(), torch.searchsorted(present, labels).tolist()):
            x0, y0, x1, y1 = box
            left, top = max(int(x0) - 1, 0), max(int(y0) - 1, 0)
            here = maps[image, slot, top : int(y1) + 2, left : int(x1) + 2]
            columns = torch.arange(left, left + here.shape[1], device=maps.device) + 0.5
            rows = torch.arange(top, top + here.shape[0], device=maps.device) + 0.5
            along, across = (columns - (x0 + x1) / 2).abs() / (x1 - x0), (rows - (y0 + y1) / 2).abs() / (y1 - y0)
            p = 1 - torch.maximum(along[None, :], across[:, None])
            torch.maximum(here, torch.where(p >= 0.5, p, 0), out=here)
    return maps


def cases(device):
    rng = torch.Generator().manual_seed(0)
    boxes = [make_boxes(len(c), rng).to(device) for c in CLASSES]
    classes = [torch.tensor(c, device=device) for c in CLASSES]
    options = {"num_classes": 80}

    def eager(*boxes):
        return dense_label_maps(boxes, classes, SIZE, **options)

    def ours(*boxes):
        return render_label_maps(boxes, classes, SIZE, **options)[0]

    maps, present = render_label_maps(boxes, classes, SIZE, **options)
    assert torch.equal(maps, eager(*boxes)[:, present]), "the kernel and dense rendering differ"
    assert torch.allclose(maps, slices(boxes, classes), rtol=0, atol=1e-4), "the kernel and the slices differ"
    only = f"the {len(present)} classes present of 80; checked against eager's, the kernel's to the bit"
    return [
        Case(
            op="label_maps",
            title=f"2 x {SIZE[0]} x {SIZE[1]}, 7 and 8 objects, {len(present)} of 80 classes, float32",
            inputs=boxes,
            variants={
                "eager": eager,
                "torch.compile": dense_compiled(),
                "slices": lambda *boxes: slices(boxes, classes),
                "ours": ours,
            },
            bytes_moved=(maps.numel() * 4, 0),
            differs={"slices": only, "ours": only},
            target=10.0,
        )
    ]
