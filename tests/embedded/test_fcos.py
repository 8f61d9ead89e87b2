"""FCOS: matching, losses, centerness, scores."""

import math

import pytest
import torch

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from tests.embedded.dense_parts import (
    NUM_CLASSES,
    FixedHead,
    TwoLevels,
    image,
    make_fcos,
    rows,
    slow_focal,
    slow_giou_loss,
    targets,
)

FINE, COARSE = (4, 6), (2, 3)  # cells of a 32 x 48 image
BACKGROUND = NUM_CLASSES


def fixed_head(n, scale=1.0):
    return FixedHead(n, [FINE, COARSE], [NUM_CLASSES, 4, 1], scale)


def points(*xys, stride=8):
    """Anchors of side `stride` centred on the given points."""
    xy = torch.tensor([*xys], dtype=torch.float32).reshape(-1, 2)
    return Boxes(torch.cat([xy - stride / 2, xy + stride / 2], dim=1))


def labels_of(anchors, boxes, classes, **kwargs):
    labels, matched = make_fcos(None, **kwargs).label_anchors(anchors, [targets(boxes, classes)])
    return labels[0].tolist(), matched[0].tolist()


def test_anchors_are_squares_on_the_cells_centres():
    model = make_fcos(None)
    fine, coarse = model.anchor_generator([torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 1)])
    assert fine.tensor.tolist() == [[0, 0, 8, 8], [8, 0, 16, 8]]
    assert coarse.tensor.tolist() == [[0, 0, 16, 16]]
    assert list(model.head_in_features) == ["fine", "coarse"]
    assert isinstance(model.box2box_transform, Box2BoxTransformLinear)
    assert model.box2box_transform.normalize_by_size
    assert not any("anchor" in name for name in model.state_dict())


def test_candidates_lie_near_the_centre():
    far = Boxes(torch.zeros(0, 4))
    # centre (50, 50), radius 1.5 * 8 = 12, strict; box wide enough for all of them
    fine = points((50, 61.9), (50, 62), (38.1, 50), (38, 50))
    box = [[20.0, 20, 80, 80]]
    assert labels_of([fine, far], box, [1])[0] == [1, BACKGROUND, 1, BACKGROUND]
    assert labels_of([fine, far], box, [1], center_sampling_radius=2)[0] == [1, 1, 1, 1]


def test_candidates_lie_strictly_inside():
    far = Boxes(torch.zeros(0, 4))
    fine = points((46, 50), (46.1, 50), (50, 48), (50, 53.9))
    assert labels_of([fine, far], [[46.0, 48, 54, 54]], [0])[0] == [BACKGROUND, 0, BACKGROUND, 0]


def test_levels_take_the_boxes_of_their_scale():
    # Largest side distance d: fine takes 0 < d < 8 * 8, the coarsest d > 4 * 16, both strictly.
    fine, coarse = points((0, 0)), points((0, 0), stride=16)
    for half, expected in [
        (1, (0, BACKGROUND)),
        (63.9, (0, BACKGROUND)),
        (64, (BACKGROUND, BACKGROUND)),
        (64.1, (BACKGROUND, 0)),
        (4000, (BACKGROUND, 0)),
    ]:
        box = [[-half, -half, half, half]]
        assert tuple(labels_of([fine, coarse], box, [0])[0]) == expected, half
    # Three levels: the middle one has both limits.
    levels = [points((0, 0), stride=s) for s in (8, 16, 32)]
    for half, expected in [(64.1, 1), (127.9, 1), (128.1, 2)]:
        found = labels_of(levels, [[-half, -half, half, half]], [0])[0]
        assert [i for i, label in enumerate(found) if label == 0] == [expected]


def test_the_smallest_box_wins_and_near_ties_go_to_the_first():
    far = Boxes(torch.zeros(0, 4))
    fine = points((0, 0))
    big, small = [-20.0, -20, 20, 20], [-10.0, -10, 10, 10]
    for order, classes in (([big, small], [0, 1]), ([small, big], [1, 0])):
        labels, matched = labels_of([fine, far], order, classes)
        assert labels == [1] and matched == [small]
    # Areas 400 and 402: 1e8 - area rounds to a multiple of 8 in float32, so both are 99999600.
    almost = [-10.0, -10, 10, 10.1]
    assert labels_of([fine, far], [almost, small], [0, 1])[0] == [0]
    assert labels_of([fine, far], [small, almost], [1, 0])[0] == [1]


def test_no_ground_truth_is_background():
    anchors = [points((0, 0), (8, 0)), points((0, 0), stride=16)]
    labels, boxes = make_fcos(None).label_anchors(anchors, [targets([], [])])
    assert labels[0].tolist() == [BACKGROUND] * 3 and labels[0].dtype == torch.int64
    assert boxes[0].tolist() == [[0, 0, 0, 0]] * 3


GT = [targets([[2.0, 3, 15, 14], [20, 5, 46, 30]], [0, 2]), targets([[10.0, 10, 26, 25]], [1])]


