"""Dynamic R-CNN's thresholds: what is recorded, what they become, that a run resumes, that detection stays."""

import inspect
import math
import multiprocessing

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from projects.Detectors import DynamicROIHeads, DynamicStatistics
from projects.Detectors.dynamic_rcnn import RecordingMatcher, topk_error
from shared.config import get_collection_cfg
from shared.training_only import training_only_prefixes

from .rcnn_parts import (
    BOXES,
    SIZE,
    both_forms,
    box_parts,
    make_features,
    make_predictor,
    make_proposals,
    make_targets,
    near_proposals,
    same_training,
    shapes,
    size,
    train_step,
)

NAN = math.nan
TRANSFORM = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))


def make_statistics(interval=4, **changes):
    defaults = dict(threshold=0.5, beta=1.0, update_interval=interval, min_iou=0.4, sync=False)
    return DynamicStatistics(**{**defaults, **changes})


def feed(statistics, ious, errors):
    """One iteration for each pair; an IoU that is nan: no image has objects. Returns (threshold, beta) after each."""
    states = []
    for iou, error in zip(ious, errors):
        statistics.record([] if math.isnan(iou) else [torch.tensor(iou)], torch.tensor(error))
        states.append((statistics.threshold, statistics.beta))
    return states


def make_heads(cls=DynamicROIHeads, **changes):
    torch.manual_seed(0)
    return cls(**box_parts(**changes))


def labelled(boxes, gt_boxes, classes):
    """Sampled proposals of one image, each with its ground truth."""
    boxes, gt_boxes = (torch.tensor(x).reshape(-1, 4) for x in (boxes, gt_boxes))
    p = Instances(SIZE, proposal_boxes=Boxes(boxes), gt_classes=torch.tensor(classes, dtype=torch.int64))
    p.gt_boxes = Boxes(gt_boxes)
    return p


def test_matcher_keeps_the_kth_best_iou_of_each_image():
    quality = torch.tensor([[0.1, 0.7, 0.3, 0.0], [0.6, 0.2, 0.3, 0.05]])  # best: 0.6, 0.7, 0.3, 0.05
    matcher = RecordingMatcher(0.3, topk=3)
    matches, labels = matcher(quality)
    wanted = Matcher([0.3], [0, 1])(quality)
    assert torch.equal(matches, wanted[0]) and torch.equal(labels, wanted[1])
    matcher(quality[:, 1:3])  # fewer than topk: the worst
    for empty in (torch.zeros(0, 4), torch.zeros(2, 0), torch.zeros(0, 0)):
        assert len(matcher(empty)[0]) == empty.shape[1]
    assert [round(v.item(), 4) for v in matcher.recorded] == [0.3, 0.3]


def test_topk_error_by_hand():
    """Widths and heights 20; centres off by (2, 0), (1, 4), (0, 1), (8, 8): |dx|, |dy| times 10 / 20, halved:
    0.5, 1.25, 0.25, 4 (background). Ranks 1, 2, 3."""
    boxes = [[10.0, 10.0, 30.0, 30.0]] * 4
    gt = [[12.0, 10.0, 32.0, 30.0], [8.0, 4.0, 30.0, 28.0], [10.0, 11.0, 30.0, 31.0], [18.0, 18.0, 38.0, 38.0]]
    p = labelled(boxes, gt, [0, 2, 1, 3])
    assert [topk_error([p], 3, TRANSFORM, k).item() for k in (1, 2, 3, 10)] == [0.25, 0.5, 1.25, 1.25]
    both = [labelled(boxes[:2], gt[:2], [0, 2]), labelled(boxes[2:], gt[2:], [1, 3])]
    assert topk_error(both, 3, TRANSFORM, 1).item() == 0.5  # rank 1 x 2 images
    deltas = TRANSFORM.get_deltas(p.proposal_boxes.tensor, p.gt_boxes.tensor)[:3, :2].abs().mean(1)
    assert deltas.tolist() == pytest.approx([0.5, 1.25, 0.25])


def test_no_positives_and_no_proposals_have_no_error():
    background = make_proposals(BOXES)  # of an image without objects: no gt_boxes
    background.gt_classes = torch.full((2,), 3)
    none = make_proposals(())
    none.gt_classes = torch.zeros(0, dtype=torch.int64)
    assert topk_error([background], 3, TRANSFORM, 10).isnan() and topk_error([none], 3, TRANSFORM, 10).isnan()
    positive = labelled(BOXES[:1], [[6.0, 6.0, 42.0, 50.0]], [0])  # 2 of 36 px, times 10, halved
    assert topk_error([background, positive, none], 3, TRANSFORM, 10).item() == pytest.approx(10 / 36)


