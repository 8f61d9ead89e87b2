"""projects/MuSu/assign.py: bags, ranks and weights."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from projects.MuSu import MuSuAssigner, musu_assign
from projects.MuSu.assign import Candidates, filter_bags, joint_score, ranks, resolve_conflicts, weigh
from tests.projects.musu.scenes import assert_same, candidates, make_scene, naive_assign, rows

DEFAULT = MuSuAssigner()
SCORES = [0.90, 0.60, 0.30, 0.50, 0.10, 0.05, 0.70, 0.02]
IOUS = [0.50, 0.80, 0.90, 0.70, 0.60, 0.30, 0.65, 0.10]


def assign(pairs: Candidates, rule: MuSuAssigner, num_gts: int = 1, num_anchors: int = 100):
    """The steps of musu_assign after the geometry."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(num_gts, 1)
    kept = resolve_conflicts(filter_bags(pairs, num_gts, rule), boxes, num_anchors, rule)
    return weigh(kept, num_gts, rule)


def one_object(scores=SCORES, ious=IOUS) -> Candidates:
    return candidates(list(range(len(scores))), [0] * len(scores), scores, ious)


def dense(assignment, num: int) -> tuple[list[float], list[float]]:
    """Weights of one object's candidates; 0 outside the bag."""
    columns = torch.zeros(2, num)
    columns[:, assignment.anchors] = torch.stack(assignment[2:4])
    return tuple(columns.tolist())


def test_one_object_by_hand():
    """q = .45 .48 .27 .35 .06 .015 .455 .002: mean 2.082 / 8 = .26025, population std .19278, so k = 1 keeps {1, 6}.

    Class head, mostly IoU: candidate 1 (.80) before 6 (.65), tau = sqrt(2) / 2, exp(-1 / tau) = .243117. Box head,
    mostly score: 6 (.7 log .7 + .3 log .65 = -.379) before 1 (.7 log .6 + .3 log .8 = -.425), tau = sqrt(2), .493069.
    The heads disagree.
    """
    pairs = one_object()
    q = joint_score(pairs, DEFAULT)
    assert q.mean().item() == pytest.approx(0.26025) and q.std(correction=0).item() == pytest.approx(0.192780, abs=1e-6)
    found = assign(pairs, DEFAULT)
    assert rows(found).keys() == {(1, 0), (6, 0)}
    assert_same(rows(found), {(1, 0): (1, 0.493069), (6, 0): (0.243117, 1)}, 1e-6)
    assert found.tau_cls.tolist() == pytest.approx([math.sqrt(2) / 2])
    assert found.tau_reg.tolist() == pytest.approx([math.sqrt(2)])


def test_one_object_above_the_mean():
    """k = 0 keeps q >= .26025: {0, 1, 2, 3, 6}; ranks by class key 4 1 0 2 3, by box key 0 2 4 3 1."""
    found = assign(one_object(), replace(DEFAULT, bag_filter_k=0.0))
    w_cls, w_reg = (torch.tensor(w)[[0, 1, 2, 3, 6]] for w in dense(found, 8))
    assert w_cls.tolist() == pytest.approx([0.027940, 0.408842, 1, 0.167152, 0.068339], abs=1e-6)
    assert w_reg.tolist() == pytest.approx([1, 0.408842, 0.167152, 0.261416, 0.639407], abs=1e-6)
    assert w_cls.sum().item() == pytest.approx(1.672271, abs=1e-5)
    assert w_reg.sum().item() == pytest.approx(2.476817, abs=1e-5)


def test_threshold_above_the_maximum():
    """Nine q of .9 and one of 0: mean + std = .81 + .27 = 1.08 would leave nobody."""
    pairs = one_object([0.9] * 9 + [0.5], [1.0] * 9 + [0.0])
    assert sorted(assign(pairs, DEFAULT).anchors.tolist()) == list(range(9))
    for k in (0.0, 1.0, 5.0):  # one candidate: its std is 0
        found = assign(one_object([0.3], [0.4]), replace(DEFAULT, bag_filter_k=k))
        assert rows(found) == {(0, 0): (1.0, 1.0)}
    nothing = assign(one_object([0.3, 0.6, 0.2], [0.0, 0.0, 0.0]), DEFAULT)  # all boxes miss: ranked by score
    assert_same(
        rows(nothing), {(i, 0): (math.exp(-r * 2 / 3**0.5), math.exp(-r / 3**0.5)) for i, r in enumerate((1, 0, 2))}
    )


