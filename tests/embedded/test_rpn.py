"""The RPN and its head."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import StandardRPNHead, build_rpn_head
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from tests.embedded.rcnn_parts import make_features, make_rpn, make_targets

SPECS = {"p2": ShapeSpec(channels=8, stride=4), "p3": ShapeSpec(channels=8, stride=8)}


def first(tensor):
    return round(tensor.flatten()[0].item(), 5)


def images_of(num, size=(32, 48)):
    return ImageList(torch.zeros(num, 3, *size), [size] * num)


def test_head_initialisation_equals_the_recorded_seed():
    torch.manual_seed(7)
    head = StandardRPNHead(in_channels=8, num_anchors=3)
    assert first(head.conv.weight) == -0.02184
    assert first(head.objectness_logits.weight) == -0.00528
    assert first(head.anchor_deltas.weight) == -0.00067
    assert head.conv.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert all((p == 0).all() for name, p in head.named_parameters() if name.endswith("bias"))
    assert head.anchor_deltas.weight.shape == (12, 8, 1, 1)


def test_head_with_several_convs_applies_each_with_relu_and_keeps_width_at_minus_one():
    head = StandardRPNHead(in_channels=8, num_anchors=2, conv_dims=OmegaConf.create([6, -1]))
    keys = [k for k in head.state_dict() if k.startswith("conv")]
    assert keys == ["conv.conv0.weight", "conv.conv0.bias", "conv.conv1.weight", "conv.conv1.bias"]
    assert head.conv.conv1.weight.shape == (6, 6, 3, 3)
    x = torch.randn(2, 8, 5, 7)
    y = x
    for conv in (head.conv.conv0, head.conv.conv1):
        y = torch.nn.functional.conv2d(y, conv.weight, conv.bias, padding=1).clamp(min=0)
    logits, deltas = head([x, x[:, :, :3]])
    weight = head.objectness_logits.weight
    torch.testing.assert_close(logits[0], torch.nn.functional.conv2d(y, weight))
    assert [d.shape for d in deltas] == [(2, 8, 5, 7), (2, 8, 3, 7)]


def test_head_refuses_a_width_of_zero():
    with pytest.raises(ValueError, match="0"):
        StandardRPNHead(in_channels=8, num_anchors=2, conv_dims=[4, 0])


def test_head_from_config_counts_anchors_and_wants_equal_channels():
    cfg = get_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 20]]
    cfg.MODEL.RPN.CONV_DIMS = [5, 4]
    head = build_rpn_head(cfg, list(SPECS.values()))
    assert head.objectness_logits.weight.shape == (6, 4, 1, 1)  # 2 sizes x 3 ratios
    with pytest.raises(AssertionError, match="channel"):
        build_rpn_head(cfg, [SPECS["p2"], ShapeSpec(channels=9, stride=8)])


@pytest.mark.parametrize("as_omegaconf", [False, True])
def test_from_config_reads_every_key(as_omegaconf):
    cfg = get_cfg()
    cfg.merge_from_list(
        "MODEL.RPN.IN_FEATURES ['p2','p3'] MODEL.ANCHOR_GENERATOR.SIZES [[16],[32]] "
        "MODEL.RPN.LOSS_WEIGHT 2.0 MODEL.RPN.BBOX_REG_LOSS_WEIGHT 3.0 MODEL.RPN.NMS_THRESH 0.6 "
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE 17 MODEL.RPN.POSITIVE_FRACTION 0.3 "
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN 11 MODEL.RPN.PRE_NMS_TOPK_TEST 12 "
        "MODEL.RPN.POST_NMS_TOPK_TRAIN 13 MODEL.RPN.POST_NMS_TOPK_TEST 14 "
        "MODEL.RPN.BOUNDARY_THRESH 5 MODEL.RPN.SMOOTH_L1_BETA 0.5 MODEL.RPN.BBOX_REG_LOSS_TYPE giou "
        "MODEL.RPN.BBOX_REG_WEIGHTS (1.,2.,3.,4.) MODEL.PROPOSAL_GENERATOR.MIN_SIZE 3".split()
    )
    if as_omegaconf:
        cfg = OmegaConf.create(cfg.dump())
    rpn = build_proposal_generator(cfg, SPECS)
    assert dict(rpn.loss_weight) == {"loss_rpn_cls": 2.0, "loss_rpn_loc": 6.0}
    assert rpn.pre_nms_topk == {True: 11, False: 12}
    assert rpn.post_nms_topk == {True: 13, False: 14}
    assert (rpn.batch_size_per_image, rpn.positive_fraction) == (17, 0.3)
    assert (rpn.nms_thresh, rpn.min_box_size, rpn.anchor_boundary_thresh) == (0.6, 3.0, 5)
    assert (rpn.box_reg_loss_type, rpn.smooth_l1_beta) == ("giou", 0.5)
    assert list(rpn.box2box_transform.weights) == [1, 2, 3, 4]
    # low quality matches are on: the best anchor counts although its IoU is below 0.7
    assert rpn.anchor_matcher(torch.tensor([[0.1, 0.2]]))[1].tolist() == [0, 1]


def test_precomputed_proposals_have_no_generator():
    cfg = get_cfg()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    assert build_proposal_generator(cfg, SPECS) is None
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RRPN_of_nobody"
    with pytest.raises(KeyError, match="RRPN_of_nobody"):
        build_proposal_generator(cfg, SPECS)


def test_predictions_are_reordered_as_the_anchors():
    """Row (h * W + w) * A + a of the flat predictions is cell (h, w), anchor a."""
    rpn = make_rpn().eval()
    num_anchors, sizes = 3, [(4, 6), (2, 3)]
    logits = [torch.randn(2, num_anchors, *s) for s in sizes]
    deltas = [torch.randn(2, num_anchors * 4, *s) for s in sizes]
    rpn.rpn_head.forward = lambda features: (logits, deltas)
    seen = []
    rpn.predict_proposals = lambda *args: seen.append(args)
    rpn(images_of(2, (16, 24)), make_features(2, 16, 24))
    anchors, flat_logits, flat_deltas, _ = seen[0]
    for level, (height, width) in enumerate(sizes):
        assert flat_deltas[level].shape == (2, height * width * num_anchors, 4)
        assert len(anchors[level]) == height * width * num_anchors
        for n, a, h, w in ((0, 0, 0, 0), (1, 2, height - 1, 1), (1, 1, 1, width - 1)):
            row = (h * width + w) * num_anchors + a
            assert flat_logits[level][n, row] == logits[level][n, a, h, w]
            expected = deltas[level][n, a * 4 : a * 4 + 4, h, w]
            assert torch.equal(flat_deltas[level][n, row], expected)


ANCHORS = [
    Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [30, 20, 40, 30]])),
    Boxes(torch.tensor([[-6.0, 0, 10, 10], [20, 20, 40, 40]])),
]


def test_anchor_labels_by_hand():
    """gt (0, 0, 10, 10): IoU 1, 0.5, 0, 100/160 = 0.625, 0. Thresholds 0.3 and 0.7."""
    rpn = make_rpn(batch_size_per_image=1000, positive_fraction=1.0)
    labels, boxes = rpn.label_and_sample_anchors(ANCHORS, [make_targets([[0, 0, 10, 10]], [0]), make_targets([], [])])
    assert labels[0].tolist() == [1, -1, 0, -1, 0]
    assert labels[0].dtype == torch.int8
    assert boxes[0].tolist() == [[0, 0, 10, 10]] * 5
    assert labels[1].tolist() == [0] * 5  # no ground truth: all background
    assert boxes[1].tolist() == [[0] * 4] * 5


def test_ground_truth_that_meets_no_anchor_makes_all_that_it_misses_positive():
    rpn = make_rpn(batch_size_per_image=1000, positive_fraction=1.0)
    labels, _ = rpn.label_and_sample_anchors(ANCHORS, [make_targets([[12, 0, 18, 10]], [0])])
    assert labels[0].tolist() == [1] * 5


def test_anchors_across_the_boundary_are_ignored():
    gt = [make_targets([[0, 0, 10, 10]], [0], size=(40, 40))]
    for threshold, expected in ((0, [1, -1, -1, -1, -1]), (1, [1, -1, 0, -1, 0]), (6, None)):
        rpn = make_rpn(
            batch_size_per_image=1000,
            positive_fraction=1.0,
            anchor_boundary_thresh=threshold,
            anchor_matcher=Matcher([0.3, 0.6], [0, -1, 1]),
        )
        labels, _ = rpn.label_and_sample_anchors(ANCHORS, gt)
        # anchor 3 starts at x = -6: inside at threshold 6, where its IoU 0.625 counts.
        # anchors 2 and 4 end at 40, and inside means < 40 + threshold
        assert labels[0].tolist() == (expected or [1, -1, 0, 1, 0])


def test_sampling_draws_image_by_image_and_ignores_the_rest():
    rpn = make_rpn(batch_size_per_image=6, positive_fraction=0.5)
    anchors = rpn.anchor_generator(list(make_features(1).values()))
    targets = [make_targets([[2, 3, 20, 21], [9, 9, 30, 25]], [0, 1]), make_targets([], [])]
    torch.manual_seed(3)
    labels, _ = rpn.label_and_sample_anchors(anchors, targets)
    torch.manual_seed(3)
    for label, gt in zip(labels, targets):
        _, full = rpn.anchor_matcher(pairwise_iou(gt.gt_boxes, Boxes.cat(anchors)))
        positive, negative = subsample_labels(full, 6, 0.5, 0)
        expected = torch.full_like(full, -1)
        expected[positive], expected[negative] = 1, 0
        assert torch.equal(label, expected)
        assert (label >= 0).sum() == 6
    assert (labels[0] == 1).sum() > 0


def loss_inputs(seed=0):
    """2 images, levels of 3 and 2 anchors; image 1 has no positive anchor."""
    g = torch.Generator().manual_seed(seed)
    logits = [torch.randn(2, n, generator=g).requires_grad_() for n in (3, 2)]
    deltas = [torch.randn(2, n, 4, generator=g).requires_grad_() for n in (3, 2)]
    labels = [torch.tensor([1, 0, -1, 1, 0]).to(torch.int8), torch.tensor([0, -1, -1, 0, 0])]
    labels[1] = labels[1].to(torch.int8)
    boxes = [torch.tensor([[1.0, 2, 11, 14]] * 3 + [[15.0, 21, 42, 44]] * 2), torch.zeros(5, 4)]
    return logits, deltas, labels, boxes


def slow_losses(logits, deltas, labels, boxes, beta, batch):
    """The same in Python floats, anchor by anchor."""
    anchors = torch.cat([a.tensor for a in ANCHORS]).double().tolist()
    logits = torch.cat(logits, 1).double().tolist()
    deltas = torch.cat(deltas, 1).double().tolist()
    cls = loc = 0.0
    for n in range(2):
        for i, label in enumerate(labels[n].tolist()):
            if label >= 0:
                z = logits[n][i] if label == 1 else -logits[n][i]
                cls += math.log(1 + math.exp(-z))
            if label == 1:
                (ax, ay, ax1, ay1), (bx, by, bx1, by1) = anchors[i], boxes[n][i].tolist()
                w, h = ax1 - ax, ay1 - ay
                target = [
                    ((bx + bx1) - (ax + ax1)) / 2 / w,
                    ((by + by1) - (ay + ay1)) / 2 / h,
                    math.log((bx1 - bx) / w),
                    math.log((by1 - by) / h),
                ]
                for t, p in zip(target, deltas[n][i]):
                    d = abs(t - p)
                    loc += 0.5 * d * d / beta if d < beta else d - 0.5 * beta
    return cls / (batch * 2), loc / (batch * 2)


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_losses_equal_the_slow_ones(beta):
    rpn = make_rpn(batch_size_per_image=9, smooth_l1_beta=beta)
    logits, deltas, labels, boxes = loss_inputs()
    with EventStorage() as storage:
        losses = rpn.losses(ANCHORS, logits, labels, deltas, boxes)
    cls, loc = slow_losses(logits, deltas, labels, boxes, beta, 9)
    assert losses["loss_rpn_cls"].item() == pytest.approx(cls, rel=1e-5)
    assert losses["loss_rpn_loc"].item() == pytest.approx(loc, rel=1e-5)
    # 2 positives and 5 negatives in 2 images
    assert storage.latest()["rpn/num_pos_anchors"] == (1.0, 0)
    assert storage.latest()["rpn/num_neg_anchors"] == (2.5, 0)


def test_giou_loss_of_decoded_boxes_by_hand():
    """One positive with deltas 0, so its box is the anchor (0, 0, 10, 10); gt (5, 0, 15, 10):
    IoU 50/150, hull 15 x 10 = union: GIoU loss 2/3; normaliser 9 * 1."""
    rpn = make_rpn(batch_size_per_image=9, box_reg_loss_type="giou")
    anchors = ANCHORS[:1]
    labels = [torch.tensor([1, 0, 0], dtype=torch.int8)]
    boxes = [torch.tensor([[5.0, 0, 15, 10]] * 3)]
    with EventStorage():
        losses = rpn.losses(anchors, [torch.zeros(1, 3)], labels, [torch.zeros(1, 3, 4)], boxes)
    assert losses["loss_rpn_loc"].item() == pytest.approx(2 / 3 / 9, rel=1e-5)
    assert losses["loss_rpn_cls"].item() == pytest.approx(3 * math.log(2) / 9, rel=1e-5)


def test_without_positives_both_predictions_still_have_a_gradient():
    logits, deltas, labels, boxes = loss_inputs()
    labels = [labels[1], labels[1]]
    with EventStorage():
        losses = make_rpn().losses(ANCHORS, logits, labels, deltas, boxes)
    assert losses["loss_rpn_loc"] == 0
    sum(losses.values()).backward()
    assert all((d.grad == 0).all() for d in deltas)
    assert any((x.grad != 0).any() for x in logits)


@pytest.mark.parametrize(
    "weight, cls, loc", [(2.0, 2, 2), ({"loss_rpn_loc": 3.0}, 1, 3), (OmegaConf.create({"loss_rpn_cls": 4}), 4, 1)]
)
def test_loss_weights(weight, cls, loc):
    logits, deltas, labels, boxes = loss_inputs()
    with EventStorage():
        plain = make_rpn().losses(ANCHORS, logits, labels, deltas, boxes)
        weighted = make_rpn(loss_weight=weight).losses(ANCHORS, logits, labels, deltas, boxes)
    torch.testing.assert_close(weighted["loss_rpn_cls"], plain["loss_rpn_cls"] * cls)
    torch.testing.assert_close(weighted["loss_rpn_loc"], plain["loss_rpn_loc"] * loc)


def test_training_gives_losses_and_detached_proposals_inference_only_these():
    rpn = make_rpn(pre_nms_topk=OmegaConf.create([60, 40]), post_nms_topk=OmegaConf.create([7, 5]))
    features = make_features(2, requires_grad=True)
    targets = [make_targets([[2, 3, 20, 21]], [0]), make_targets([], [])]
    with EventStorage():
        proposals, losses = rpn(images_of(2), features, targets)
    assert [len(p) for p in proposals] == [7, 7]
    assert list(losses) == ["loss_rpn_cls", "loss_rpn_loc"]
    assert not proposals[0].proposal_boxes.tensor.requires_grad
    assert not proposals[0].objectness_logits.requires_grad
    sum(losses.values()).backward()
    assert all((x.grad != 0).any() for x in features.values())
    assert all(p.grad is not None for p in rpn.parameters())
    proposals, losses = rpn.eval()(images_of(2), features)
    assert [len(p) for p in proposals] == [5, 5]
    assert losses == {}


def test_topk_before_and_after_nms_is_for_training_and_for_inference():
    """nms_thresh 1 drops nothing: pre (1, 3) on 2 levels gives 2 and 6 boxes, post (9, 5) leaves 2 and 5."""
    rpn = make_rpn(pre_nms_topk=(1, 3), post_nms_topk=(9, 5), nms_thresh=1.0)
    features = make_features(1)
    with EventStorage():
        proposals, _ = rpn(images_of(1), features, [make_targets([], [])])
    assert len(proposals[0]) == 2
    assert len(rpn.eval()(images_of(1), features)[0][0]) == 5


def test_training_needs_ground_truth():
    with pytest.raises(AssertionError, match="gt_instances"):
        make_rpn()(images_of(1), make_features(1))


def test_proposals_decode_the_deltas_on_the_anchors():
    """Anchor (20, 20, 40, 40) with dx = 0.1, dw = log 2: centre 32, width 40, clipped at x = 48."""
    rpn = make_rpn(box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 2.0, 1.0))).eval()
    logits = [torch.tensor([[5.0, 1, 0]]), torch.tensor([[-9.0, 9]])]
    deltas = [torch.zeros(1, 3, 4), torch.zeros(1, 2, 4)]
    deltas[1][0, 1] = torch.tensor([0.1, 0, 2 * math.log(2), 0])
    (result,) = rpn.predict_proposals(ANCHORS, logits, deltas, [(32, 48)])
    torch.testing.assert_close(result.proposal_boxes.tensor[:2], torch.tensor([[12.0, 20, 48, 32], [0, 0, 10, 10]]))
    assert result.objectness_logits[:2].tolist() == [9, 5]


def test_a_subclass_can_replace_the_decoding():
    class Whole(type(make_rpn())):
        def _decode_proposals(self, anchors, pred_anchor_deltas):
            return [torch.tensor([1.0, 2, 3, 4]).expand_as(d) for d in pred_anchor_deltas]

    rpn = make_rpn().eval()
    rpn.__class__ = Whole
    proposals, _ = rpn(images_of(1), make_features(1))
    assert proposals[0].proposal_boxes.tensor.tolist() == [[1, 2, 3, 4]] * 2  # one per level


def test_non_finite_features_stop_training_and_drop_out_at_inference():
    rpn = make_rpn()
    features = make_features(2)
    features["p2"][1, :, 2, 3] = float("nan")
    targets = [make_targets([[2, 3, 20, 21]], [0])] * 2
    with EventStorage(), pytest.raises(FloatingPointError):
        rpn(images_of(2), features, targets)
    proposals, _ = rpn.eval()(images_of(2), features)
    assert all(isinstance(p, Instances) and len(p) > 0 for p in proposals)
    assert torch.isfinite(proposals[1].proposal_boxes.tensor).all()