def test_scripted_history_by_hand():
    """Interval 1: mean (.5 + .7 + .6 + .8) / 4 = .65; errors .2, .4, .3 without the missing one: median .3.
    Interval 2: mean (.1 + .2 + .3) / 3 = .2, below the floor; median of 2, 3, 4, 5 is 3.5, above beta's start.
    Interval 3: nothing recorded: as before. Interval 4: mean (.9 + .7) / 2 = .8;
    median (.1 + .2) / 2 = .15 of 0, .1, .2, .9. Interval 5: median 0: beta stays."""
    ious = [0.5, 0.7, 0.6, 0.8] + [0.1, NAN, 0.2, 0.3] + [NAN] * 4 + [0.9, NAN, NAN, 0.7] + [0.5] * 4
    errors = [NAN, 0.2, 0.4, 0.3] + [5.0, 2.0, 4.0, 3.0] + [NAN] * 4 + [0.9, 0.0, 0.1, 0.2] + [0.0] * 4
    states = feed(make_statistics(), ious, errors)
    wanted = [(0.5, 1.0)] * 3 + [(0.65, 0.3)] * 4 + [(0.4, 1.0)] * 8 + [(0.8, 0.15)] * 4 + [(0.5, 0.15)]
    assert len(states) == 20
    for state, pair in zip(states, wanted):
        assert state == pytest.approx(pair, abs=1e-6)


def test_mean_over_images_comes_before_the_mean_over_iterations():
    """(.9 + .5) / 2 = .7 and .4: (.7 + .4) / 2 = .55, not the mean of three."""
    statistics = make_statistics(2)
    statistics.record([torch.tensor(0.9), torch.tensor(0.5)], torch.tensor(0.5))
    statistics.record([torch.tensor(0.4)], torch.tensor(0.5))
    assert statistics.threshold == pytest.approx(0.55)


def test_resumed_run_goes_on_bit_for_bit(tmp_path):
    rng = torch.Generator().manual_seed(0)
    history = [torch.rand(37, generator=rng).tolist() for _ in range(2)]
    wanted = feed(make_statistics(10), *history)
    assert len(set(wanted)) == 4
    for stop in (1, 10, 23):
        first = make_statistics(10)
        states = feed(first, *(h[:stop] for h in history))
        torch.save(first.state_dict(), tmp_path / "state.pth")
        second = make_statistics(10)
        second.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
        assert (second.threshold, second.beta) == states[-1]
        assert states + feed(second, *(h[stop:] for h in history)) == wanted


def test_weights_of_faster_rcnn_and_of_another_interval(tmp_path):
    heads, plain = make_heads(update_interval=4), make_heads(StandardROIHeads)
    own = {f"statistics.{name}" for name in ("values", "step", "history")}
    assert set(heads.state_dict()) - set(plain.state_dict()) == own
    assert set(plain.state_dict()) < set(heads.state_dict())
    assert training_only_prefixes(heads) == ["statistics."]
    feed(heads.statistics, [0.6] * 7, [0.3] * 7)
    report = heads.load_state_dict(plain.state_dict(), strict=False)
    assert set(report.missing_keys) == own and not report.unexpected_keys
    assert feed(heads.statistics, [0.7] * 4, [0.2] * 4)[2:] == [(pytest.approx(0.6), pytest.approx(0.3))] + [
        (pytest.approx(0.7), pytest.approx(0.2))
    ]
    feed(heads.statistics, [0.9] * 3, [0.1] * 3)
    DetectionCheckpointer(heads, str(tmp_path)).save("four")
    other = make_heads(update_interval=2)
    DetectionCheckpointer(other).load(str(tmp_path / "four.pth"))
    assert other.statistics.threshold == pytest.approx(0.7) and other.statistics.beta == pytest.approx(0.2)
    assert feed(other.statistics, [0.5] * 2, [0.5] * 2)[-1] == (0.5, 0.5)  # a new interval