def test_conflict_by_hand():
    """q: (0,0) .42, (1,0) .3, (2,0) .08, (1,1) .25, (2,1) .32, (3,1) .27: anchor 1 stays with 0, anchor 2 with 1."""
    pairs = candidates(
        [0, 1, 2, 1, 2, 3], [0, 0, 0, 1, 1, 1], [0.6, 0.5, 0.4, 0.5, 0.4, 0.3], [0.7, 0.6, 0.2, 0.5, 0.8, 0.9]
    )
    found = assign(pairs, replace(DEFAULT, bag_filter="none"), num_gts=2)
    rest = math.exp(-math.sqrt(2)), math.exp(-1 / math.sqrt(2))
    assert rest == pytest.approx((0.243117, 0.493069), abs=1e-6)
    expected = {(0, 0): (1, 1), (1, 0): rest, (2, 1): (rest[0], 1), (3, 1): (1, rest[1])}
    assert_same(rows(found), expected, 1e-6)


def test_conflict_rules():
    """Anchor 5 in two bags: q .36 and .35, u .4 and .7, areas 200 and 100."""
    pairs = candidates([5, 5], [0, 1], [0.9, 0.5], [0.4, 0.7])
    boxes = torch.tensor([[0.0, 0.0, 10.0, 20.0], [0.0, 0.0, 10.0, 10.0]])
    for conflict, owners in (("joint", [0]), ("iou", [1]), ("min_area", [1]), ("multi", [0, 1])):
        kept = resolve_conflicts(pairs, boxes, 10, replace(DEFAULT, conflict=conflict))
        assert kept.gts.tolist() == owners
    twins = candidates([5, 5], [0, 1], [0.9, 0.9], [0.4, 0.4])
    for conflict in ("joint", "iou", "min_area"):  # the first of equal ones takes all
        assert resolve_conflicts(
            twins, boxes[:1].repeat(2, 1), 10, replace(DEFAULT, conflict=conflict)
        ).gts.tolist() == [0]


EFFECTIVE = {  # n: sum of weights for kappa 0.5, 1, 2, 4
    1: (1.00, 1.00, 1.00, 1.00),
    4: (2.86, 2.20, 1.55, 1.16),
    9: (5.06, 3.35, 2.05, 1.36),
    25: (9.65, 5.48, 3.03, 1.82),
    50: (14.2, 7.58, 4.06, 2.31),
    100: (20.4, 10.5, 5.52, 3.03),
    400: (40.5, 20.5, 10.5, 5.52),
    1000: (63.8, 32.1, 16.3, 8.42),
}


@pytest.mark.parametrize("n", list(EFFECTIVE))
def test_sums_of_weights(n):
    """P3: largest weight 1, sums (1 - e^(-n/tau)) / (1 - e^(-1/tau)); each head has its own kappa."""
    rng = torch.Generator().manual_seed(n)
    pairs = Candidates(
        torch.arange(n),
        torch.zeros(n, dtype=torch.int64),
        *-torch.rand(1, n, generator=rng),
        torch.rand(n, generator=rng),
    )
    for kappa, expected in zip((0.5, 1.0, 2.0, 4.0), EFFECTIVE[n]):
        found = weigh(pairs, 1, replace(DEFAULT, temp_div_cls=kappa, temp_div_reg=2 * kappa))
        for w, k in ((found.w_cls, kappa), (found.w_reg, 2 * kappa)):
            assert w.max() == 1 and w.min() >= 0 and (n > 100 or w.min() > 0)  # 400 ranks: below the least float
            tau = math.sqrt(n) / k
            assert w.sum().item() == pytest.approx((1 - math.exp(-n / tau)) / (1 - math.exp(-1 / tau)), rel=1e-5)
        assert found.w_cls.sum().item() == pytest.approx(expected, rel=2e-3, abs=5e-3)


def test_temperatures():
    pairs = one_object([0.5] * 4, [0.9, 0.8, 0.7, 0.6])
    all_in = replace(DEFAULT, bag_filter="none")
    for rule, tau in (
        (replace(all_in, temp_mode="fixed", temp_fixed=3.0), (3, 3)),
        (replace(all_in, temp_exp=1.0), (2, 4)),
        (replace(all_in, tau_min=1.5), (1.5, 2)),
    ):
        found = assign(pairs, rule)
        assert (found.tau_cls.item(), found.tau_reg.item()) == pytest.approx(tau)
        assert found.w_cls.tolist() == pytest.approx([math.exp(-r / tau[0]) for r in range(4)])


