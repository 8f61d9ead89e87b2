"""Grid R-CNN's RoI heads: what is trained on which boxes, detection, both forms of the config."""

import inspect

import pytest
import torch

from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import pairwise_iou
from projects.Detectors import ClassificationOutputLayers, GridHead, GridROIHeads
from projects.Detectors.grid_points import grid_targets
from shared.config import load_config
from tests.paths import ROOT

from .rcnn_parts import (
    BOXES,
    CHANNELS,
    CLASSES,
    SIZE,
    both_forms,
    box_parts,
    make_box_head,
    make_features,
    make_pooler,
    make_predictor,
    make_proposals,
    make_targets,
    near_proposals,
    same_training,
    shapes,
    size,
    train_step,
)


def make_grid_head(**changes):
    shape = ShapeSpec(channels=CHANNELS, height=14, width=14)
    return GridHead(input_shape=shape, **{"num_convs": 1, "point_channels": 4, "norm_groups": 4, **changes})


def make_classifier(**changes):
    return ClassificationOutputLayers(ShapeSpec(channels=16), **{"num_classes": CLASSES, **changes})


def make_heads(mask=False, **changes):
    torch.manual_seed(0)
    grid = dict(grid_pooler=make_pooler(14), grid_head=make_grid_head(), box_predictor=make_classifier())
    return GridROIHeads(**box_parts(mask, **{**grid, **changes}))


class Oracle(torch.nn.Module):
    """In the place of a grid head: heatmaps of one ground truth, whatever the features."""

    grid_size, map_size = 3, 28

    def __init__(self, pooler, gt):
        super().__init__()
        self.gt, self.rois = torch.tensor([gt]), None
        pooler.register_forward_pre_hook(self.keep)

    def keep(self, module, inputs):
        self.rois = torch.cat([boxes.tensor for boxes in inputs[1]])

    def forward(self, x):
        targets = grid_targets(self.rois, self.gt.expand(len(self.rois), 4), 3, 28, radius=0)
        return targets * 20 - 10, None


def detect(heads, *boxes):
    heads.eval()
    with torch.no_grad():
        return heads(None, make_features(len(boxes)), [make_proposals(b) for b in boxes])[0]


def test_trains_every_parameter():
    heads, features = make_heads(mask=True), make_features(requires_grad=True)
    targets = [make_targets(), make_targets(BOXES[:1])]
    losses = train_step(heads, [near_proposals(), near_proposals()], targets, features)
    assert set(losses) == {"loss_cls", "loss_grid", "loss_grid_unfused", "loss_mask"}
    sum(losses.values()).backward()
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())
    assert all(x.grad is not None for x in features.values())


@pytest.mark.parametrize("boxes", [(), ((60.0, 50.0, 75.0, 63.0), (2.0, 3.0, 9.0, 8.0))])
def test_images_without_objects(boxes):
    """No proposals either, or background alone; beside an image with objects, and by themselves."""
    heads, empty = make_heads(mask=True), make_targets(())
    losses = train_step(heads, [make_proposals(boxes)], [empty])
    sum(losses.values()).backward()
    assert losses["loss_grid"] == losses["loss_grid_unfused"] == losses["loss_mask"] == 0
    assert losses["loss_cls"].isfinite() and (losses["loss_cls"] > 0) == (len(boxes) > 0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())
    losses = train_step(heads, [make_proposals(boxes), near_proposals()], [empty, make_targets()])
    assert losses["loss_grid"] > 0 and sum(losses.values()).isfinite()


def grid_inputs(heads, monkeypatch, seed=0):
    """Pooled features, RoIs and ground truth that the grid head is trained on, for two images."""
    seen = []
    losses = heads.grid_head.losses
    monkeypatch.setattr(heads.grid_head, "losses", lambda *args: seen.append(args) or losses(*args))
    torch.manual_seed(seed)
    swapped = tuple(reversed(BOXES))
    train_step(heads, [near_proposals(), near_proposals(swapped)], [make_targets(), make_targets(swapped)])
    monkeypatch.undo()
    return seen[0]


