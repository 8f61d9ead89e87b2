"""A toy in which the best place to classify is not the best place to localise: mutual supervision brings them together.

One object a scene, on a grid of stride 8. Each location inside sees the object's class and its box, both noisy: the
class is clearest to the left of the centre, the box to the right. Two small networks are the heads. Evidence that the
assignment and the losses work together as they should, not about images.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from projects.MuSu import MuSuAssigner, Scene, TwoSidedFocal, musu_assign
from projects.MuSu.diagnostics import top_scored
from projects.MuSu.losses import box_loss, classification_loss, soft_labels
from tests.projects.musu.scenes import make_grid

CODING, SIZE, CLASSES, CLEAREST = Box2BoxTransform((1.0, 1.0, 1.0, 1.0)), 128, 3, 0.35
GRID, ANCHORS = make_grid(SIZE, SIZE, strides=(8,))


def make_batch(rng: torch.Generator, images: int) -> tuple[torch.Tensor, list[Instances]]:
    """What locations see, (images, N, CLASSES + 4 + 2 + 1), zero outside the object; and the objects."""
    points, num = GRID.points(), len(ANCHORS)
    side = 48 + 56 * torch.rand(images, 2, generator=rng)
    low = torch.rand(images, 2, generator=rng) * (SIZE - side)
    boxes, classes = torch.cat([low, low + side], dim=1), torch.randint(CLASSES, (images,), generator=rng)
    place = (points - low[:, None]) / side[:, None] - 0.5  # in the object, from -0.5 to 0.5
    left, right = ((place - torch.tensor([x, 0.0])).norm(dim=2, keepdim=True) for x in (-CLEAREST, CLEAREST))
    label = F.one_hot(classes, CLASSES)[:, None] + (0.1 + 2 * left) * torch.randn(images, num, CLASSES, generator=rng)
    moves = CODING.get_deltas(ANCHORS.repeat(images, 1), boxes.repeat_interleave(num, dim=0)).view(images, num, 4)
    moves = moves + (0.02 + right**2) * torch.randn(images, num, 4, generator=rng)
    seen = torch.cat([label, moves, 2 * place, torch.ones_like(left)], dim=2)
    targets = [Instances((SIZE, SIZE), gt_boxes=Boxes(b[None]), gt_classes=c[None]) for b, c in zip(boxes, classes)]
    return seen * (place.abs() < 0.5).all(dim=2, keepdim=True), targets


def train(rule: MuSuAssigner, steps: int = 200) -> float:
    """Mean IoU of the box at the top-scored location, on new scenes."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    heads = [nn.Sequential(nn.Linear(CLASSES + 7, 32), nn.ReLU(), nn.Linear(32, out)) for out in (CLASSES, 4)]
    nn.init.constant_(heads[0][-1].bias, -4.6)
    optimizer = torch.optim.Adam([p for head in heads for p in head.parameters()], lr=1e-2)

    def see(images: int):
        seen, targets = make_batch(rng, images)
        logits, moves = (head(seen) for head in heads)
        boxes = CODING.apply_deltas(moves.flatten(0, 1), ANCHORS.repeat(images, 1)).view_as(moves)
        return logits, boxes, Scene.of(GRID, ANCHORS, logits, boxes, targets)

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        logits, boxes, scene = see(8)
        anchors, gts, w_cls, w_reg = musu_assign(scene, rule)[:4]
        target = soft_labels(anchors, scene.gt_classes[gts], w_cls, torch.ones_like(w_cls), CLASSES)
        loss = classification_loss(TwoSidedFocal(), logits.flatten(0, 1), target) / w_cls.sum()
        loss += 2 * box_loss(boxes.flatten(0, 1)[anchors], scene.gt_boxes[gts], w_reg) / w_reg.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float(top_scored(see(200)[2]).u.mean())


@pytest.fixture(scope="module")
def default() -> float:
    return train(MuSuAssigner())


@pytest.mark.parametrize(
    "rule, margin",
    [(MuSuAssigner(mix_own_cls=1.0, mix_own_reg=1.0), 0.05), (MuSuAssigner(bag_filter="none", weight_fn="hard"), 0.1)],
    ids=["self", "hard"],
)
def test_mutual_supervision_aligns_the_heads(default, rule, margin):
    """.85 against .76 with self-supervision and .69 with hard labels; joint assignment, .81, is not asserted."""
    assert default > 0.8
    assert train(rule) < default - margin
