"""projects/MuSu/pairs.py: locations inside objects, as pairs."""

import pytest
import torch

from detectron2.structures import Boxes, Instances, pairwise_point_box_distance
from projects.MuSu import Scene
from projects.MuSu.pairs import blocks_of_pairs, candidate_cells, list_pairs
from tests.projects.musu.scenes import locations, make_grid, make_scene, make_targets


def scene_of(boxes, size=(64, 96), **tiling):
    """One image with these boxes, or one a list of boxes."""
    grid, anchors = make_grid(*size, **tiling)
    images = boxes if isinstance(boxes[0], torch.Tensor) else [torch.tensor(boxes)]
    targets = [Instances(size, gt_boxes=Boxes(b), gt_classes=torch.zeros(len(b), dtype=torch.int64)) for b in images]
    logits = torch.zeros(len(images), len(anchors), 1)
    return Scene.of(grid, anchors, logits, anchors.expand(len(images), -1, -1), targets)


def pairs_of(scene, radius=None, nearest=False, max_pairs=10**9):
    blocks = list(blocks_of_pairs(scene, radius, nearest, max_pairs))
    return torch.cat([torch.stack(block, dim=1) for block in blocks])


def test_points_are_the_anchors_centres():
    """P14: anchor i belongs to location i // A, for one and for nine shapes."""
    for tiling in ({}, {"octaves": 3, "aspect_ratios": [0.5, 1.0, 2.0]}):
        grid, anchors = make_grid(64, 96, **tiling)
        assert grid.shapes_per_location == (9 if tiling else 1)
        centers = Boxes(anchors).get_centers()
        expected = grid.points().repeat_interleave(grid.shapes_per_location, dim=0)
        torch.testing.assert_close(centers, expected, rtol=0, atol=1e-4)
    assert grid.sizes() == [96, 24, 6] and grid.widths() == [12, 6, 3]


@pytest.mark.parametrize("shapes", [1, 3])
def test_pairs_are_those_of_all_distances(shapes):
    """The bisection finds what the distances of every location to every box tell."""
    ratios = [1.0] if shapes == 1 else [0.5, 1.0, 2.0]
    found = 0
    for seed in range(20):
        scene = make_scene(seed, counts=(4, 0, 7), aspect_ratios=ratios)
        inside = pairwise_point_box_distance(scene.grid.points(), Boxes(scene.gt_boxes)).amin(dim=2) > 0  # (N/A, M)
        gts, location = inside.T.nonzero(as_tuple=True)
        first = (scene.gt_images[gts] * len(inside) + location) * shapes
        expected = torch.stack([first.repeat_interleave(shapes), gts.repeat_interleave(shapes)], dim=1)
        expected[:, 0] += torch.arange(shapes).repeat(len(first))
        assert torch.equal(pairs_of(scene), expected)
        found += len(expected)
    assert found > 3000


def test_inside_is_strict():
    """Stride 8: centres at 4, 12, 20... The box from 4 to 20 has only 12 inside; on stride 16, 8; on 32, 16."""
    scene = scene_of([[4.0, 4.0, 20.0, 20.0], [4.0, 4.0, 20.001, 20.0]])
    anchors, gts = pairs_of(scene).T.tolist()
    # rows of 12, 6 and 3 locations: (12, 12) is 1 * 12 + 1; levels start at 96 and 120
    assert list(zip(gts, anchors)) == [(0, 13), (0, 96), (0, 120), (1, 13), (1, 14), (1, 96), (1, 120)]


