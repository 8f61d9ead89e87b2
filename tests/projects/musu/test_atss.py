"""projects/MuSu/atss.py: the baseline's samples."""

import pytest
import torch

from detectron2.structures import Boxes, pairwise_iou
from projects.MuSu import ATSSAssigner
from projects.MuSu.atss import nearest_locations
from tests.projects.musu.scenes import locations, make_grid, make_scene, rows


def naive_atss(scene, topk: int) -> set[tuple[int, int]]:
    """Alg. 1, object by object, level by level."""
    shapes, num = scene.grid.shapes_per_location, len(scene.anchors)
    places = locations(scene)[::shapes]
    ious = pairwise_iou(Boxes(scene.anchors), Boxes(scene.gt_boxes)).tolist()
    owner: dict[int, tuple[float, int]] = {}
    for j, (box, image) in enumerate(zip(scene.gt_boxes.tolist(), scene.gt_images.tolist())):
        chosen = []
        for stride in scene.grid.strides:
            level = [k for k, place in enumerate(places) if place[2] == stride]
            far = {
                k: (places[k][0] - (box[0] + box[2]) / 2) ** 2 + (places[k][1] - (box[1] + box[3]) / 2) ** 2
                for k in level
            }
            chosen += [k * shapes + a for k in sorted(level, key=far.get)[:topk] for a in range(shapes)]
        values = torch.tensor([ious[i][j] for i in chosen], dtype=torch.float64)
        threshold = values.mean() + values.std()
        for i in chosen:
            x, y, _ = places[i // shapes]
            inside = box[0] < x < box[2] and box[1] < y < box[3]
            if inside and ious[i][j] >= threshold and ious[i][j] > owner.get(image * num + i, (-1, 0))[0]:
                owner[image * num + i] = ious[i][j], j
    return {(anchor, j) for anchor, (_, j) in owner.items()}


@pytest.mark.parametrize("shapes", [1, 3])
def test_equals_loops(shapes):
    found = 0
    for seed in range(30):
        scene = make_scene(seed, (4, 0, 6), aspect_ratios=[1.0] if shapes == 1 else [0.5, 1.0, 2.0])
        got = rows(ATSSAssigner(topk=4)(scene))
        assert set(got) == naive_atss(scene, 4)
        assert set(got.values()) == {(1.0, 1.0)}
        found += len(got)
    assert found > 300


def test_candidates_of_small_levels():
    """All locations of a level that has fewer than topk: 6 of the coarsest."""
    grid, _ = make_grid(64, 96)
    near = nearest_locations(grid, torch.tensor([[0.0, 0.0, 10.0, 10.0]]), 9)
    assert near.shape == (1, 24) and near[0, 18:].sort().values.tolist() == list(range(120, 126))
    assert near[0, :3].sort().values.tolist() == [0, 1, 12]  # the centre (5, 5) is next to (4, 4), (12, 4), (4, 12)


def test_no_objects_and_errors():
    assert [len(x) for x in ATSSAssigner()(make_scene(0, (0, 0)))[:4]] == [0] * 4
    with pytest.raises(ValueError, match="topk must be positive"):
        ATSSAssigner(topk=0)
