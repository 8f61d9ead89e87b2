"""Labelling and sampling of proposals; the standard heads."""

import pytest
import torch
from omegaconf import OmegaConf

from detectron2.config import configurable, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import (
    BaseMaskRCNNHead,
    ROIHeads,
    StandardROIHeads,
    build_roi_heads,
    select_foreground_proposals,
)
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tests.embedded.rcnn_parts import (
    CLASSES,
    LEVELS,
    make_features,
    make_heads,
    make_predictor,
    make_proposals,
    make_targets,
)

SPECS = {name: ShapeSpec(channels=8, stride=s) for name, s in (("p2", 4), ("p3", 8))}


def base(num_classes=1, thresholds=(0.5,), labels=(0, 1), **changes):
    arguments = dict(
        num_classes=num_classes,
        batch_size_per_image=6,
        positive_fraction=0.5,
        proposal_matcher=Matcher(list(thresholds), list(labels)),
    )
    return ROIHeads(**{**arguments, **changes})


# ---- sampling


def test_sampling_equals_the_recorded_seed_foreground_first():
    heads = base()
    labels = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0, 0, -1], dtype=torch.int8)
    torch.manual_seed(7)
    rows, classes = heads._sample_proposals(torch.zeros(10).long(), labels, torch.tensor([0]))
    assert rows.tolist() == [3, 2, 0, 5, 8, 6]
    assert classes.tolist() == [0, 0, 0, 1, 1, 1]  # background is class num_classes = 1


def test_sampling_without_ground_truth_draws_background_only():
    heads = base(num_classes=4)
    none = torch.zeros(0, dtype=torch.int64)
    rows, classes = heads._sample_proposals(torch.zeros(8).long(), torch.zeros(8).char(), none)
    assert len(set(rows.tolist())) == 6
    assert classes.tolist() == [4] * 6


def proposals():
    """IoU with gt (0, 0, 10, 10): 1, 0.5, 0.25, 0; with gt (20, 20, 30, 30): 0, 0, 0, 1."""
    return make_proposals([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 5, 5], [20, 20, 30, 30]])


def targets():
    t = make_targets([[20, 20, 30, 30], [0, 0, 10, 10]], [2, 1])
    t.gt_tag = torch.tensor([70, 80])
    t.other = torch.tensor([0, 1])
    return t


def by_box(result, field):
    return dict(zip(map(tuple, result.proposal_boxes.tensor.tolist()), result.get(field)))


def test_labels_are_those_of_the_matched_ground_truth():
    heads = base(num_classes=5, batch_size_per_image=100, positive_fraction=1.0)
    none = make_targets([], [])
    with EventStorage() as storage:
        first, second = heads.label_and_sample_proposals([proposals(), proposals()], [targets(), none])
    assert len(first) == 6  # 4 and 2 boxes of the ground truth
    a, b = (0, 0, 10, 10), (20, 20, 30, 30)
    classes = {k: v.item() for k, v in by_box(first, "gt_classes").items()}
    assert classes == {a: 1, (0, 0, 10, 5): 1, (0, 0, 5, 5): 5, b: 2}  # 0.5 is inside [0.5, 1]
    assert by_box(first, "gt_tag")[a] == 80 and by_box(first, "gt_tag")[b] == 70
    assert by_box(first, "gt_boxes")[b].tolist() == [20, 20, 30, 30]
    assert len(first.gt_masks) == 6 and not first.has("other")
    for mask, box in zip(first.gt_masks, first.gt_boxes):
        x0, y0, x1, y1 = box.long().tolist()
        assert mask[y0:y1, x0:x1].all() and mask.sum() == 100
    # without ground truth nothing but the class
    assert set(second.get_fields()) == {"proposal_boxes", "objectness_logits", "gt_classes"}
    assert second.gt_classes.tolist() == [5] * 4
    # foreground 5 + 0, background 1 + 4, in 2 images
    latest = {k: v[0] for k, v in storage.latest().items()}
    assert latest == {"roi_head/num_fg_samples": 2.5, "roi_head/num_bg_samples": 2.5}


def test_ignored_proposals_are_not_sampled():
    """Labels 0, -1, 1 below 0.3, in [0.3, 0.6), from 0.6: the proposal with IoU 0.5 is out."""
    heads = base(5, (0.3, 0.6), (0, -1, 1), batch_size_per_image=100, positive_fraction=1.0)
    with EventStorage():
        (result,) = heads.label_and_sample_proposals([proposals()], [targets()])
    assert (0, 0, 10, 5) not in by_box(result, "gt_classes")
    assert len(result) == 5