def test_center_region():
    """Within 1.5 strides of the centre (48, 32) along both axes, 12 px on stride 8, 24 px on stride 16, exclusively."""
    scene = scene_of([[0.0, 0.0, 96.0, 64.0]])
    anchors = pairs_of(scene, radius=1.5)[:, 0]
    points = [locations(scene)[i] for i in anchors]
    # of 36, 44, 52 and 60, the outer ones are exactly 1.5 strides away
    assert {(x, y) for x, y, stride in points if stride == 8} == {(44, 28), (44, 36), (52, 28), (52, 36)}
    assert {(x, y) for x, y, stride in points if stride == 16} == {(40, 24), (40, 40), (56, 24), (56, 40)}
    small = scene_of([[0.0, 0.0, 96.0, 64.0], [40.0, 24.0, 48.0, 32.0]])
    assert len(pairs_of(small, radius=100.0)) == 126 + 1  # never outside the box


def test_object_between_the_locations():
    """P2: 4 x 4 px between centres of P3 has no location; "nearest" gives it A anchors, others stay as they are."""
    for shapes, ratios in ((1, [1.0]), (3, [0.5, 1.0, 2.0])):
        scene = scene_of([[6.0, 6.0, 10.0, 10.0], [0.0, 0.0, 40.0, 40.0]], aspect_ratios=ratios)
        # 8, 8 is the centre of the first location of stride 16; of stride 8, four are sqrt(32) / 8 strides away
        without = pairs_of(scene)
        assert (without[:, 1] == 0).sum() == shapes  # the location of stride 16 lies inside
        scene = scene_of([[5.0, 5.0, 7.5, 7.5], [0.0, 0.0, 40.0, 40.0]], aspect_ratios=ratios)
        without, extra = pairs_of(scene), pairs_of(scene, nearest=True)
        assert (without[:, 1] == 0).sum() == 0
        assert torch.equal(extra[extra[:, 1] == 1], without)
        # centre (6.25, 6.25): (8, 8) is 2.47 px or 0.155 strides away, (4, 4) of stride 8 3.18 px or 0.40
        first = 96 * shapes
        assert extra[extra[:, 1] == 0, 0].tolist() == list(range(first, first + shapes))


def test_objects_without_area_and_no_objects():
    scene = scene_of([[12.0, 12.0, 12.0, 30.0], [20.0, 20.0, 10.0, 10.0], [0.0, 0.0, 9.0, 9.0]])
    assert pairs_of(scene)[:, 1].unique().tolist() == [2]
    none = scene_of([torch.zeros(0, 4), torch.zeros(0, 4)])
    assert list(blocks_of_pairs(none, None, True, 10)) == []


def test_blocks_hold_whole_objects():
    """Any limit gives the same pairs in the same order; a block exceeds it by less than one object's pairs."""
    scene = make_scene(3, counts=(5, 6))
    cells = candidate_cells(scene.grid, scene.gt_boxes, None, False)
    whole = torch.stack(list_pairs(scene.grid, cells, scene.gt_images), dim=1)
    largest = int(whole[:, 1].bincount().max())
    for limit in (1, 50, 10**6):
        blocks = list(blocks_of_pairs(scene, None, False, limit))
        assert torch.equal(pairs_of(scene, max_pairs=limit), whole)
        assert max(len(anchors) for anchors, _ in blocks) <= limit + largest
        shared = [set(x[1].tolist()) & set(y[1].tolist()) for x, y in zip(blocks, blocks[1:])]
        assert not any(shared) and len(shared) == len(blocks) - 1
    assert len(list(blocks_of_pairs(scene, None, False, 50))) == 3


def test_levels_of_odd_sizes():
    """Maps need not divide each other: 7 x 5 cells of stride 8, 3 x 2 of stride 16, one of stride 32."""
    rng = torch.Generator().manual_seed(0)
    grid, anchors = make_grid(56, 40)
    assert grid.sizes() == [35, 6, 1]
    targets = make_targets(rng, [6], (56, 40))
    scene = Scene.of(grid, anchors, torch.zeros(1, len(anchors), 3), anchors[None], targets)
    inside = pairwise_point_box_distance(grid.points(), Boxes(scene.gt_boxes)).amin(dim=2) > 0
    assert torch.equal(pairs_of(scene), inside.T.nonzero().flip(1)) and inside.sum() > 20