def slow_losses(model, gt):
    anchors = model.anchor_generator([torch.zeros(1, 1, *FINE), torch.zeros(1, 1, *COARSE)])
    labels, boxes = model.label_anchors(anchors, gt)
    anchors = torch.cat([a.tensor for a in anchors])
    logits, deltas, ctr = (rows(list(m), k) for m, k in zip(model.head.maps, (NUM_CLASSES, 4, 1)))
    cls = loc = center = 0.0
    num_pos = 0
    for i in range(len(gt)):
        for r, label in enumerate(labels[i].tolist()):
            cls += sum(slow_focal(logits[i, r, k].item(), k == label) for k in range(NUM_CLASSES))
            if label == BACKGROUND:
                continue
            num_pos += 1
            x0, y0, x1, y1 = anchors[r].tolist()
            x, y, side = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0
            g = boxes[i][r].tolist()
            d = [max(v, 0) * side for v in deltas[i, r].tolist()]
            loc += slow_giou_loss([x - d[0], y - d[1], x + d[2], y + d[3]], g)
            lr, tb = sorted((x - g[0], g[2] - x)), sorted((y - g[1], g[3] - y))
            target = math.sqrt(lr[0] / lr[1] * tb[0] / tb[1])
            p = 1 / (1 + math.exp(-ctr[i, r, 0].item()))
            center -= target * math.log(p) + (1 - target) * math.log(1 - p)
    return cls, loc, center, num_pos


def test_losses_equal_slow_loops_and_the_normaliser_is_a_moving_average():
    model = make_fcos(fixed_head(2))
    *expected, num_pos = slow_losses(model, GT)
    assert 3 <= num_pos < 30
    normaliser = 300.0
    for _ in range(2):
        with EventStorage() as storage:
            losses = model([image(instances=gt) for gt in GT])
        normaliser = 0.9 * normaliser + 0.1 * num_pos
        for name, value in zip(("loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"), expected):
            assert losses[name].item() == pytest.approx(value / normaliser, rel=1e-4), name
        assert model.loss_normalizer == pytest.approx(normaliser)
        assert storage.latest()["num_pos_anchors"][0] == num_pos / 2
    assert len(losses) == 3 and "loss_normalizer" not in model.state_dict()


def test_losses_without_ground_truth():
    model = make_fcos(fixed_head(1))
    with EventStorage():
        losses = model([image(instances=targets([], []))])
    assert losses["loss_fcos_loc"].item() == losses["loss_fcos_ctr"].item() == 0
    assert losses["loss_fcos_cls"].item() > 0
    assert model.loss_normalizer == pytest.approx(300 * 0.9 + 1 * 0.1)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.head.parameters())


def test_scores_are_geometric_means():
    head = fixed_head(1, scale=0.0)
    with torch.no_grad():
        head.maps[0][0].fill_(-20.0)
        head.maps[0][1].fill_(-20.0)
        head.maps[0][0][0, 2, 1, 3] = math.log(0.64 / 0.36)  # class 2 of one cell: .64
        head.maps[2][0][0, 0, 1, 3] = math.log(0.25 / 0.75)  # its centerness: .25
        head.maps[1][0].fill_(1.0)
    model = make_fcos(head, test_score_thresh=0.39).eval()
    with torch.no_grad():
        found = model([image()])[0]["instances"]
        # sqrt(.64 * .25) = .4; cell (row 1, column 3) is centred on (28, 12), sides of 1 stride
        assert found.scores.tolist() == pytest.approx([0.4])
        assert found.pred_classes.tolist() == [2]
        assert found.pred_boxes.tensor.tolist() == [[20, 4, 36, 20]]
        model.test_score_thresh = 0.41
        assert len(model([image()])[0]["instances"]) == 0


def test_head_equals_the_recorded_seed():
    torch.manual_seed(7)
    head = FCOSHead(input_shape=[ShapeSpec(channels=32)] * 5, num_classes=3, conv_dims=[32, 32], norm="GN")
    names = ["cls_subnet.3", "bbox_subnet.3", "cls_score", "ctrness"]
    first = [round(head.get_submodule(n).weight.flatten()[0].item(), 5) for n in names]
    assert first == [-0.01825, -0.00871, 0.01200, 0.00578]
    assert head.ctrness.weight.shape == (1, 32, 3, 3) and (head.ctrness.bias == 0).all()
    assert head.ctrness.weight.std().item() == pytest.approx(0.01, rel=0.2)


def test_centerness_reads_the_tower_of_the_boxes():
    head = FCOSHead(input_shape=[ShapeSpec(channels=4)] * 2, num_classes=3, conv_dims=[4])
    x = [torch.randn(1, 4, 3, 5), torch.randn(1, 4, 2, 2)]
    for level, (logits, deltas, centerness) in enumerate(zip(*head(x))):
        tower = head.bbox_subnet(x[level])
        torch.testing.assert_close(logits, head.cls_score(head.cls_subnet(x[level])))
        torch.testing.assert_close(deltas, head.bbox_pred(tower))
        torch.testing.assert_close(centerness, head.ctrness(tower))


def test_real_head_trains_on_the_backbone():
    head = FCOSHead(input_shape=[ShapeSpec(channels=4)] * 2, num_classes=NUM_CLASSES, conv_dims=[4])
    model = make_fcos(head, backbone=TwoLevels())
    with EventStorage():
        sum(model([image(instances=gt) for gt in GT]).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_parameter_count_and_keys_of_r50():
    bottom_up = ResNet(
        BasicStem(norm="FrozenBN"),
        ResNet.make_default_stages(50, stride_in_1x1=True, norm="FrozenBN"),
        out_features=["res3", "res4", "res5"],
    )
    backbone = FPN(bottom_up, ["res3", "res4", "res5"], 256, top_block=LastLevelP6P7(256, 256, "p5"))
    head = FCOSHead(input_shape=[ShapeSpec(channels=256)] * 5, num_classes=80, conv_dims=[256] * 4, norm="GN")
    model = FCOS(backbone=backbone, head=head, num_classes=80, pixel_mean=[0] * 3, pixel_std=[1] * 3)
    assert sum(p.numel() for p in model.parameters()) == 32_244_245
    assert len(model.state_dict()) == 319