def test_ground_truth_is_appended_unless_told_not_to():
    heads = base(5, proposal_append_gt=False, batch_size_per_image=100, positive_fraction=1.0)
    missing = make_proposals([[0, 0, 5, 5]])
    with EventStorage():
        (result,) = heads.label_and_sample_proposals([missing], [targets()])
        assert result.gt_classes.tolist() == [5]
        heads.proposal_append_gt = True
        (result,) = heads.label_and_sample_proposals([missing], [targets()])
    assert sorted(result.gt_classes.tolist()) == [1, 2, 5]


def test_images_are_sampled_in_order():
    heads = base(5, batch_size_per_image=4)
    boxes = torch.rand(2, 20, 2) * 8
    boxes = torch.cat([boxes, boxes + 10], dim=2)
    both = [make_proposals(b) for b in boxes]
    with EventStorage():
        torch.manual_seed(5)
        together = heads.label_and_sample_proposals(both, [targets(), targets()])
        torch.manual_seed(5)
        alone = [heads.label_and_sample_proposals([p], [targets()])[0] for p in both]
    for a, b in zip(together, alone):
        assert torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor)
        assert len(a) == 4


def test_foreground_selection():
    x = make_proposals([[0, 0, i + 1, 9] for i in range(4)])
    x.gt_classes = torch.tensor([3, 0, -1, 2])
    y = make_proposals([])
    y.gt_classes = torch.zeros(0, dtype=torch.int64)
    chosen, masks = select_foreground_proposals([x, y], 3)
    assert chosen[0].gt_classes.tolist() == [0, 2]
    assert chosen[0].proposal_boxes.tensor[:, 2].tolist() == [2, 4]
    assert masks[0].tolist() == [False, True, False, True]
    assert len(chosen[1]) == 0 and masks[1].shape == (0,)


def test_base_class_has_no_forward():
    with pytest.raises(NotImplementedError):
        base()(None, None, None)


# ---- standard heads


def run(heads, with_gt=(True, True), requires_grad=False):
    features = make_features(2, requires_grad=requires_grad)
    given = [make_proposals([[0, 0, 12, 10], [4, 4, 30, 28], [20, 2, 40, 12]]) for _ in range(2)]
    gt = [make_targets([[1, 0, 12, 11], [20, 2, 42, 12]] if g else [], [0, 2] if g else []) for g in with_gt]
    with EventStorage() as storage:
        result, losses = heads(None, features, given, gt)
    return result, losses, features, storage


@pytest.mark.parametrize("with_gt", [(True, True), (True, False), (False, False)])
def test_training_gives_losses_and_a_gradient_to_every_parameter(with_gt):
    heads = make_heads(mask=True)
    result, losses, features, _ = run(heads, with_gt, requires_grad=True)
    assert list(losses) == ["loss_cls", "loss_box_reg", "loss_mask"]
    assert all(x.has("gt_classes") for x in result)
    foreground = sum(with_gt) > 0
    assert (losses["loss_mask"] > 0) == (losses["loss_box_reg"] > 0) == foreground
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in heads.parameters())
    assert (heads.mask_head.predictor.weight.grad != 0).any() == foreground
    # every box is small and so on the finest level; the other gets a gradient of zeros
    assert (features["p2"].grad != 0).any()


def test_training_needs_targets():
    with pytest.raises(AssertionError, match="targets"):
        make_heads()(None, make_features(1), [proposals()])


def test_masks_are_trained_on_the_foreground_at_its_proposal_boxes():
    heads = make_heads(mask=True)
    seen = []
    heads.mask_head.forward = lambda x, instances: seen.append((x, instances)) or {}
    result, _, features, _ = run(heads)
    x, instances = seen[0]
    foreground, _ = select_foreground_proposals(result, CLASSES)
    assert [len(i) for i in instances] == [len(f) for f in foreground]
    boxes = [f.proposal_boxes for f in foreground]
    torch.testing.assert_close(x, heads.mask_pooler([features[f] for f in LEVELS], boxes))
    assert len(x) == sum(map(len, boxes)) > 0