def test_rois_are_jittered_positives_inside_the_image(monkeypatch):
    heads = make_heads(jitter=0.3)
    pooled, rois, gt = grid_inputs(heads, monkeypatch)
    assert len(pooled) == len(rois) == len(gt) == 2 * (2 * 4 + 2)  # near proposals and ground truth of two images
    h, w = SIZE
    assert (rois >= 0).all() and (rois[:, 0::2] <= w).all() and (rois[:, 1::2] <= h).all()
    assert (rois == torch.tensor([w, h, w, h])).any() or (rois == 0).any()  # some were clipped
    assert torch.equal(gt.unique(dim=0), torch.tensor(BOXES))
    inter = (torch.min(rois[:, 2:], gt[:, 2:]) - torch.max(rois[:, :2], gt[:, :2])).clamp(min=0).prod(1)
    assert (inter / (gt[:, 2:] - gt[:, :2]).prod(1) > 0.2).all()  # each with its own; the two boxes do not overlap


def test_without_jitter_rois_are_the_proposals(monkeypatch):
    _, rois, _ = grid_inputs(make_heads(jitter=0.0), monkeypatch)
    wanted = torch.cat([near_proposals().proposal_boxes.tensor[:8], torch.tensor(BOXES)])
    assert torch.equal(rois.unique(dim=0), wanted.unique(dim=0).clamp(min=0))


def test_at_most_max_samples_of_all_images(monkeypatch):
    heads = make_heads(jitter=0.0, max_samples=5)
    chosen = [grid_inputs(heads, monkeypatch, seed)[1] for seed in range(4)]
    everything = grid_inputs(make_heads(jitter=0.0), monkeypatch)[1]
    assert all(len(rois) == 5 for rois in chosen)
    assert all((rois[:, None] == everything).all(2).any(1).all() for rois in chosen)
    assert len({tuple(rois.flatten().tolist()) for rois in chosen}) > 1


def test_masks_are_trained_on_the_proposals(monkeypatch):
    """The jitter is the grid branch's own."""
    heads, seen = make_heads(mask=True), []
    heads.mask_pooler.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[1]))
    train_step(heads, [near_proposals()], [make_targets()])
    wanted = torch.cat([near_proposals().proposal_boxes.tensor[:8], torch.tensor(BOXES)])
    assert torch.equal(seen[0].tensor.unique(dim=0), wanted.unique(dim=0))


def test_classification_loss_is_that_of_fast_rcnn():
    ours, theirs = make_classifier(), make_predictor()
    theirs.cls_score.load_state_dict(ours.cls_score.state_dict())
    proposals = [near_proposals(), near_proposals()]
    for p, classes in zip(proposals, ([0, 1, 2, 3, 3, 3, 1, 0, 3], [3] * 9)):
        p.gt_classes, p.gt_boxes = torch.tensor(classes), p.proposal_boxes
    x = torch.randn(18, 16)
    losses = []
    for predictor in (ours, theirs):
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "detectron2.modeling.roi_heads.fast_rcnn.get_event_storage",
                lambda: type("Storage", (), {"put_scalar": lambda *args: None}),
            )
            losses.append(predictor.losses(predictor(x), proposals)["loss_cls"])
    assert losses[0] == losses[1] > 0


def test_any_box_head():
    """Convolutions alone end in maps, which the classifier flattens."""
    head = make_box_head(conv_dims=(8,), fc_dims=())
    heads = make_heads(box_head=head, box_predictor=ClassificationOutputLayers(head.output_shape, num_classes=CLASSES))
    assert heads.box_predictor.cls_score.in_features == 8 * 7 * 7
    assert train_step(heads, [near_proposals()], [make_targets()])["loss_cls"].isfinite()
    heads = make_heads(box_predictor=make_classifier(use_sigmoid_ce=True))
    assert train_step(heads, [near_proposals()], [make_targets()])["loss_cls"].isfinite()


