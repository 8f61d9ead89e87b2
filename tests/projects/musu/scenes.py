"""Random batches for an assigner, and the assignment by loops over objects and anchors."""

import math
from types import SimpleNamespace

import torch

from detectron2.structures import Boxes, Instances, pairwise_iou
from projects.MuSu import Grid, MuSuAssigner, Scene, tiled_anchors
from projects.MuSu.assign import Candidates

STRIDES = (8, 16, 32)


def make_grid(height: int, width: int, strides=STRIDES, **tiling):
    """(Grid, anchors (N, 4)) of an image of this size."""
    generator = tiled_anchors(strides=strides, **{"scale": 4.0, **tiling})
    features = [torch.zeros(1, 1, height // s, width // s) for s in strides]
    return Grid.of(features, generator), Boxes.cat(generator(features)).tensor


def make_targets(rng: torch.Generator, counts, size, classes: int = 3, sides=(4, 200)) -> list[Instances]:
    """So many boxes per image, sides log-uniform, cut at the image (height, width)."""
    scale, targets = torch.tensor([size[1], size[0]]), []
    for count in counts:
        side = sides[0] * (sides[1] / sides[0]) ** torch.rand(count, 2, generator=rng)
        center = torch.rand(count, 2, generator=rng) * scale
        boxes = torch.cat([(center - side / 2).clamp(min=0), torch.minimum(center + side / 2, scale)], dim=1)
        labels = torch.randint(classes, (count,), generator=rng)
        targets.append(Instances(tuple(size), gt_boxes=Boxes(boxes), gt_classes=labels))
    return targets


def make_scene(seed: int, counts=(3, 0, 5), size=(64, 96), classes: int = 3, **tiling) -> Scene:
    """Predictions: anchors moved by a fifth of their size, logits from N(-1, 1.5)."""
    rng = torch.Generator().manual_seed(seed)
    grid, anchors = make_grid(*size, **tiling)
    targets = make_targets(rng, counts, size, classes)
    sides = (anchors[:, 2:] - anchors[:, :2]).repeat(1, 2)
    noise = torch.randn(len(counts), len(anchors), 4, generator=rng)
    logits = 1.5 * torch.randn(len(counts), len(anchors), classes, generator=rng) - 1
    return Scene.of(grid, anchors, logits, anchors + 0.2 * sides * noise, targets)


def candidates(anchors, gts, s, u) -> Candidates:
    """From lists; s: scores, u: IoUs."""
    return Candidates(torch.tensor(anchors), torch.tensor(gts), torch.tensor(s).log(), torch.tensor(u))


def rows(assignment) -> dict[tuple[int, int], tuple[float, float]]:
    """(anchor, object) -> (w_cls, w_reg)."""
    columns = (x.tolist() for x in assignment[:4])
    found = {(i, g): (a, b) for i, g, a, b in zip(*columns)}
    assert len(found) == len(assignment.anchors)
    return found


def assert_same(one, two, tolerance: float = 1e-5) -> None:
    """Two `rows` hold the same samples and weights."""
    assert set(one) == set(two)
    for key, weights in one.items():
        assert math.isclose(weights[0], two[key][0], abs_tol=tolerance), key
        assert math.isclose(weights[1], two[key][1], abs_tol=tolerance), key


def locations(scene: Scene) -> list[tuple[float, float, int]]:
    """(x, y, stride) of every anchor of an image, by counting."""
    found = []
    for stride, xs, ys in zip(scene.grid.strides, scene.grid.columns, scene.grid.rows):
        for y in range(len(ys)):
            for x in range(len(xs)):
                found += [((x + 0.5) * stride, (y + 0.5) * stride, stride)] * scene.grid.shapes_per_location
    return found


def is_candidate(place, box, rule: MuSuAssigner) -> bool:
    (x, y, stride), (x0, y0, x1, y1) = place, box
    inside = min(x - x0, y - y0, x1 - x, y1 - y) > 0
    near = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)) < rule.center_radius * stride
    return inside and (near or rule.bag_region == "inside")