def test_inference_detects_and_puts_masks_at_the_predicted_boxes():
    heads = make_heads(mask=True, box_predictor=make_predictor(test_score_thresh=0.0)).eval()
    features = make_features(2)
    seen = []
    heads.mask_pooler.forward = lambda x, boxes: seen.append(boxes) or torch.ones(sum(map(len, boxes)), 8, 4, 4)
    results, losses = heads(None, features, [proposals(), make_proposals([])])
    assert losses == {}
    assert len(results[0]) > 0 and len(results[1]) == 0
    assert set(results[0].get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    assert results[0].pred_masks.shape == (len(results[0]), 1, 8, 8)
    assert results[1].pred_masks.shape == (0, 1, 8, 8)
    assert torch.equal(seen[0][0].tensor, results[0].pred_boxes.tensor)


def test_without_a_mask_branch_there_are_no_masks():
    heads = make_heads()
    assert not heads.mask_on
    _, losses, _, _ = run(heads)
    assert list(losses) == ["loss_cls", "loss_box_reg"]
    results, _ = heads.eval()(None, make_features(1), [proposals()])
    assert not results[0].has("pred_masks")


def test_given_boxes_get_masks_at_inference_only():
    heads = make_heads(mask=True).eval()
    features = make_features(1)
    x = Instances((32, 48), pred_boxes=Boxes(torch.tensor([[0.0, 0, 12, 10]])))
    with pytest.raises(AssertionError):
        heads.forward_with_given_boxes(features, [x])  # no pred_classes
    x.pred_classes = torch.tensor([1])
    (result,) = heads.forward_with_given_boxes(features, [x])
    assert result.pred_masks.shape == (1, 1, 8, 8)
    with pytest.raises(AssertionError):
        heads.train().forward_with_given_boxes(features, [x])


def test_train_on_pred_boxes_gives_the_mask_branch_the_predicted_boxes():
    heads = make_heads(mask=True, train_on_pred_boxes=True)
    shift = torch.zeros(4 * CLASSES)
    shift[8:10] = torch.tensor([1.0, 2.0])  # class 2: a tenth of the width, a fifth of the height
    with torch.no_grad():
        heads.box_predictor.bbox_pred.weight.zero_()
        heads.box_predictor.bbox_pred.bias.copy_(shift)
    seen = []
    heads.mask_head.forward = lambda x, instances: seen.append(instances) or {}
    run(heads)
    classes = by_box(seen[0][0], "gt_classes")
    # class 0: at its proposal; class 2: (20, 2, 40, 12) + (2, 2), ground truth (20, 2, 42, 12)
    assert classes[(0, 0, 12, 10)] == 0
    assert classes[(22, 4, 42, 14)] == 2 and (20, 2, 40, 12) not in classes
    assert not seen[0][0].proposal_boxes.tensor.requires_grad


class KeepDict(BaseMaskRCNNHead):
    @configurable
    def __init__(self, input_shape, **kwargs):
        super().__init__(**kwargs)
        self.input_shape = input_shape

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {"input_shape": input_shape}

    def forward(self, x, instances):
        self.seen = x
        return {}


def test_without_a_mask_pooler_the_head_gets_the_maps():
    heads = make_heads(mask=True, mask_pooler=None, mask_head=KeepDict({}))
    _, _, features, _ = run(heads)
    assert list(heads.mask_head.seen) == LEVELS
    assert all(heads.mask_head.seen[f] is features[f] for f in LEVELS)


@pytest.mark.embedded_only
def test_keypoint_heads_are_refused_and_absent_ones_accepted():
    make_heads(keypoint_in_features=None, keypoint_pooler=None, keypoint_head=None)
    with pytest.raises(ValueError, match="keypoint"):
        make_heads(keypoint_head=torch.nn.Identity())
    cfg = heads_cfg()
    cfg.MODEL.KEYPOINT_ON = True
    with pytest.raises(ValueError, match="KEYPOINT_ON"):
        build_roi_heads(cfg, SPECS)


# ---- from the config


def heads_cfg(mask=False):
    cfg = get_cfg()
    cfg.merge_from_list(
        "MODEL.ROI_HEADS.NAME StandardROIHeads MODEL.ROI_HEADS.IN_FEATURES ['p2','p3'] "
        "MODEL.ROI_HEADS.NUM_CLASSES 3 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 17 "
        "MODEL.ROI_HEADS.POSITIVE_FRACTION 0.3 MODEL.ROI_HEADS.PROPOSAL_APPEND_GT False "
        "MODEL.ROI_HEADS.IOU_THRESHOLDS [0.6] MODEL.ROI_BOX_HEAD.NAME FastRCNNConvFCHead "
        "MODEL.ROI_BOX_HEAD.NUM_FC 1 MODEL.ROI_BOX_HEAD.FC_DIM 16 "
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 3 MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES True "
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION 4 MODEL.ROI_MASK_HEAD.CONV_DIM 8 "
        f"MODEL.MASK_ON {mask}".split()
    )
    return cfg


@pytest.mark.parametrize("as_omegaconf", [False, True])
def test_from_config_reads_every_key(as_omegaconf):
    cfg = heads_cfg(mask=True)
    if as_omegaconf:
        cfg = OmegaConf.create(cfg.dump())
    heads = build_roi_heads(cfg, SPECS)
    assert type(heads) is StandardROIHeads
    assert (heads.num_classes, heads.batch_size_per_image, heads.positive_fraction) == (3, 17, 0.3)
    assert not heads.proposal_append_gt and heads.train_on_pred_boxes and heads.mask_on
    # thresholds [0.6] with labels 0, 1, and no low quality matches
    assert heads.proposal_matcher(torch.tensor([[0.59, 0.1]]))[1].tolist() == [0, 0]
    assert heads.proposal_matcher(torch.tensor([[0.6, 0.1]]))[1].tolist() == [1, 0]
    assert [p.spatial_scale for p in heads.box_pooler.level_poolers] == [1 / 4, 1 / 8]
    assert heads.box_head.fc1.in_features == 8 * 3 * 3
    assert tuple(heads.mask_pooler.output_size) == (4, 4)
    assert list(heads.in_features) == list(heads.mask_in_features) == LEVELS
    tops = [k.split(".")[0] for k in heads.state_dict()]
    assert list(dict.fromkeys(tops)) == ["box_head", "box_predictor", "mask_head"]


def test_box_head_is_built_before_the_predictor_before_the_mask_head():
    torch.manual_seed(7)
    heads = build_roi_heads(heads_cfg(mask=True), SPECS)
    torch.manual_seed(7)
    again = make_heads(mask=True)  # by hand, in that order
    pairs = (("box_head.fc1", "box_head.fc1"), ("box_predictor.bbox_pred",) * 2)
    for a, b in pairs:
        assert torch.equal(heads.get_submodule(a).weight, again.get_submodule(b).weight)


def test_no_pooler_type_means_no_mask_pooler_and_a_dict_of_shapes():
    from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY

    if "KeepDict" not in ROI_MASK_HEAD_REGISTRY:
        ROI_MASK_HEAD_REGISTRY.register(KeepDict)
    cfg = heads_cfg(mask=True)
    cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = ""
    cfg.MODEL.ROI_MASK_HEAD.NAME = "KeepDict"
    heads = build_roi_heads(cfg, SPECS)
    assert heads.mask_pooler is None
    assert heads.mask_head.input_shape == SPECS


def test_a_subclass_may_replace_how_a_head_is_built():
    class Own(StandardROIHeads):
        @classmethod
        def _init_mask_head(cls, cfg, input_shape):
            assert input_shape == SPECS
            return {"mask_in_features": ["p3"], "mask_head": torch.nn.Identity()}

    heads = Own(heads_cfg(), SPECS)
    assert heads.mask_on and isinstance(heads.mask_head, torch.nn.Identity)

    class InInit(StandardROIHeads):
        def _init_box_head(self):  # no classmethod: not for from_config
            raise AssertionError

    parts = InInit.from_config(heads_cfg(), SPECS)
    assert "box_head" not in parts and parts["num_classes"] == 3


def test_features_of_unequal_channels_are_refused():
    specs = {**SPECS, "p3": ShapeSpec(channels=9, stride=8)}
    with pytest.raises(AssertionError):
        build_roi_heads(heads_cfg(), specs)


@pytest.mark.parametrize("name", ["Res5ROIHeads", "NobodysHeads"])
@pytest.mark.embedded_only
def test_heads_outside_the_subset_are_named_in_the_error(name):
    cfg = heads_cfg()
    cfg.MODEL.ROI_HEADS.NAME = name
    with pytest.raises(KeyError, match=name):
        build_roi_heads(cfg, SPECS)