def bags(seed: int, sizes=(7, 1, 12), conflict_free: bool = True) -> Candidates:
    """Random bags of these sizes."""
    rng = torch.Generator().manual_seed(seed)
    num = sum(sizes)
    gts = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    anchors = torch.arange(num) if conflict_free else torch.cat([torch.arange(n) + j for j, n in enumerate(sizes)])
    return Candidates(anchors, gts, torch.rand(num, generator=rng).log(), torch.rand(num, generator=rng))


def test_ranks():
    """P4: 0 to n - 1 in each bag, by falling key; of equal keys the first pair comes first."""
    pairs = bags(0)
    rank = ranks(pairs.u, pairs.gts, 4)
    for j in range(3):
        mine = pairs.gts == j
        assert sorted(rank[mine].tolist()) == list(range(int(mine.sum())))
        assert pairs.u[mine][rank[mine].argsort()].diff().le(0).all()
    tied = ranks(torch.tensor([1.0, 2.0, 1.0, 1.0, 2.0]), torch.tensor([0, 0, 0, 1, 1]), 2)
    assert tied.tolist() == [1, 0, 2, 1, 0]


SAME_KAPPA = replace(DEFAULT, temp_div_cls=1.5, temp_div_reg=1.5, bag_filter="none")


def test_heads_agree_when_the_scores_do():
    """P5: u rises with s, or one of the two is constant: one order, whatever the mixing."""
    for seed in range(5):
        x = bags(seed)
        for pairs in (
            x._replace(u=x.log_s.exp() ** 2),
            x._replace(log_s=torch.full_like(x.u, -1.0)),
            x._replace(u=torch.full_like(x.u, 0.3)),
        ):
            for own in ((0.1, 0.3), (0.4, 0.9), (0.7, 0.2)):
                found = weigh(pairs, 3, replace(SAME_KAPPA, mix_own_cls=own[0], mix_own_reg=own[1]))
                assert torch.equal(found.w_cls, found.w_reg)
    different = weigh(bags(0), 3, SAME_KAPPA)
    assert not torch.equal(different.w_cls, different.w_reg)


def test_joint_and_swapped_shares():
    """P6: shares of one half give one ranking. P7: a and 1 - a change the heads' places."""
    for seed in range(5):
        joint = weigh(bags(seed), 3, replace(SAME_KAPPA, mix_own_cls=0.5, mix_own_reg=0.5))
        assert torch.equal(joint.w_cls, joint.w_reg)
        for a in (0.0, 0.25, 0.9):
            one = weigh(bags(seed), 3, replace(SAME_KAPPA, mix_own_cls=a, mix_own_reg=a))
            two = weigh(bags(seed), 3, replace(SAME_KAPPA, mix_own_cls=1 - a, mix_own_reg=1 - a))
            torch.testing.assert_close(one.w_cls, two.w_reg)
            torch.testing.assert_close(one.w_reg, two.w_cls)
    pure = weigh(bags(0), 3, replace(SAME_KAPPA, mix_own_cls=0.0, mix_own_reg=0.0))
    assert torch.equal(pure.w_cls, weigh(bags(0), 3, replace(SAME_KAPPA, mix_own_cls=0.0)).w_cls)
    assert torch.equal((pure.w_cls == 1).nonzero()[0], bags(0).u[:7].argmax()[None])  # by the other head's number alone
    assert torch.equal((pure.w_reg == 1).nonzero()[0], bags(0).log_s[:7].argmax()[None])


@pytest.mark.parametrize("joint", ["product", "geomean"])
@pytest.mark.parametrize("field", ["log_s", "u"])
def test_scale_of_scores_does_not_matter(joint, field):
    """P8: all s, or all u, of an object times a constant."""
    rule = replace(DEFAULT, bag_joint=joint, conflict="multi")
    changed = 0
    for seed in range(5):
        pairs = bags(seed, conflict_free=False)
        mine = pairs.gts == 2
        scaled = pairs.log_s - mine * math.log(4) if field == "log_s" else pairs.u * (1 - 0.75 * mine)
        changed += int((scaled != getattr(pairs, field)).sum())
        found = [rows(assign(p, rule, 3)) for p in (pairs, pairs._replace(**{field: scaled}))]
        assert_same(*found)
    assert changed == 5 * 12