class Waits(TorchDispatchMode):
    """Counts what waits for a device: values and numbers of elements that Python asks for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_iterations_do_not_wait_for_the_device():
    statistics, p = make_statistics(100), labelled([BOXES[0]] * 3, [BOXES[1]] * 3, [0, 3, 1])
    with Waits() as waits:
        for _ in range(99):
            matcher = RecordingMatcher(0.5, 2)
            matcher.recorded.append(torch.rand(5).topk(2).values[-1])
            statistics.record(matcher.recorded, topk_error([p], 3, TRANSFORM, 10))
    assert waits.count == 0 and statistics.threshold == 0.5
    statistics.record([], torch.tensor(NAN))
    assert statistics.threshold != 0.5


def test_heads_record_their_proposals_and_targets():
    """One image: IoU of BOXES[0] (36 x 44) shifted by 4 px both ways: 32 x 40 / (2 x 36 x 44 - 32 x 40) = 0.67797;
    shifted by 2: 34 x 42 / 1740 = 0.82069; itself, and appended once more: 1. The third best is 0.82069.
    Errors of the positives: 0, 0, (20 / 36 + 20 / 44) / 2 = 0.50505 and twice that; the third smallest is 0.50505."""
    heads = make_heads(update_interval=1, iou_topk=3, beta_topk=3)
    targets = make_targets(BOXES[:1])
    train_step(heads, [near_proposals(BOXES[:1], (4.0, 0.0, 2.0))], [targets])
    assert heads.statistics.threshold == pytest.approx(0.820690, abs=1e-6)
    assert heads.statistics.beta == pytest.approx(0.505051, abs=1e-6)


def test_threshold_and_beta_take_effect_in_the_next_iteration():
    """At 0.5 the box of IoU 0.678 is an object; at 0.82 it is background."""
    heads = make_heads(update_interval=1, iou_topk=3, beta_topk=3)
    batch = [near_proposals(BOXES[:1], (4.0, 0.0, 2.0))], [make_targets(BOXES[:1])]
    counts, betas, sample = [], [], heads.label_and_sample_proposals

    def counted(*args):
        sampled = sample(*args)
        counts.append(sum(int((p.gt_classes < 3).sum()) for p in sampled))
        return sampled

    heads.label_and_sample_proposals = counted
    for _ in range(2):
        train_step(heads, *batch)
        betas.append(heads.box_predictor.smooth_l1_beta)
    assert counts == [4, 3] and betas == [1.0, pytest.approx(0.505051, abs=1e-6)]


def test_log_has_the_values_in_force():
    """And not the median of the last 20."""
    heads, features = make_heads(update_interval=1, min_iou=1.0, beta_topk=6), make_features(1)
    with EventStorage() as storage:
        for _ in range(2):
            heads(None, features, [near_proposals()], [make_targets()])
    logged = {name: value for name, (value, _) in storage.latest_with_smoothing_hint(20).items()}
    assert logged["dynamic_rcnn/iou_threshold"] == 1.0 and logged["dynamic_rcnn/beta"] < 1.0


def test_first_loss_is_smooth_l1_with_the_initial_beta():
    """Of the same sample: Faster R-CNN's heads with beta 0.7, and ours, whose predictor was given none."""
    ours = make_heads(initial_beta=0.7)
    theirs = make_heads(StandardROIHeads, box_predictor=make_predictor(smooth_l1_beta=0.7))
    theirs.load_state_dict(ours.state_dict(), strict=False)
    losses = []
    for heads in (ours, theirs):
        torch.manual_seed(3)
        losses.append(train_step(heads, [near_proposals(), near_proposals()], [make_targets(), make_targets()]))
    assert losses[0].keys() == losses[1].keys()
    assert all(losses[0][name] == losses[1][name] > 0 for name in losses[0])


def test_images_without_objects():
    heads = make_heads(update_interval=2)
    for boxes in ((), BOXES):
        losses = train_step(heads, [make_proposals(boxes)], [make_targets(())])
        sum(losses.values()).backward()
    assert (heads.statistics.threshold, heads.statistics.beta) == (0.5, 1.0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())
    losses = train_step(heads, [make_proposals(()), near_proposals()], [make_targets(()), make_targets()])
    assert sum(losses.values()).isfinite() and not heads.statistics.history[:, 0].isnan().any()


def test_detections_are_those_of_faster_rcnn():
    ours = make_heads(box_predictor=make_predictor(test_score_thresh=0.0))
    theirs = make_heads(StandardROIHeads, box_predictor=make_predictor(test_score_thresh=0.0))
    theirs.load_state_dict(ours.state_dict(), strict=False)
    feed(ours.statistics, [0.9] * 250, [0.01] * 250)
    results = []
    for heads in (ours.eval(), theirs.eval()):
        with torch.no_grad():
            results.append(heads(None, make_features(), [near_proposals(), make_proposals(())])[0])
    assert len(results[0][0]) > 0 and len(results[0][1]) == 0
    for one, two in zip(*results):
        assert torch.equal(one.pred_boxes.tensor, two.pred_boxes.tensor)
        assert torch.equal(one.scores, two.scores) and torch.equal(one.pred_classes, two.pred_classes)


