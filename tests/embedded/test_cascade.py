"""Cascade R-CNN's heads."""

import pytest
import torch
from omegaconf import OmegaConf

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import CascadeROIHeads, build_roi_heads
from detectron2.modeling.roi_heads.cascade_rcnn import _ScaleGradient
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from tests.embedded.rcnn_parts import CLASSES, make_cascade, make_features, make_proposals, make_targets

SPECS = {name: ShapeSpec(channels=8, stride=s) for name, s in (("p2", 4), ("p3", 8))}


def given(num=2):
    boxes = [[0, 0, 12, 10], [4, 4, 30, 28], [20, 2, 40, 12], [30, 14, 46, 30]]
    return [make_proposals(boxes) for _ in range(num)]


def truth(with_gt=(True, True)):
    boxes, classes = [[1, 0, 12, 11], [20, 2, 42, 12]], [0, 2]
    return [make_targets(boxes if g else [], classes if g else []) for g in with_gt]


def spy(heads):
    """Collect the proposals of every stage."""
    seen, run_stage = [], heads._run_stage

    def run(features, proposals, stage):
        seen.append(proposals)
        return run_stage(features, proposals, stage)

    heads._run_stage = run
    return seen


def shift_boxes(heads, *deltas):
    """Make stage k's predictor put out deltas[k] for every box."""
    with torch.no_grad():
        for predictor, d in zip(heads.box_predictor, deltas):
            predictor.bbox_pred.weight.zero_()
            predictor.bbox_pred.bias.copy_(torch.tensor(d))


def test_scale_gradient_is_the_identity_with_a_scaled_gradient():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = _ScaleGradient.apply(x, 0.25)
    assert torch.equal(y, x)
    (y * torch.tensor([4.0, 8.0])).sum().backward()
    assert x.grad.tolist() == [1, 2]


@pytest.mark.parametrize("with_gt", [(True, True), (True, False), (False, False)])
def test_losses_of_every_stage_and_a_gradient_for_every_parameter(with_gt):
    heads = make_cascade(mask=True)
    with EventStorage() as storage:
        result, losses = heads(None, make_features(2), given(), truth(with_gt))
    assert list(losses) == [f"{name}_stage{k}" for k in range(3) for name in ("loss_cls", "loss_box_reg")] + [
        "loss_mask"
    ]
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in heads.parameters())
    names = set(storage.latest())
    assert {f"stage{k}/fast_rcnn/cls_accuracy" for k in range(3)} <= names
    assert "fast_rcnn/cls_accuracy" not in names
    for k in (1, 2):
        assert {f"stage{k}/roi_head/num_fg_samples", f"stage{k}/roi_head/num_bg_samples"} <= names
    assert "roi_head/num_fg_samples" in names and "stage0/roi_head/num_fg_samples" not in names
    assert all(r.has("objectness_logits") for r in result)  # those of the first stage


def test_state_keys_carry_the_stage():
    tops = dict.fromkeys(".".join(k.split(".")[:2]) for k in make_cascade().state_dict())
    assert list(tops) == [f"{m}.{k}" for m in ("box_head", "box_predictor") for k in range(3)]


def test_later_stages_take_the_clipped_predictions_without_resampling():
    """Deltas are divided by (10, 10, 5, 5) in stage 0: 5 moves by half a width."""
    heads = make_cascade(batch_size_per_image=4, positive_fraction=0.5)
    shift_boxes(heads, (5.0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0))
    seen = spy(heads)
    with EventStorage() as storage:
        heads(None, make_features(2), given(), truth())
    first, second, third = seen
    for a, b, c in zip(first, second, third):
        assert len(a) == len(b) == len(c) == 4  # 2 foreground, 2 background
        expected = a.proposal_boxes.clone()
        width = expected.tensor[:, 2] - expected.tensor[:, 0]
        expected.tensor[:, 0::2] += 0.5 * width[:, None]
        expected.clip((32, 48))
        torch.testing.assert_close(b.proposal_boxes.tensor, expected.tensor)
        torch.testing.assert_close(c.proposal_boxes.tensor, expected.tensor)
        assert not b.proposal_boxes.tensor.requires_grad
        assert set(b.get_fields()) == {"proposal_boxes", "gt_classes", "gt_boxes"}
    counts = storage.latest()
    for k in (1, 2):
        fg, bg = (counts[f"stage{k}/roi_head/num_{x}_samples"][0] for x in ("fg", "bg"))
        assert fg + bg == 4


