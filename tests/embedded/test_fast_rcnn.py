"""Box predictor: initialisation, losses, inference."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.fast_rcnn import _log_classification_stats, fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

K = 3
NAN = float("nan")


def first(tensor):
    return round(tensor.flatten()[0].item(), 5)


def make(channels=8, weights=(10.0, 10.0, 5.0, 5.0), **changes):
    transform = Box2BoxTransform(weights=weights)
    return FastRCNNOutputLayers(
        ShapeSpec(channels=channels), **{"box2box_transform": transform, "num_classes": K, **changes}
    )


def test_predictor_initialisation_equals_the_recorded_seed():
    torch.manual_seed(7)
    predictor = make()
    assert first(predictor.cls_score.weight) == 0.00261
    assert first(predictor.bbox_pred.weight) == -0.00047
    assert predictor.cls_score.weight.shape == (K + 1, 8)
    assert predictor.bbox_pred.weight.shape == (4 * K, 8)
    assert (predictor.cls_score.bias == 0).all() and (predictor.bbox_pred.bias == 0).all()


def test_input_may_be_an_int_or_have_a_size():
    transform = Box2BoxTransform(weights=(1.0,) * 4)
    predictor = FastRCNNOutputLayers(7, box2box_transform=transform, num_classes=K)
    assert predictor.cls_score.in_features == 7
    shape = ShapeSpec(channels=2, height=3, width=4)
    predictor = FastRCNNOutputLayers(shape, box2box_transform=transform, num_classes=K, cls_agnostic_bbox_reg=True)
    logits, deltas = predictor(torch.randn(5, 2, 3, 4))
    assert logits.shape == (5, 4) and deltas.shape == (5, 4)


def test_predictor_from_config():
    cfg = get_cfg()
    cfg.merge_from_list(
        "MODEL.ROI_HEADS.NUM_CLASSES 5 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.3 "
        "MODEL.ROI_HEADS.NMS_THRESH_TEST 0.4 TEST.DETECTIONS_PER_IMAGE 9 "
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA 0.2 "
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE ciou MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT 3.0 "
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS (1.,2.,3.,4.)".split()
    )
    predictor = FastRCNNOutputLayers(OmegaConf.create(cfg.dump()), ShapeSpec(channels=8))
    assert predictor.cls_score.out_features == 6 and predictor.bbox_pred.out_features == 4
    assert (predictor.test_score_thresh, predictor.test_nms_thresh) == (0.3, 0.4)
    assert predictor.test_topk_per_image == 9
    assert (predictor.box_reg_loss_type, predictor.smooth_l1_beta) == ("ciou", 0.2)
    assert dict(predictor.loss_weight) == {"loss_box_reg": 3.0}
    assert list(predictor.box2box_transform.weights) == [1, 2, 3, 4]


@pytest.mark.embedded_only
def test_the_federated_loss_is_refused():
    with pytest.raises(ValueError, match="federated"):
        make(use_fed_loss=True)


def proposals(with_gt=(True, True, False)):
    """Two images with ground truth and one without: 3 + 2 + 2 rows, of them 3 foreground."""
    boxes = [
        [[0.0, 0, 10, 10], [5, 5, 25, 15], [0, 0, 4, 8]],
        [[1.0, 2, 9, 20], [3, 3, 30, 30]],
        [[2.0, 2, 8, 8], [0, 0, 31, 31]],
    ]
    gt_boxes = [[[1.0, 1, 11, 12], [5, 5, 20, 17], [0, 0, 4, 8]], [[1.0, 2, 9, 20], [5, 3, 28, 30]], None]
    classes = [[0, 2, K], [K, 1], [K, K]]
    result = []
    for b, g, c in zip(boxes, gt_boxes, classes):
        p = Instances((32, 32), proposal_boxes=Boxes(torch.tensor(b)), gt_classes=torch.tensor(c))
        if g is not None:
            p.gt_boxes = Boxes(torch.tensor(g))
        result.append(p)
    return result


def predictions(agnostic=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, K + 1, generator=g).requires_grad_()
    return logits, torch.randn(7, 4 if agnostic else 4 * K, generator=g).requires_grad_()


def slow_box_loss(deltas, agnostic, weights, beta):
    """Sum over the foreground rows in Python floats, divided by all 7 rows."""
    deltas, total, row = deltas.double().tolist(), 0.0, 0
    for p in proposals():
        for i, c in enumerate(p.gt_classes.tolist()):
            if c < K:
                ax, ay, ax1, ay1 = p.proposal_boxes.tensor[i].tolist()
                bx, by, bx1, by1 = p.gt_boxes.tensor[i].tolist()
                w, h = ax1 - ax, ay1 - ay
                target = [
                    ((bx + bx1) - (ax + ax1)) / 2 / w,
                    ((by + by1) - (ay + ay1)) / 2 / h,
                    math.log((bx1 - bx) / w),
                    math.log((by1 - by) / h),
                ]
                predicted = deltas[row] if agnostic else deltas[row][4 * c : 4 * c + 4]
                for t, weight, d in zip(target, weights, predicted):
                    e = abs(t * weight - d)
                    total += 0.5 * e * e / beta if e < beta else e - 0.5 * beta
            row += 1
    return total / 7


@pytest.mark.parametrize("agnostic, beta", [(False, 0.0), (True, 0.8)])
def test_losses_equal_the_slow_ones(agnostic, beta):
    weights = (10.0, 10.0, 5.0, 5.0)
    predictor = make(cls_agnostic_bbox_reg=agnostic, smooth_l1_beta=beta)
    logits, deltas = predictions(agnostic)
    with EventStorage():
        losses = predictor.losses((logits, deltas), proposals())
    rows = logits.double().tolist()
    classes = [c for p in proposals() for c in p.gt_classes.tolist()]
    entropies = [math.log(sum(map(math.exp, r))) - r[c] for r, c in zip(rows, classes)]
    assert losses["loss_cls"].item() == pytest.approx(sum(entropies) / 7, rel=1e-5)
    box = slow_box_loss(deltas, agnostic, weights, beta)
    assert losses["loss_box_reg"].item() == pytest.approx(box, rel=1e-5)
    sum(losses.values()).backward()
    grad = deltas.grad.unflatten(1, (-1, 4)).abs().sum(2) > 0
    foreground = [(0, 0), (1, 2), (4, 1)]  # (row, class)
    assert grad.nonzero().tolist() == [[r, 0 if agnostic else c] for r, c in foreground]


def test_giou_loss_by_hand():
    """Deltas 0 of class 1 on proposal (0, 0, 10, 10), gt (5, 0, 15, 10): 1 - 50/150 = 2/3, and
    half of it, since one of the two rows is background."""
    predictor = make(box_reg_loss_type="giou")
    p = Instances((32, 32), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 10, 10]] * 2)))
    p.gt_classes = torch.tensor([1, K])
    p.gt_boxes = Boxes(torch.tensor([[5.0, 0, 15, 10]] * 2))
    with EventStorage():
        losses = predictor.losses((torch.zeros(2, K + 1), torch.zeros(2, 4 * K)), [p])
    assert losses["loss_box_reg"].item() == pytest.approx(1 / 3, rel=1e-5)
    assert losses["loss_cls"].item() == pytest.approx(math.log(4))


def test_sigmoid_loss_sums_over_classes_and_leaves_the_background_column_out():
    predictor = make(use_sigmoid_ce=True)
    logits, deltas = predictions()
    with EventStorage():
        loss = predictor.losses((logits, deltas), proposals())["loss_cls"]
    classes = [c for p in proposals() for c in p.gt_classes.tolist()]
    total = 0.0
    for row, c in zip(logits.double().tolist(), classes):
        for k in range(K):
            total += math.log(1 + math.exp(-row[k] if k == c else row[k]))
    assert loss.item() == pytest.approx(total / 7, rel=1e-5)
    (grad,) = torch.autograd.grad(loss, logits)
    assert (grad[:, K] == 0).all() and (grad[:, :K] != 0).all()
    probs = predictor.predict_probs((logits, deltas), proposals())
    torch.testing.assert_close(torch.cat(list(probs)), logits.sigmoid())


def test_background_only_gives_a_zero_box_loss_with_a_graph():
    predictor = make()
    logits, deltas = predictions()
    with EventStorage() as storage:
        losses = predictor.losses((logits[5:], deltas[5:]), proposals()[2:])
    assert losses["loss_box_reg"] == 0
    losses["loss_box_reg"].backward()
    assert (deltas.grad == 0).all()
    # no foreground: no foreground statistics
    assert set(storage.latest()) == {"fast_rcnn/cls_accuracy"}


def empty_proposals():
    p = Instances((32, 32), proposal_boxes=Boxes(torch.zeros(0, 4)))
    p.gt_classes = torch.zeros(0, dtype=torch.int64)
    return [p]


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("empty", [empty_proposals(), pytest.param([], marks=pytest.mark.embedded_only)])
def test_no_proposals_give_zero_losses_with_gradients(agnostic, empty):
    predictor = make(cls_agnostic_bbox_reg=agnostic)
    with EventStorage() as storage:
        losses = predictor.losses(predictor(torch.zeros(0, 8)), empty)
    assert losses["loss_cls"] == 0 and losses["loss_box_reg"] == 0
    sum(losses.values()).backward()
    assert all((p.grad == 0).all() for p in predictor.parameters())
    assert storage.latest() == {}


@pytest.mark.embedded_only
def test_no_proposals_keep_the_graph_of_the_sigmoid_loss():
    predictor = make(use_sigmoid_ce=True)
    with EventStorage():
        losses = predictor.losses(predictor(torch.zeros(0, 8)), empty_proposals())
    losses["loss_cls"].backward()
    assert (predictor.cls_score.weight.grad == 0).all()


@pytest.mark.parametrize("weight, cls, box", [(2.0, 2, 2), (OmegaConf.create({"loss_box_reg": 3.0}), 1, 3)])
def test_loss_weights(weight, cls, box):
    with EventStorage():
        plain = make().losses(predictions(), proposals())
        weighted = make(loss_weight=weight).losses(predictions(), proposals())
    torch.testing.assert_close(weighted["loss_cls"], plain["loss_cls"] * cls)
    torch.testing.assert_close(weighted["loss_box_reg"], plain["loss_box_reg"] * box)


def test_proposals_must_not_carry_a_gradient():
    p = proposals()
    p[0].proposal_boxes.tensor.requires_grad_()
    with EventStorage(), pytest.raises(AssertionError, match="should not require gradients"):
        make().losses(predictions(), p)


def test_classification_statistics_by_hand():
    """Classes 0 0 1 2 K K; predicted 0 K 1 K K 1: 3 of 6 right; 2 of 4 fg right; 2 of 4 missed."""
    logits = torch.nn.functional.one_hot(torch.tensor([0, K, 1, K, K, 1]), K + 1).float()
    with EventStorage() as storage:
        _log_classification_stats(logits, torch.tensor([0, 0, 1, 2, K, K]), "some")
    assert {k: v[0] for k, v in storage.latest().items()} == {
        "some/cls_accuracy": 0.5,
        "some/fg_cls_accuracy": 0.5,
        "some/false_negative": 0.5,
    }


def test_predictions_are_split_by_image():
    predictor = make(weights=(1.0, 1.0, 1.0, 1.0))
    logits, _ = predictions()
    deltas = torch.zeros(7, 4 * K)
    deltas[3, 4:8] = torch.tensor([0.5, 0, math.log(2), 0])  # row 0 of image 1, class 1
    boxes = predictor.predict_boxes((logits, deltas), proposals())
    assert [tuple(b.shape) for b in boxes] == [(3, 12), (2, 12), (2, 12)]
    # proposal (1, 2, 9, 20): centre x 5 + 0.5 * 8 = 9, width 16
    torch.testing.assert_close(boxes[1][0, 4:8], torch.tensor([1.0, 2, 17, 20]))
    torch.testing.assert_close(boxes[1][0, :4], torch.tensor([1.0, 2, 9, 20]))
    probs = predictor.predict_probs((logits, deltas), proposals())
    torch.testing.assert_close(probs[2], logits[5:].softmax(1))


@pytest.mark.parametrize("agnostic", [False, True])
def test_boxes_of_the_gt_classes_and_of_the_last_class_for_background(agnostic):
    predictor = make(cls_agnostic_bbox_reg=agnostic)
    logits, deltas = predictions(agnostic)
    p = proposals()
    every = predictor.predict_boxes((logits, deltas), p)
    chosen = predictor.predict_boxes_for_gt_classes((logits, deltas), p)
    for boxes, image_boxes, image in zip(chosen, every, p):
        for row, c in enumerate(image.gt_classes.tolist()):
            c = 0 if agnostic else min(c, K - 1)
            assert torch.equal(boxes[row], image_boxes[row, 4 * c : 4 * c + 4])


def test_an_empty_list_of_proposals_has_no_predictions():
    predictor = make()
    out = predictor(torch.zeros(0, 8))
    assert list(predictor.predict_boxes(out, [])) == []
    assert list(predictor.predict_boxes_for_gt_classes(out, [])) == []
    assert list(predictor.predict_probs(out, [])) == []
    assert predictor.inference(out, []) == ([], [])


# ---- inference


def infer(boxes, scores, size=(100, 100), thresh=0.05, nms=0.5, topk=100):
    results, rows = fast_rcnn_inference([torch.tensor(boxes)], [torch.tensor(scores)], [size], thresh, nms, topk)
    return results[0], rows[0]


A, B = [0.0, 0, 10, 10], [50.0, 50, 60, 60]
NEAR_A = [0.0, 0, 10, 9]  # IoU 0.9


def test_nms_is_class_wise():
    scores = [[0.9, 0.3, 0.0], [0.8, 0.6, 0.0], [0.0, 0.5, 0.0]]
    result, rows = infer([A, NEAR_A, B], scores)
    # class 0: row 0 suppresses row 1; class 1: row 1 suppresses row 0
    assert result.pred_classes.tolist() == [0, 1, 1]
    assert rows.tolist() == [0, 1, 2]
    torch.testing.assert_close(result.scores, torch.tensor([0.9, 0.6, 0.5]))
    assert result.pred_boxes.tensor.tolist() == [A, NEAR_A, B]
    assert result.image_size == (100, 100)


def test_boxes_of_each_class_are_used():
    result, _ = infer([A + B], [[0.6, 0.4, 0.9]])
    assert result.pred_boxes.tensor.tolist() == [A, B]
    assert result.pred_classes.tolist() == [0, 1]  # the last column is the background


def test_threshold_is_strict_and_topk_counts_over_all_classes():
    scores = [[0.5, 0.25, 0.0], [0.0, 0.75, 0.0]]
    result, _ = infer([A, B], scores, thresh=0.25)
    assert result.scores.tolist() == [0.75, 0.5]
    result, rows = infer([A, B], scores, thresh=0.0, topk=2)
    assert result.scores.tolist() == [0.75, 0.5] and rows.tolist() == [1, 0]
    assert len(infer([A, B], scores, thresh=0.0, topk=-1)[0]) == 3
    assert len(infer([A, B], scores, thresh=0.0, topk=0)[0]) == 0


def test_boxes_are_clipped_before_nms():
    """Outside the image of height 6 both are (0, 0, 10, 6): IoU 1 in place of 60/200 = 0.3."""
    result, _ = infer([[0.0, 0, 10, 20], [0.0, 0, 10, 6]], [[0.9, 0.0], [0.8, 0.0]], size=(6, 50))
    assert result.pred_boxes.tensor.tolist() == [[0, 0, 10, 6]]
    result, _ = infer([[-5.0, 0, 70, 20]], [[0.9, 0.0]], size=(6, 50))
    assert result.pred_boxes.tensor.tolist() == [[0, 0, 50, 6]]


@pytest.mark.parametrize(
    "boxes, scores", [([NAN, 0, 9, 9], [0.9, 0.1]), ([0, 0, float("inf"), 9], [0.9, 0.1]), (A, [0.9, NAN])]
)
def test_rows_that_are_not_finite_are_dropped(boxes, scores):
    result, rows = infer([boxes, A, B], [scores, [0.7, 0.3], [0.8, 0.2]])
    assert result.pred_boxes.tensor.tolist() == [B, A]
    assert rows.tolist() == [1, 0]  # counted among the finite rows


def test_no_rows_give_no_detections():
    results, rows = fast_rcnn_inference([torch.zeros(0, 12)], [torch.zeros(0, 4)], [(5, 6)], 0.05, 0.5, 10)
    assert results[0].pred_boxes.tensor.shape == (0, 4)
    assert results[0].scores.shape == results[0].pred_classes.shape == rows[0].shape == (0,)
    assert results[0].pred_classes.dtype == torch.int64


def test_inference_uses_the_predictors_thresholds():
    predictor = make(test_score_thresh=0.1, test_nms_thresh=0.95, test_topk_per_image=2)
    logits = torch.tensor([[2.0, 0, 0, 0], [1, 0, 0, 0]])
    p = Instances((32, 32), proposal_boxes=Boxes(torch.tensor([A, NEAR_A])))
    results, rows = predictor.inference((logits, torch.zeros(2, 4 * K)), [p])
    # softmax: row 0 e^2/(e^2+3) = 0.711, others 0.096; row 1 e/(e+3) = 0.475, others 0.175
    torch.testing.assert_close(results[0].scores, torch.tensor([0.71124, 0.47537]), atol=1e-5, rtol=0)
    assert rows[0].tolist() == [0, 1] and results[0].pred_classes.tolist() == [0, 0]