# Of two images and two iterations: the IoU (nan: no objects), and shifts in x of positives of 20 px, whose errors are
# a quarter of the shift
TWO_IMAGES = [([0.5, 0.6], [[1.0, 4.0, 8.0], [3.0]]), ([0.9, NAN], [[2.0, 12.0, 16.0], []])]


def run_iterations(statistics, images):
    """Rank 1 of the errors per image."""
    for iteration in range(2):
        proposals = []
        for _, shifts in images:
            boxes = torch.tensor([[10.0, 10.0, 30.0, 30.0]]).repeat(len(shifts[iteration]), 1)
            moved = boxes + torch.tensor(shifts[iteration])[:, None] * torch.tensor([1.0, 0.0, 1.0, 0.0])
            proposals.append(labelled(boxes.tolist(), moved.tolist(), [0] * len(boxes)))
        error = topk_error(proposals, 3, TRANSFORM, 1, statistics.sync)
        ious = [torch.tensor(iou[iteration]) for iou, _ in images if not math.isnan(iou[iteration])]
        statistics.record(ious, error)
    return statistics.threshold, statistics.beta


def run_process(rank, folder, sync):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = run_iterations(make_statistics(2, sync=sync, beta=9.0), TWO_IMAGES[rank : rank + 1])
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("sync", [True, False])
def test_two_processes(tmp_path, sync):
    """Together: I_t .7 and .6, mean .65; E_t the 2nd of .25, .5, 1, 2, 3, 4 and .75, the only one: median .625.
    Alone: .5 and .6, .25 and .75: .55, .5; .9, .5."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=run_process, args=(rank, tmp_path, sync)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    whole = run_iterations(make_statistics(2, beta=9.0), TWO_IMAGES)
    wanted = [whole, whole] if sync else [(0.55, 0.5), (0.9, 0.5)]
    assert whole == pytest.approx((0.65, 0.625), abs=1e-6)
    assert [v for pair in found for v in pair] == pytest.approx([v for pair in wanted for v in pair], abs=1e-6)


def settings(model):
    heads, rpn = model.roi_heads, model.proposal_generator
    predictor, s = heads.box_predictor, heads.statistics
    values = [rpn.nms_thresh, rpn.pre_nms_topk, rpn.post_nms_topk, heads.iou_topk, heads.beta_topk]
    values += [s.threshold, s.beta, s.update_interval, s.min_iou, s.sync]
    values += [predictor.test_score_thresh, predictor.test_nms_thresh, predictor.test_topk_per_image]
    return values + [predictor.box_reg_loss_type, heads.batch_size_per_image, heads.positive_fraction]


def test_both_forms_build_the_same_model():
    (lazy, one), (cfg, two) = both_forms("dynamic_rcnn_r50_fpn_1x")
    assert isinstance(two.roi_heads, DynamicROIHeads) and shapes(one) == shapes(two) and len(shapes(one)) > 290
    assert size(one) == 41_699_936  # Faster R-CNN's
    assert settings(one) == settings(two)
    assert settings(one)[0] == 0.85 and settings(one)[3:10] == [75, 10, 0.5, 1.0, 100, 0.4, False]
    same_training(lazy, cfg)


def test_defaults_of_the_constructor_are_those_of_the_config():
    node = get_collection_cfg().MODEL.DYNAMIC_RCNN
    parameters = inspect.signature(DynamicROIHeads.__init__).parameters
    defaults = {k.upper(): p.default for k, p in parameters.items() if p.default is not inspect.Parameter.empty}
    assert defaults == dict(node) and len(defaults) == 6


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"proposal_matcher": Matcher([0.4, 0.5], [0, -1, 1])}, "IOU_THRESHOLDS"),
        ({"proposal_matcher": Matcher([0.5], [0, 1], allow_low_quality_matches=True)}, "IOU_THRESHOLDS"),
        ({"box_predictor": make_predictor(box_reg_loss_type="giou")}, "BBOX_REG_LOSS_TYPE"),
        ({"iou_topk": 0}, "iou_topk"),
        ({"update_interval": 0}, "update_interval"),
        ({"min_iou": 0.0}, "min_iou"),
        ({"initial_beta": 0.0}, "initial_beta"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        make_heads(**changes)