def test_detections_are_those_of_the_classifier_with_moved_boxes():
    heads = make_heads(box_predictor=make_classifier(test_score_thresh=0.0))
    plain = near_proposals().proposal_boxes.tensor
    found = detect(heads, plain, plain[:3])
    features = list(make_features().values())
    proposals = [make_proposals(plain), make_proposals(plain[:3])]
    with torch.no_grad():
        pooled = heads.box_pooler(features, [p.proposal_boxes for p in proposals])
        wanted, rows = heads.box_predictor.inference(heads.box_predictor(heads.box_head(pooled)), proposals)
    for image, before, row, boxes in zip(found, wanted, rows, (plain, plain[:3])):
        assert len(image) > 2 and torch.equal(image.scores, before.scores)
        assert torch.equal(image.pred_classes, before.pred_classes)
        clipped = boxes[row].clamp(min=0).minimum(torch.tensor([96.0, 64.0, 96.0, 64.0]))
        torch.testing.assert_close(before.pred_boxes.tensor, clipped)  # classified and suppressed as proposed
        assert (image.pred_boxes.tensor - before.pred_boxes.tensor).abs().amax(1).min() > 0.1


def test_boxes_come_from_the_heatmaps():
    """Perfect heatmaps move every proposal of a box to it, to half a cell: a 56th of the RoI's size."""
    pooler = make_pooler(14)
    oracle = Oracle(pooler, BOXES[0])
    heads = make_heads(box_predictor=make_classifier(test_score_thresh=0.0), grid_pooler=pooler, grid_head=oracle)
    proposals = near_proposals(BOXES[:1], (-4.0, 5.0)).proposal_boxes.tensor[:2]
    (found,) = detect(heads, proposals)
    assert len(found) >= 3
    cell = (oracle.rois[:, 2:] - oracle.rois[:, :2]).repeat(1, 2) / 28
    errors = (found.pred_boxes.tensor - torch.tensor(BOXES[0])).abs()
    assert (errors <= cell / 2 + 1e-3).all() and cell.max() < 2


def test_boxes_are_clipped_to_the_image():
    pooler = make_pooler(14)
    oracle = Oracle(pooler, (-8.0, 20.0, 60.0, 70.0))
    heads = make_heads(box_predictor=make_classifier(test_score_thresh=0.0), grid_pooler=pooler, grid_head=oracle)
    (found,) = detect(heads, [(0.0, 20.0, 60.0, 64.0)])
    boxes = found.pred_boxes.tensor
    assert len(boxes) > 0 and (boxes[:, 0] == 0).all() and (boxes[:, 3] == SIZE[0]).all()


@pytest.mark.parametrize("thresh, boxes", [(1.0, BOXES), (0.0, ())])
def test_no_detections(thresh, boxes):
    """Nothing scores enough, or there is no proposal: the grid head is not asked."""
    heads = make_heads(mask=True, box_predictor=make_classifier(test_score_thresh=thresh))
    heads.grid_head.register_forward_pre_hook(lambda module, inputs: pytest.fail("an empty batch"))
    for found in detect(heads, boxes, boxes):
        assert len(found) == 0 and found.pred_masks.shape[0] == 0


def test_masks_are_read_from_the_moved_boxes():
    heads = make_heads(mask=True, box_predictor=make_classifier(test_score_thresh=0.0))
    seen = []
    heads.mask_pooler.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[1]))
    (found,) = detect(heads, BOXES)
    assert len(found) > 0 and found.pred_masks.shape[0] == len(found)
    assert torch.equal(seen[0].tensor, found.pred_boxes.tensor)
    assert (pairwise_iou(seen[0], make_proposals(BOXES).proposal_boxes).amax(1) < 0.999).all()


def settings(model):
    heads, rpn = model.roi_heads, model.proposal_generator
    predictor, grid = heads.box_predictor, heads.grid_head
    values = [rpn.nms_thresh, rpn.pre_nms_topk, rpn.post_nms_topk, heads.jitter, heads.max_samples]
    values += [predictor.test_score_thresh, predictor.test_nms_thresh, predictor.test_topk_per_image]
    values += [grid.grid_size, grid.map_size, grid.pos_radius, grid.loss_weight]
    values += [tuple(heads.grid_pooler.output_size), [repr(p) for p in heads.grid_pooler.level_poolers]]
    return values + [heads.batch_size_per_image, heads.positive_fraction, heads.num_classes]


