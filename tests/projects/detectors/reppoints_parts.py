"""RepPoints with predictions set by hand, and its losses and detections by explicit loops."""

import math
import statistics

from detectron2.modeling.matcher import Matcher
from projects.Detectors.reppoints import RepPoints
from projects.Detectors.reppoints_points import PointsToBox
from tests.embedded.dense_parts import NUM_CLASSES, PIXELS, FixedHead, TwoLevels, rows, slow_focal

SHAPES, STRIDES, SIZE = ((4, 6), (2, 3)), (8, 16), (32, 48)  # of TwoLevels
LOCATIONS = [(x * s, y * s, s) for (h, w), s in zip(SHAPES, STRIDES) for y in range(h) for x in range(w)]


def make_model(num_images=1, scale=1.0, seed=0, **kwargs):
    """RepPoints on 30 locations; its head returns its own parameters: logits, first and refined points."""
    head = FixedHead(num_images, SHAPES, (NUM_CLASSES, 18, 18), scale, seed)
    head.points_to_box = PointsToBox()
    arguments = {
        "backbone": TwoLevels(),
        "head": head,
        "head_in_features": ["fine", "coarse"],
        "box_matcher": Matcher([0.4, 0.5], [0, -1, 1], True),
        "num_classes": NUM_CLASSES,
        **PIXELS,
    }
    return RepPoints(**{**arguments, **kwargs})


def slow_assign(boxes, shapes, strides, scale=4.0):
    """{location: ground truth}, one ground truth after the other, each compared with all locations of its level."""
    locations = [
        (stride, x * stride, y * stride) for (h, w), stride in zip(shapes, strides) for y in range(h) for x in range(w)
    ]
    taken = {}
    for g, (x1, y1, x2, y2) in enumerate(boxes):
        w, h = x2 - x1, y2 - y1
        level = int((math.log2(w / scale) + math.log2(h / scale)) / 2)
        stride = 2 ** min(max(level, int(math.log2(strides[0]))), int(math.log2(strides[-1])))
        nearest = math.inf, -1
        for i, (s, x, y) in enumerate(locations):
            if s == stride:
                distance = math.hypot((x - (x1 + x2) / 2) / w, (y - (y1 + y2) / 2) / h)
                nearest = min(nearest, (distance, i))
        distance, i = nearest
        if i not in taken or distance < taken[i][0]:
            taken[i] = distance, g
    return {i: g for i, (_, g) in taken.items()}


def slow_box(points, location):
    """Moment box in pixels, without a learned factor."""
    x, y, stride = location
    ys, xs = ([v * stride + at for v in points.tolist()[i::2]] for i, at in ((0, y), (1, x)))
    cx, cy, rx, ry = statistics.mean(xs), statistics.mean(ys), statistics.stdev(xs), statistics.stdev(ys)
    return [cx - rx, cy - ry, cx + rx, cy + ry]


def slow_iou(a, b):
    w, h = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    union = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - w * h
    return w * h / union


def slow_match(gts, boxes):
    """{location: ground truth or None for background}; ignored locations are missing."""
    ious = [[slow_iou(gt, box) for box in boxes] for gt in gts]
    low = {row.index(max(row)) for row in ious if max(row) > 0}
    labels = {}
    for i in range(len(boxes)):
        column = [row[i] for row in ious]
        best = max(column, default=0.0)
        if best >= 0.5 or i in low:
            labels[i] = column.index(best)
        elif best < 0.4:
            labels[i] = None
    return labels


def smooth_l1(box, gt, stride, beta=0.11):
    error = [abs(p - t) / (4 * stride) for p, t in zip(box, gt)]
    return sum(0.5 * e * e / beta if e < beta else e - 0.5 * beta for e in error)


def slow_losses(model, gt_instances):
    logits, init, refine = (rows(maps, k) for maps, k in zip(model.head.maps, (NUM_CLASSES, 18, 18)))
    sums, numbers = {"cls": 0.0, "init": 0.0, "refine": 0.0}, {"init": 0, "refine": 0}
    kinds = {"ignored": 0, "low": 0, "contested": 0}
    for i, gt in enumerate(gt_instances):
        gts, classes = gt.gt_boxes.tensor.tolist(), gt.gt_classes.tolist()
        first, last = ([slow_box(p, at) for p, at in zip(x[i], LOCATIONS)] for x in (init, refine))
        centers = slow_assign(gts, SHAPES, STRIDES)
        sums["init"] += sum(smooth_l1(first[r], gts[g], LOCATIONS[r][2]) for r, g in centers.items())
        matches = slow_match(gts, first)
        objects = {r: g for r, g in matches.items() if g is not None}
        sums["refine"] += sum(smooth_l1(last[r], gts[g], LOCATIONS[r][2]) for r, g in objects.items())
        for r, g in matches.items():
            wanted = None if g is None else classes[g]
            sums["cls"] += sum(slow_focal(logits[i, r, k].item(), k == wanted) for k in range(NUM_CLASSES))
        numbers["init"] += max(len(centers), 1)
        numbers["refine"] += max(len(objects), 1)
        kinds["ignored"] += len(LOCATIONS) - len(matches)
        kinds["low"] += sum(slow_iou(first[r], gts[g]) < 0.5 for r, g in objects.items())
        kinds["contested"] += len(gts) - len(centers)
    losses = {
        "loss_cls": sums["cls"] / numbers["refine"],
        "loss_box_init": 0.5 * sums["init"] / numbers["init"],
        "loss_box_refine": sums["refine"] / numbers["refine"],
    }
    return losses, numbers, kinds


def slow_detections(model, image, threshold, topk, nms, size=SIZE):
    """[(score, class, box)] by falling score; boxes that lie outside the image are dropped in the end."""
    logits, _, refine = (rows(maps, k)[image] for maps, k in zip(model.head.maps, (NUM_CLASSES, 18, 18)))
    scores = [[1 / (1 + math.exp(-x)) for x in row] for row in logits.tolist()]
    candidates, first = [], 0
    for h, w in SHAPES:
        level = sorted(range(first, first + h * w), key=lambda r: -max(scores[r]))[:topk]
        first += h * w
        for r in level:
            box = [min(max(v, 0), size[1 - j % 2]) for j, v in enumerate(slow_box(refine[r], LOCATIONS[r]))]
            candidates += [(s, k, box) for k, s in enumerate(scores[r]) if s > threshold]
    kept = []
    for found in sorted(candidates, key=lambda c: -c[0]):
        if all(found[1] != k or slow_iou(found[2], box) <= nms for _, k, box in kept):
            kept.append(found)
    return [(s, k, box) for s, k, box in kept if box[2] > box[0] and box[3] > box[1]]