def test_stages_are_matched_by_their_own_thresholds():
    """IoU of (0, 0, 10, 10) with ground truth (0, 0, 10, 6.5) is 0.65: foreground of stages 0
    and 1 (0.5, 0.6), not of stage 2 (0.7)."""
    heads = make_cascade(proposal_append_gt=False)
    shift_boxes(heads, *[(0.0, 0, 0, 0)] * 3)
    seen = spy(heads)
    gt = make_targets([[20, 20, 30, 30], [0, 0, 10, 6.5]], [0, 1])
    with EventStorage() as storage:
        heads(None, make_features(2), [make_proposals([[0, 0, 10, 10]]) for _ in range(2)], [gt, gt])
    for image in range(2):
        assert [p[image].gt_classes.tolist() for p in seen] == [[1], [1], [CLASSES]]
    assert seen[1][0].gt_boxes.tensor.tolist() == [[0, 0, 10, 6.5]]
    # means over the two images
    latest = {k: v[0] for k, v in storage.latest().items()}
    assert latest["stage1/roi_head/num_fg_samples"] == 1
    assert latest["stage2/roi_head/num_fg_samples"] == 0
    assert latest["stage2/roi_head/num_bg_samples"] == 1


def test_empty_boxes_are_dropped_in_training_and_kept_at_inference():
    boxes = [torch.tensor([[50.0, 0, 60, 10], [0, 0, 10, 10]])]  # the first lies outside
    heads = make_cascade()
    (result,) = heads._create_proposals_from_boxes(boxes, [(32, 48)])
    assert result.proposal_boxes.tensor.tolist() == [[0, 0, 10, 10]]
    (result,) = heads.eval()._create_proposals_from_boxes(boxes, [(32, 48)])
    assert result.proposal_boxes.tensor.tolist() == [[48, 0, 48, 10], [0, 0, 10, 10]]


def test_features_get_a_third_of_the_gradient_in_training():
    heads = make_cascade()
    features = [x for x in make_features(1, requires_grad=True).values()]
    boxes = [make_proposals([[0, 0, 12, 10]])]
    scaled = torch.autograd.grad(heads._run_stage(features, boxes, 0)[0].sum(), features)
    plain = torch.autograd.grad(heads.eval()._run_stage(features, boxes, 0)[0].sum(), features)
    torch.testing.assert_close(scaled[0], plain[0] / 3)
    assert (scaled[0] != 0).any()


def test_inference_averages_scores_and_takes_the_last_boxes():
    heads = make_cascade().eval()
    shift_boxes(heads, (5.0, 0, 0, 0), (0, 10.0, 0, 0), (15.0, 0, 0, 0))
    logits = [[3.0, 0, 0, 0], [0.0, 2, 0, 0], [0.0, 0, 0, 1]]
    with torch.no_grad():
        for predictor, row in zip(heads.box_predictor, logits):
            predictor.cls_score.weight.zero_()
            predictor.cls_score.bias.copy_(torch.tensor(row))
    results, losses = heads(None, make_features(1), [make_proposals([[0, 0, 10, 8]])])
    assert losses == {}
    expected = torch.tensor(logits).softmax(1).mean(0)[:CLASSES]
    order = expected.argsort(descending=True)
    assert torch.equal(results[0].pred_classes, order)
    torch.testing.assert_close(results[0].scores, expected[order])
    # 5 / 10 of the width 10, 10 / 20 of the height 8, 15 / 30 of the width
    torch.testing.assert_close(results[0].pred_boxes.tensor, torch.tensor([[10.0, 4, 20, 12]]).expand(3, 4))


def test_masks_are_trained_on_the_proposals_of_the_first_stage():
    heads = make_cascade(mask=True)
    shift_boxes(heads, (5.0, 0, 0, 0), (5.0, 0, 0, 0), (0, 0, 0, 0))
    masks, stages = [], spy(heads)
    heads.mask_head.forward = lambda x, instances: masks.append(instances) or {}
    with EventStorage():
        heads(None, make_features(2), given(), truth())
    for image, sampled in zip(masks[0], stages[0]):
        expected = sampled[sampled.gt_classes < CLASSES].proposal_boxes.tensor
        assert torch.equal(image.proposal_boxes.tensor, expected) and len(image) > 0