def test_limits_of_the_temperature():
    """P9: a cold bag has one sample, a hot one hard labels."""
    pairs = bags(1)
    cold = weigh(pairs, 3, replace(DEFAULT, temp_div_cls=1e12, temp_div_reg=1e12))
    for w in (cold.w_cls, cold.w_reg):
        assert sorted(w.tolist()) == [0.0] * 17 + [1.0] * 3 and (w * (pairs.gts + 1)).sum() == 1 + 2 + 3
    hot, hard = (
        weigh(pairs, 3, replace(DEFAULT, temp_div_cls=1e-9, temp_div_reg=1e-9)),
        weigh(pairs, 3, replace(DEFAULT, weight_fn="hard")),
    )
    for a, b in zip(hot[2:4], hard[2:4]):
        torch.testing.assert_close(a, b)
        assert (b == 1).all()
    soft = weigh(pairs, 3, replace(DEFAULT, weight_fn="score_norm", mix_own_cls=0.0, mix_own_reg=0.0))
    largest = torch.stack([pairs.u[pairs.gts == j].max() for j in range(3)])
    torch.testing.assert_close(soft.w_cls, pairs.u / largest[pairs.gts])


RULES = [
    DEFAULT,
    replace(DEFAULT, bag_region="center", bag_fallback="nearest", conflict="iou"),
    replace(DEFAULT, bag_joint="geomean", bag_filter_k=0.0, conflict="min_area", temp_mode="fixed"),
    replace(DEFAULT, bag_filter="topk", bag_topk=6, weight_fn="score_norm"),
    replace(DEFAULT, bag_filter="none", conflict="multi", tau_min=0.7, temp_exp=0.8),
    replace(DEFAULT, mix_own_cls=0.0, mix_own_reg=0.0, weight_fn="hard", bag_fallback="nearest"),
    replace(DEFAULT, mix_own_cls=1.0, mix_own_reg=1.0, temp_div_cls=0.5, max_pairs=40),
    replace(DEFAULT, bag_region="center", center_radius=2.5, bag_filter_k=2.0, mix_own_reg=0.5),
]


@pytest.mark.parametrize("start", range(len(RULES)))
def test_equals_loops_on_random_scenes(start):
    """P12: 25 scenes a rule, 200 in all, of one to three images with 0 to 11 objects of 4 to 200 px."""
    rng = torch.Generator().manual_seed(start)
    samples = 0
    for seed in range(25):
        counts = torch.randint(12, (int(torch.randint(1, 4, (), generator=rng)),), generator=rng).tolist()
        ratios = [0.5, 1.0, 2.0] if seed % 5 == 0 else [1.0]
        scene = make_scene(1000 * start + seed, counts, size=(64, 64), aspect_ratios=ratios)
        found = rows(musu_assign(scene, RULES[start]))
        assert_same(found, naive_assign(scene, RULES[start]))
        samples += len(found)
    assert samples > 300


def test_no_objects():
    """P1, and P2: an object without a location changes nothing for the others."""
    for counts in ((0,), (0, 0)):
        found = musu_assign(make_scene(0, counts), DEFAULT)
        assert [len(x) for x in found] == [0] * 6
    scene = make_scene(1, (4, 0))
    assert musu_assign(scene, DEFAULT).anchors.max() < len(scene.anchors)
    before = rows(musu_assign(scene, DEFAULT))
    extra = scene._replace(
        gt_boxes=torch.cat([scene.gt_boxes, torch.tensor([[5.0, 5.0, 7.0, 7.0]])]),
        gt_classes=torch.cat([scene.gt_classes, scene.gt_classes[:1]]),
        gt_images=torch.cat([scene.gt_images, torch.tensor([1])]),
    )
    assert rows(musu_assign(extra, DEFAULT)) == before
    nearest = musu_assign(extra, replace(DEFAULT, bag_fallback="nearest"))
    assert (nearest.gts == 4).sum() == 1 and musu_assign(extra, DEFAULT).tau_cls[4] == pytest.approx(1e-9)