def nearest_anchors(places, box, shapes: int) -> list[int]:
    center = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    distance = [math.hypot(x - center[0], y - center[1]) / stride for x, y, stride in places]
    first = distance.index(min(distance))
    return list(range(first, first + shapes))


def naive_bag(members, q, rule: MuSuAssigner) -> list[int]:
    values = [q[i] for i in members]
    if rule.bag_filter == "none" or not members:
        return members
    if rule.bag_filter == "topk":
        return sorted(sorted(members, key=lambda i: -q[i])[: rule.bag_topk])
    mean = sum(values) / len(values)
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    return [i for i in members if q[i] >= min(mean + rule.bag_filter_k * std, max(values))]


def naive_assign(scene: Scene, rule: MuSuAssigner) -> dict[tuple[int, int], tuple[float, float]]:
    """What musu_assign should give, as `rows`."""
    num, places, bags, facts = len(scene.anchors), locations(scene), {}, {}
    for j, (box, label, image) in enumerate(zip(scene.gt_boxes, scene.gt_classes, scene.gt_images.tolist())):
        log_s = torch.nn.functional.logsigmoid(scene.logits[image, :, label].float())
        u = pairwise_iou(Boxes(scene.boxes[image]), Boxes(box[None]))[:, 0]
        q = (log_s.double().exp() * u).tolist()
        q = [math.sqrt(v) for v in q] if rule.bag_joint == "geomean" else q
        log_u = u.clamp(min=1e-6).log()
        key_cls = (rule.mix_own_cls * log_s + (1 - rule.mix_own_cls) * log_u).tolist()
        key_reg = ((1 - rule.mix_own_reg) * log_s + rule.mix_own_reg * log_u).tolist()
        members = [i for i in range(num) if is_candidate(places[i], box.tolist(), rule)]
        if not members and rule.bag_fallback == "nearest":
            members = nearest_anchors(places, box.tolist(), scene.grid.shapes_per_location)
        bags[j] = [(image * num + i, i) for i in naive_bag(members, q, rule)]
        area = (box[2] - box[0]) * (box[3] - box[1])
        facts[j] = SimpleNamespace(q=q, u=u.tolist(), keys=(key_cls, key_reg), area=float(area))
    if rule.conflict != "multi":
        bags = _without_conflicts(bags, facts, rule.conflict)
    result = {}
    for j, bag in bags.items():
        weights = [naive_weights(bag, key, head, rule) for head, key in enumerate(facts[j].keys)]
        result |= {(anchor, j): (weights[0][i], weights[1][i]) for anchor, i in bag}
    return result


def _without_conflicts(bags, facts, conflict: str):
    def better(i, j, k):  # whether object j has anchor i rather than object k, which comes first
        one, two = facts[j], facts[k]
        if conflict == "min_area":
            return one.area < two.area
        return one.u[i] > two.u[i] if conflict == "iou" else one.q[i] > two.q[i]

    owner = {}
    for j, bag in bags.items():
        for anchor, i in bag:
            if anchor not in owner or better(i, j, owner[anchor]):
                owner[anchor] = j
    return {j: [(anchor, i) for anchor, i in bag if owner[anchor] == j] for j, bag in bags.items()}


def naive_weights(bag, key, head: int, rule: MuSuAssigner) -> dict[int, float]:
    order = sorted((i for _, i in bag), key=lambda i: -key[i])  # stable: of equal keys, the lower anchor first
    if rule.weight_fn == "hard":
        return dict.fromkeys(order, 1.0)
    if rule.weight_fn == "score_norm":
        return {i: math.exp(key[i] - key[order[0]]) for i in order}
    tau = rule.temp_fixed
    if rule.temp_mode == "adaptive":
        tau = max(len(bag) ** rule.temp_exp / (rule.temp_div_cls, rule.temp_div_reg)[head], rule.tau_min, 1e-9)
    return {i: math.exp(-rank / tau) for rank, i in enumerate(order)}