def test_no_proposals_at_inference():
    results, _ = make_cascade(mask=True).eval()(None, make_features(1), [make_proposals([])])
    assert len(results[0]) == 0 and results[0].pred_masks.shape == (0, 1, 8, 8)


@pytest.mark.embedded_only  # upstream's assertion says nothing
def test_training_needs_targets():
    with pytest.raises(AssertionError, match="targets"):
        make_cascade()(None, make_features(1), given(1))


def test_a_single_matcher_is_refused():
    with pytest.raises(AssertionError, match="proposal_matcher"):
        make_cascade(proposal_matcher=Matcher([0.5], [0, 1]))


def test_stages_may_come_from_a_lazy_config():
    parts = make_cascade()
    lists = {
        name: OmegaConf.create(list(values), flags={"allow_objects": True})
        for name, values in (
            ("box_heads", parts.box_head),
            ("box_predictors", parts.box_predictor),
            ("proposal_matchers", [Matcher([iou], [0, 1]) for iou in (0.5, 0.6, 0.7)]),
        )
    }
    heads = make_cascade(**lists)
    with EventStorage():
        _, losses = heads(None, make_features(1), given(1), truth((True,)))
    assert len(losses) == 6


# ---- from the config


def cascade_cfg(mask=False):
    cfg = get_cfg()
    cfg.merge_from_list(
        "MODEL.ROI_HEADS.NAME CascadeROIHeads MODEL.ROI_HEADS.IN_FEATURES ['p2','p3'] "
        "MODEL.ROI_HEADS.NUM_CLASSES 3 MODEL.ROI_BOX_HEAD.NAME FastRCNNConvFCHead "
        "MODEL.ROI_BOX_HEAD.NUM_FC 1 MODEL.ROI_BOX_HEAD.FC_DIM 16 "
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 3 MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True "
        f"MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION 4 MODEL.MASK_ON {mask}".split()
    )
    return cfg


@pytest.mark.parametrize("as_omegaconf", [False, True])
def test_from_config(as_omegaconf):
    cfg = cascade_cfg()
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS = (0.5, 0.65, 0.8)
    if as_omegaconf:
        cfg = OmegaConf.create(cfg.dump())
    heads = build_roi_heads(cfg, SPECS)
    assert type(heads) is CascadeROIHeads and heads.num_cascade_stages == 3
    weights = [list(p.box2box_transform.weights) for p in heads.box_predictor]
    assert weights == [[10, 10, 5, 5], [20, 20, 10, 10], [30, 30, 15, 15]]
    iou = torch.tensor([[0.5, 0.65, 0.8]])
    assert [m(iou)[1].tolist() for m in heads.proposal_matchers] == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    assert heads.proposal_matcher is heads.proposal_matchers[0]


def test_each_stages_head_is_built_before_its_predictor_and_masks_last():
    """Same seed, same modules in that order, same weights."""
    from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers

    cfg = cascade_cfg(mask=True)
    torch.manual_seed(7)
    heads = build_roi_heads(cfg, SPECS)
    torch.manual_seed(7)
    for head, predictor in zip(heads.box_head, heads.box_predictor):
        fresh = FastRCNNConvFCHead(cfg, ShapeSpec(channels=8, height=3, width=3))
        assert torch.equal(head.fc1.weight, fresh.fc1.weight)
        fresh = FastRCNNOutputLayers(cfg, ShapeSpec(channels=16))
        assert torch.equal(predictor.bbox_pred.weight, fresh.bbox_pred.weight)


def test_config_wants_class_agnostic_boxes():
    cfg = cascade_cfg()
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = False
    with pytest.raises(AssertionError, match="agnostic|AGNOSTIC"):
        build_roi_heads(cfg, SPECS)


def test_config_wants_the_first_iou_to_be_the_sampling_one():
    cfg = cascade_cfg()
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS = (0.6, 0.7, 0.8)
    with pytest.raises(AssertionError):
        build_roi_heads(cfg, SPECS)


def test_boxes_without_ground_truth_are_background():
    heads = make_cascade()
    p = make_proposals([[0, 0, 10, 10]])
    with EventStorage():
        (result,) = heads._match_and_label_boxes([p], 1, [make_targets([], [])])
    assert result.gt_classes.tolist() == [CLASSES]
    assert isinstance(result.gt_boxes, Boxes) and len(result.gt_boxes) == 1
