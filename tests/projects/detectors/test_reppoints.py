"""RepPoints as a detector: targets, losses and detections against explicit loops."""

import pytest
import torch

from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from projects.Detectors.reppoints_head import RepPointsHead
from tests.embedded.dense_parts import NUM_CLASSES, TwoLevels, image, targets
from tests.projects.detectors.reppoints_parts import (
    LOCATIONS,
    SHAPES,
    SIZE,
    make_model,
    slow_box,
    slow_detections,
    slow_losses,
)

OBJECTS = [[3.0, 2.0, 27.0, 25.0], [14.0, 6.0, 46.0, 31.0], [5.0, 3.0, 26.0, 26.0], [30.0, 1.0, 41.0, 13.0]]


def make_targets(num_images):
    chosen = [OBJECTS, OBJECTS[1:3], []][:num_images]
    return [targets(boxes, [(i + 1) % NUM_CLASSES for i in range(len(boxes))]) for boxes in chosen]


def train(model, gt_instances):
    with EventStorage() as storage:
        losses = model([image(instances=gt) for gt in gt_instances])
    return losses, {name: value for name, (value, _) in storage.latest().items()}


def set_points(model, which, location, yx):
    """Points of one location of the first image, (y, x) pairs in strides, repeated to nine."""
    level, i = (0, location) if location < 24 else (1, location - 24)
    points = torch.tensor(yx).repeat(9, 1)[:9].flatten()
    with torch.no_grad():
        model.head.maps[which][level][0].flatten(1)[:, i] = points