def test_empty_boxes():
    """An object without area and decoded boxes without area: IoU 0, not 0 / 0."""
    scene = make_scene(2, (1,))
    scene = scene._replace(gt_boxes=torch.tensor([[12.0, 12.0, 12.0, 12.0]]), boxes=torch.zeros_like(scene.boxes))
    assert len(musu_assign(scene, DEFAULT).anchors) == 0
    found = rows(musu_assign(scene, replace(DEFAULT, bag_fallback="nearest")))
    assert found == {(13, 0): (1.0, 1.0)}  # (12, 12) is the second location of the second row of 12


def test_order_of_objects_images_and_anchors():
    """P10: permutations permute the result."""
    scene = make_scene(7, (4, 3, 5))
    num = len(scene.anchors)
    base = rows(musu_assign(scene, DEFAULT))
    order = torch.tensor([2, 0, 3, 1, 6, 4, 5, 9, 7, 11, 8, 10])  # within images
    moved = scene._replace(gt_boxes=scene.gt_boxes[order], gt_classes=scene.gt_classes[order])
    assert_same({(i, int(order[g])): w for (i, g), w in rows(musu_assign(moved, DEFAULT)).items()}, base)
    images = torch.tensor([1, 2, 0])
    place = torch.cat([(scene.gt_images == i).nonzero()[:, 0] for i in images])
    moved = scene._replace(
        logits=scene.logits[images],
        boxes=scene.boxes[images],
        gt_boxes=scene.gt_boxes[place],
        gt_classes=scene.gt_classes[place],
        gt_images=images.argsort()[scene.gt_images[place]],
    )
    found = rows(musu_assign(moved, DEFAULT))
    assert_same({(int(images[i // num]) * num + i % num, int(place[g])): w for (i, g), w in found.items()}, base)
    pairs = bags(4, conflict_free=False)
    shuffle = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    expected = {(int(shuffle[i]), g): w for (i, g), w in rows(assign(pairs, DEFAULT, 3)).items()}
    assert_same(rows(assign(pairs._replace(anchors=shuffle[pairs.anchors]), DEFAULT, 3)), expected)


def test_mirrored_scene():
    """P10: everything flipped left to right gives flipped weights."""
    scene = make_scene(11, (5, 4))
    width = 96
    columns, start = [], 0
    for size, w in zip(scene.grid.sizes(), scene.grid.widths()):
        columns.append(torch.arange(start, start + size).view(-1, w).flip(1).flatten())
        start += size
    flip = torch.cat(columns)

    def mirror(boxes):
        return torch.stack([width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]], dim=-1)

    flipped = scene._replace(
        anchors=mirror(scene.anchors[flip]),
        logits=scene.logits[:, flip],
        boxes=mirror(scene.boxes[:, flip]),
        gt_boxes=mirror(scene.gt_boxes),
    )
    num = len(flip)
    base, found = (rows(musu_assign(x, DEFAULT)) for x in (scene, flipped))
    assert_same({(i // num * num + int(flip[i % num]), g): w for (i, g), w in found.items()}, base)
    assert len(base) > 20


def test_half_precision_and_gradients():
    """P11: nothing requires a gradient. P15: bfloat16 logits give what the same values in float32 give."""
    scene = make_scene(5, (6, 2))
    half = scene._replace(logits=scene.logits.bfloat16())
    full = scene._replace(logits=half.logits.float())
    assert rows(musu_assign(half, DEFAULT)) == rows(musu_assign(full, DEFAULT))
    tracked = scene._replace(logits=scene.logits.clone().requires_grad_(), boxes=scene.boxes.clone().requires_grad_())
    found = musu_assign(tracked, DEFAULT)
    assert not any(x.requires_grad for x in found) and len(found.anchors) > 5


@pytest.mark.parametrize(
    "field, value",
    [(k, "other") for k in ("bag_region", "bag_joint", "bag_filter", "bag_fallback")]
    + [
        ("conflict", "first"),
        ("weight_fn", "linear"),
        ("temp_mode", "warm"),
        ("mix_own_cls", 1.5),
        ("mix_own_reg", -0.1),
        ("temp_div_cls", 0.0),
        ("temp_div_reg", -1.0),
        ("center_radius", 0.0),
        ("bag_topk", 0),
        ("max_pairs", 0),
        ("temp_fixed", 0.0),
    ],
)
def test_errors(field, value):
    with pytest.raises(ValueError, match=f"MuSuAssigner: {field} (is|must)"):
        partial(MuSuAssigner, **{field: value})()