def test_both_forms_build_the_same_model():
    (lazy, one), (cfg, two) = both_forms("grid_rcnn_r50_fpn_1x")
    assert isinstance(two.roi_heads, GridROIHeads) and shapes(one) == shapes(two) and len(shapes(one)) > 300
    assert settings(one) == settings(two)
    assert settings(one)[3:8] == [0.15, 192, 0.03, 0.3, 100]
    same_training(lazy, cfg)


def test_parameters_of_the_whole_model():
    """FrozenBN as here, and the count of batch norm with trainable scales, stem and res2 frozen: mmdetection's."""
    lazy, model = both_forms("grid_rcnn_r50_fpn_1x")[0]
    heads = model.roi_heads
    assert size(heads.box_head) + size(heads.box_predictor) == 13_978_705
    assert size(heads.grid_head) == 23_123_145 and not hasattr(heads.box_predictor, "bbox_pred")
    bottom_up = lazy.model.backbone.bottom_up
    bottom_up.stem.norm = bottom_up.stages.norm = "BN"
    with torch.device("meta"):
        model = instantiate(lazy.model)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 64_322_857


def test_yaml_with_masks_and_four_points():
    overrides = ["MODEL.MASK_ON=True", "MODEL.ROI_GRID_HEAD.NUM_POINTS=4", "MODEL.ROI_GRID_HEAD.NORM_GROUPS=16"]
    model = both_forms("grid_rcnn_r50_fpn_1x", *overrides)[1][1]
    assert model.roi_heads.mask_on and model.roi_heads.grid_head.grid_size == 2


def test_schedule_of_2x():
    """25 epochs of 7330, drops after 17 and 23; the first step at an 80th of the rate, all of it after 3665."""
    cfg = load_config(f"{ROOT}/projects/Detectors/configs/grid_rcnn_r101_fpn_2x.py")
    schedule, last = instantiate(cfg.lr_multiplier), cfg.train.max_iter
    assert last == 25 * 7330 and schedule(0.0) == pytest.approx(1 / 80)
    points = {3665: 1, 17 * 7330 - 1: 1, 17 * 7330 + 1: 0.1, 23 * 7330 - 1: 0.1, 23 * 7330 + 1: 0.01}
    for step, value in points.items():
        assert schedule(step / last) == pytest.approx(value)
    assert cfg.model.backbone.bottom_up.stages.depth == 101 and "resnet101" in cfg.train.init_checkpoint


def test_defaults_of_constructors_are_those_of_the_config():
    cfg = load_config(f"{ROOT}/projects/Detectors/configs/grid_rcnn_r50_fpn_1x.yaml")
    node = {key.lower(): value for key, value in cfg.MODEL.ROI_GRID_HEAD.items()}
    node["test_score_thresh"] = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    node["test_nms_thresh"] = cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST
    node["test_topk_per_image"] = cfg.TEST.DETECTIONS_PER_IMAGE
    checked = 0
    for cls in (GridHead, GridROIHeads, ClassificationOutputLayers):
        for name, parameter in inspect.signature(cls.__init__).parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                assert parameter.default == node[name], name
                checked += 1
    assert checked == 6 + 2 + 3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train_on_pred_boxes": True}, "TRAIN_ON_PRED_BOXES"),
        ({"grid_pooler": make_pooler(7)}, "grid_pooler.output_size"),
        ({"jitter": 1.0}, "JITTER"),
        ({"max_samples": 0}, "MAX_SAMPLES"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        make_heads(**changes)


def test_errors_of_the_yaml_form():
    cfg = load_config(
        f"{ROOT}/projects/Detectors/configs/grid_rcnn_r50_fpn_1x.yaml",
        ["MODEL.DEVICE=meta", "MODEL.ROI_GRID_HEAD.POOLER_RESOLUTION=7"],
    )
    with torch.device("meta"), pytest.raises(ValueError, match="POOLER_RESOLUTION"):
        build_model(cfg)