def test_boxes_lie_around_their_locations():
    """Level "coarse", row 1, column 2 of stride 16: the location is (32, 16), without half a cell."""
    model = make_model(scale=0.5)
    anchors = Boxes.cat(model.anchor_generator([torch.zeros(1, 1, *s) for s in SHAPES])).tensor
    centers = ((anchors[:, :2] + anchors[:, 2:]) / 2).tolist()
    assert centers == [[x, y] for x, y, _ in LOCATIONS] and centers[29] == [32, 16]
    points = torch.randn(30, 18, generator=torch.Generator().manual_seed(3))
    expected = torch.tensor([slow_box(p, at) for p, at in zip(points, LOCATIONS)])
    torch.testing.assert_close(model._decode(points, anchors), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_losses_equal_slow_loops(seed):
    model, gt = make_model(num_images=3, scale=1.2, seed=seed), make_targets(3)
    losses, logged = train(model, gt)
    expected, numbers, kinds = slow_losses(model, gt)
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(expected, rel=1e-4)
    assert min(kinds.values()) > 0, kinds  # ignored locations, low-quality matches, contested locations
    # the third image has no object and counts as one
    assert logged["num_pos_init"] == pytest.approx((numbers["init"] - 1) / 3)
    assert logged["num_pos_refine"] == pytest.approx((numbers["refine"] - 1) / 3)


def test_box_losses_by_hand():
    """One object, 16 x 16 around (16, 8): location 8 (row 1, column 2) of stride 8, whose unit is 32 pixels."""
    model = make_model(num_classes=NUM_CLASSES)
    gt = [targets([[8.0, 0.0, 24.0, 16.0]], [1])]
    with torch.no_grad():  # nothing elsewhere: all points at (-50, -50)
        for maps in (model.head.maps[1], model.head.maps[2]):
            for m in maps:
                m.fill_(-50.0)
    # nine pairs alternate between -a and a, five times -a: the mean is -a / 9, the unbiased variance
    # (9 - 1 / 9) / 8 * a^2 = 10 / 9 * a^2. With a = 3 / sqrt(10) and a shift of a / 9 the box is exactly [-1, 1].
    a = 3 / 10**0.5
    corners = [[-a + a / 9, -a + a / 9], [a + a / 9, a + a / 9]]
    set_points(model, 1, 8, corners)
    set_points(model, 2, 8, corners)
    losses, _ = train(model, gt)
    assert losses["loss_box_init"].item() == pytest.approx(0, abs=1e-10)
    assert losses["loss_box_refine"].item() == pytest.approx(0, abs=1e-10)
    # the refined points 2 strides to the right: x1 and x2 are 16 pixels off, 0.5 units: 2 * (0.5 - 0.055)
    # the first ones 0.2 strides down: y1 and y2 are 0.05 units off: 0.5 * 2 * 0.5 * 0.05^2 / 0.11
    set_points(model, 2, 8, [[y, x + 2] for y, x in corners])
    set_points(model, 1, 8, [[y + 0.2, x] for y, x in corners])
    losses, _ = train(model, gt)
    assert losses["loss_box_refine"].item() == pytest.approx(0.89, rel=1e-5)
    assert losses["loss_box_init"].item() == pytest.approx(0.05**2 / 0.22, rel=1e-4)
    weighted = make_model(init_loss_weight=3.0, refine_loss_weight=2.0, point_scale=8.0)
    weighted.load_state_dict(model.state_dict())
    losses, _ = train(weighted, gt)  # 16 x 16 is still of the finest level; half the error in units
    assert losses["loss_box_refine"].item() == pytest.approx(2 * 2 * (0.25 - 0.055), rel=1e-5)
    assert losses["loss_box_init"].item() == pytest.approx(3 * 2 * 0.5 * 0.025**2 / 0.11, rel=1e-4)


def test_first_boxes_choose_but_are_not_trained_by_it():
    model, gt = make_model(scale=1.2), make_targets(1)
    losses, _ = train(model, gt)
    maps = model.head.maps
    for name, trained in (("loss_cls", {0}), ("loss_box_init", {1}), ("loss_box_refine", {2})):
        params = [p for m in maps for p in m]
        grads = torch.autograd.grad(losses[name], params, retain_graph=True, allow_unused=True)
        reached = {i // 2 for i, g in enumerate(grads) if g is not None and g.abs().max() > 0}
        assert reached == trained, name
    for name in ("loss_box_init", "loss_box_refine"):
        grad = torch.autograd.grad(losses[name], model.head.points_to_box.moment_transfer, retain_graph=True)[0]
        assert grad.abs().min() > 0, name


def real_model(**kwargs):
    torch.manual_seed(0)
    # the "coarse" map of TwoLevels is a part of the "fine" one
    return make_model(head=RepPointsHead(in_channels=4, num_classes=NUM_CLASSES, num_convs=1, **kwargs))


@pytest.mark.parametrize("num_objects", [0, 4])
@pytest.mark.parametrize("method", ["moment", "minmax", "partial_minmax"])
def test_every_parameter_has_a_gradient(num_objects, method):
    model = real_model(points_to_box=method)
    gt = [targets(OBJECTS[:num_objects], [0] * num_objects), targets([], [])]
    losses, logged = train(model, gt)
    sum(losses.values()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
    if num_objects == 0:
        assert losses["loss_box_init"] == losses["loss_box_refine"] == 0 < losses["loss_cls"]
        assert logged["num_pos_init"] == logged["num_pos_refine"] == 0
        # 2 images of 30 locations and 3 classes, probability 0.01, divided by one an image
        focal = 0.75 * 0.01**2 * -torch.tensor(0.99).log()
        torch.testing.assert_close(losses["loss_cls"], 30 * 3 * focal, rtol=1e-3, atol=0)


def test_frame_of_dense_detectors():
    """One call of the backbone; `forward_training` on features and predictions from outside gives the same losses."""
    model, gt = real_model(), make_targets(2)
    calls = []
    model.backbone.register_forward_hook(lambda module, args, out: calls.append(out))
    losses, _ = train(model, gt)
    assert len(calls) == 1
    features = [calls[0][name] for name in model.head_in_features]
    with EventStorage():
        again = model.forward_training(None, features, model.head(features), gt)
    assert list(losses) == ["loss_cls", "loss_box_init", "loss_box_refine"]
    assert all(torch.equal(losses[name], again[name]) for name in losses)  # no state between the calls
    model.eval()
    with torch.no_grad():
        model([image()])
    assert len(calls) == 2
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("topk, threshold", [(1000, 0.05), (5, 0.3), (1000, 0.7)])
def test_detections_equal_slow_loops(topk, threshold):
    model = make_model(num_images=2, scale=1.5, test_topk_candidates=topk, test_score_thresh=threshold)
    model.eval()
    with torch.no_grad():
        outputs = model([image(), image()])
    for i, output in enumerate(outputs):
        found, expected = output["instances"], slow_detections(model, i, threshold, topk, nms=0.5)
        assert len(found) == len(expected) > 3
        torch.testing.assert_close(found.scores, torch.tensor([s for s, _, _ in expected]))
        assert found.pred_classes.tolist() == [k for _, k, _ in expected]
        boxes = torch.tensor([box for _, _, box in expected])
        torch.testing.assert_close(found.pred_boxes.tensor, boxes, rtol=1e-4, atol=1e-3)
        assert (boxes[:, 0] == 0).any() and (boxes[:, 2] == SIZE[1]).any()  # clipped


def test_limits_of_detections():
    model = make_model(scale=1.5, test_score_thresh=0.0, max_detections_per_image=4).eval()
    with torch.no_grad():
        few = model([image(height=64, width=96)])[0]["instances"]
        model.max_detections_per_image = 100
        many = model([image()])[0]["instances"]
        model.test_score_thresh = 1.0
        none = model([image()])[0]["instances"]
    assert len(few) == 4 < len(many) and len(none) == 0
    assert few.image_size == (64, 96)
    torch.testing.assert_close(few.pred_boxes.tensor, 2 * many.pred_boxes.tensor[:4])
    assert torch.equal(few.scores, many.scores[:4])


def test_levels_must_double():
    class Skips(TwoLevels):
        def __init__(self):
            super().__init__()
            self._out_feature_strides = {"coarse": 32, "fine": 8}

    with pytest.raises(ValueError, match=r"strides double, head_in_features \['fine', 'coarse'\] have \[8, 32\]"):
        make_model(backbone=Skips())
