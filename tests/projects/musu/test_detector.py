"""projects/MuSu/detector.py: losses, gradients, inference."""

import pytest
import torch

from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.utils.events import EventStorage
from projects.MuSu import ATSSAssigner, MuSuAssigner, QualityFocal, tiled_anchors
from projects.MuSu.detector import INITIAL_NORMALIZER
from projects.MuSu.diagnostics import top_scored
from projects.MuSu.losses import object_scales, soft_labels
from shared.errors import UserError
from tests.projects.musu.nets import CLASSES, make_inputs, tiny_musu

RATIOS = [0.5, 1.0, 2.0]


def train_step(model, batch, iteration: int = 0):
    """(losses, scalars)."""
    with EventStorage(iteration) as storage:
        losses = model(batch)
    return losses, {k.removeprefix("assign/"): v[0] for k, v in storage.latest().items() if k.startswith("assign/")}


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"ratios": RATIOS, "norm": "GN", "normalizer": "weight_sum_ema"},
        {"reg_param": "ltrb", "normalizer": "num_gt", "cls_loss": QualityFocal()},
        {"assigner": ATSSAssigner(), "balance_gt": True},
        {"assigner": MuSuAssigner(conflict="multi", weight_fn="score_norm"), "warmup_iters": 1},
    ],
    ids=["default", "shapes", "ltrb", "atss", "multi"],
)
@pytest.mark.parametrize("counts", [(2, 3), (2, 0), (0, 0)])
def test_losses_reach_every_parameter(kwargs, counts):
    """P1: also without objects in one image, or in all: then the box loss is 0, with gradients of 0."""
    model = tiny_musu(**kwargs)
    losses, scalars = train_step(model, make_inputs(counts))
    assert set(losses) == {"loss_musu_cls", "loss_musu_reg"}
    assert all(torch.isfinite(x) for x in losses.values()) and losses["loss_musu_cls"] > 0
    assert (losses["loss_musu_reg"] == 0) == (sum(counts) == 0) == (scalars == {})
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def leaves(model, seed: int = 0, scale: float = 0.5):
    """Maps of logits and deltas for two images, and features of their sizes."""
    rng = torch.Generator().manual_seed(seed)
    features = [torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 4, 4)]
    shapes = model.anchor_generator.num_cell_anchors[0]
    maps = [
        [scale * torch.randn(2, shapes * n, *x.shape[2:], generator=rng) - float(n == CLASSES) for x in features]
        for n in (CLASSES, 4)
    ]
    return features, [[x.requires_grad_() for x in levels] for levels in maps]


def test_gradients_only_through_the_losses():
    """P11: weights depend on both heads, gradients do not cross."""
    model = tiny_musu(ratios=RATIOS)
    targets = [x["instances"] for x in make_inputs()]
    features, (logits, deltas) = leaves(model)
    with EventStorage():
        losses = model.forward_training(None, features, (logits, deltas), targets)
    for name, own, other in (("loss_musu_cls", logits, deltas), ("loss_musu_reg", deltas, logits)):
        grads = torch.autograd.grad(losses[name], [*own, *other], retain_graph=True, allow_unused=True)
        assert all(g.abs().sum() > 0 for g in grads[:2])
        assert all(g is None or g.abs().max() == 0 for g in grads[2:])
    scene = model._see(features, (logits, deltas), targets)[2]
    assert not any(x.requires_grad for x in scene[1:])  # whatever an assigner does with it
    base = model.assigner(scene)
    for changed in ((leaves(model, 1)[1][0], deltas), (logits, leaves(model, 1)[1][1])):
        other = model.assigner(model._see(features, changed, targets)[2])
        assert base.w_cls.shape != other.w_cls.shape or not torch.equal(base.w_cls, other.w_cls)
        assert base.w_reg.shape != other.w_reg.shape or not torch.equal(base.w_reg, other.w_reg)


def test_gradient_is_that_of_frozen_weights():
    """P11: finite differences of the losses with the assignment held fixed."""
    model = tiny_musu()
    targets = [x["instances"] for x in make_inputs()]
    features, maps = leaves(model)
    scene = model._see(features, maps, targets)[2]
    assignment = model.assigner(scene)

    def total(step: float) -> torch.Tensor:
        moved = [[x + step * d for x, d in zip(levels, ds)] for levels, ds in zip(maps, directions)]
        logits, boxes, _ = model._see(features, moved, targets)
        return sum(model.losses(logits, boxes, scene, assignment).values())

    rng = torch.Generator().manual_seed(2)
    directions = [[torch.randn(x.shape, generator=rng) for x in levels] for levels in maps]
    flat = [x for levels in maps for x in levels]
    grads = torch.autograd.grad(total(0.0), flat)
    slope = sum((g * d).sum() for g, d in zip(grads, [d for ds in directions for d in ds]))
    with torch.no_grad():
        difference = (total(1e-3) - total(-1e-3)) / 2e-3
    assert slope.abs() > 0.1
    torch.testing.assert_close(difference, slope, rtol=5e-3, atol=1e-3)


def test_normalizers_and_balance():
    """The same sums, divided by what the switch says."""
    targets = [x["instances"] for x in make_inputs((3, 2))]
    model = tiny_musu()
    features, maps = leaves(model)
    with torch.no_grad():
        logits, boxes, scene = model._see(features, maps, targets)
        found = model.assigner(scene)
        losses = {}
        for normalizer in ("weight_sum", "num_gt", "weight_sum_ema"):
            model.normalizer = normalizer
            losses[normalizer] = model.losses(logits, boxes, scene, found)
        model.normalizer, model.balance_gt = "num_gt", True
        balanced = model.losses(logits, boxes, scene, found)
    for head, w in (("cls", found.w_cls), ("reg", found.w_reg)):
        total = losses["weight_sum"][f"loss_musu_{head}"] * w.sum()
        torch.testing.assert_close(losses["num_gt"][f"loss_musu_{head}"], total / 5)
        average = 0.9 * INITIAL_NORMALIZER + 0.1 * w.sum()
        torch.testing.assert_close(losses["weight_sum_ema"][f"loss_musu_{head}"], total / average)
    # every object's box loss counts once: the mean over its samples
    giou = losses["weight_sum"]["loss_musu_reg"]
    scaled = found._replace(w_reg=found.w_reg * object_scales(found.gts, found.w_reg, 5))
    with torch.no_grad():
        model.balance_gt = False
        torch.testing.assert_close(
            model.losses(logits, boxes, scene, scaled)["loss_musu_reg"], balanced["loss_musu_reg"]
        )
    assert (balanced["loss_musu_reg"] - giou).abs() > 1e-3
    assert (balanced["loss_musu_cls"] - losses["num_gt"]["loss_musu_cls"]).abs() > 1e-3


def test_ltrb_starts_at_the_anchors():
    """delta starts there by itself; ltrb from zero would start with empty boxes."""
    for reg_param in ("delta", "ltrb"):
        model = tiny_musu(reg_param=reg_param, ratios=RATIOS)
        torch.nn.init.zeros_(model.head.bbox_pred.weight)
        batch = make_inputs()
        scene, _ = model.eval().assign(batch)
        torch.testing.assert_close(scene.boxes, scene.anchors.expand_as(scene.boxes))
        assert len(scene.anchors) == 3 * (64 + 16)


def test_warmup_assigns_by_anchors():
    """Whatever the heads say, until the iteration is reached."""
    model = tiny_musu(warmup_iters=5)
    batch, seen = make_inputs(), []
    model.assigner = lambda scene: seen.append(scene) or MuSuAssigner()(scene)
    for iteration in (4, 5):
        train_step(model, batch, iteration)
    assert torch.equal(seen[0].boxes, seen[0].anchors.expand_as(seen[0].boxes)) and seen[0].logits.unique().numel() == 1
    assert not torch.equal(seen[1].boxes, seen[0].boxes) and seen[1].logits.unique().numel() > 100


def test_scalars():
    """Of two objects of one image: as the assignment itself says. Every stats_period iterations."""
    model = tiny_musu(stats_period=3)
    batch = make_inputs((2,))
    _, scalars = train_step(model, batch, iteration=6)
    model.eval()
    scene, found = model.assign(batch)
    sizes = found.gts.bincount(minlength=2).float()
    assert scalars["bag_size"] == pytest.approx(sizes.mean().item()) and scalars["empty_bags"] == 0
    assert scalars["tau_cls"] == pytest.approx((sizes.sqrt() / 2).mean().item())
    assert scalars["tau_reg"] == pytest.approx(sizes.sqrt().mean().item())
    assert scalars["n_eff_cls"] == pytest.approx(found.w_cls.sum().item() / 2)
    assert scalars["n_eff_reg"] == pytest.approx(found.w_reg.sum().item() / 2)
    tops = [{int(i) for i in found.anchors[(found.gts == j) & (found.w_cls == 1) & (found.w_reg == 1)]} for j in (0, 1)]
    assert scalars["top1_agreement"] == sum(map(bool, tops)) / 2
    assert 0 < scalars["top_scored_iou"] < 1 and len(scalars) == 8
    assert train_step(model.train(), batch, iteration=7)[1] == {}


def test_overfits_one_image():
    """P16: the loss falls, both heads choose the same first sample, and the objects are found."""
    model = tiny_musu(ratios=[0.7, 1.4])
    batch = make_inputs((3,))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    first, before = train_step(model, batch)
    for _ in range(250):
        losses, _ = train_step(model, batch, iteration=1)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    last, after = train_step(model, batch)
    assert sum(last.values()) < 0.2 * sum(first.values())
    assert after["top1_agreement"] == 1 and after["top_scored_iou"] > 0.85 > before["top_scored_iou"]
    with torch.no_grad():
        found = model.eval()(batch)[0]["instances"]
    best = found[:3]
    assert sorted(best.pred_classes.tolist()) == [0, 1, 2] and (best.scores > 0.5).all()


def test_inference():
    """P17: scores are sigmoid(z) alone, NMS per class, at most so many, or none; `height` and `width` are obeyed."""
    model = tiny_musu(test_score_thresh=0.0, max_detections_per_image=20).eval()
    batch = [{**x, "height": 32, "width": 128} for x in make_inputs()]
    with torch.no_grad():
        found = [x["instances"] for x in model(batch)]
        assert [len(x) for x in found] == [20, 20] and found[0].image_size == (32, 128)
        logits, _ = model.head(list(model.backbone(model.preprocess_image(batch).tensor).values()))
        best = max(x[0].max().sigmoid().item() for x in logits)
        assert found[0].scores[0].item() == pytest.approx(best) and (found[0].scores.diff() <= 0).all()
        model.test_topk_candidates = 2
        assert [len(x["instances"]) <= 4 for x in model(batch)] == [True, True]  # two of each level
        model.test_score_thresh = 0.9
        assert [len(x["instances"]) for x in model(batch)] == [0, 0]


def test_nms_is_per_class():
    """P17: of equal boxes one stays for each class; boxes that overlap less than the threshold all stay."""
    model = tiny_musu(test_score_thresh=0.3, test_nms_thresh=0.6)
    features = [torch.zeros(1, 1, side, side) for side in (8, 4)]
    logits = [torch.full((1, CLASSES, side, side), -10.0) for side in (8, 4)]
    deltas = [torch.zeros(1, 4, side, side) for side in (8, 4)]
    anchors = model.anchor_generator(features)[0].tensor.view(8, 8, 4)
    deltas[0][0, :, 3, 4] = model.box2box_transform.get_deltas(anchors[3, 4][None], anchors[3, 3][None])[0]
    logits[0][0, 0, 3, 3], logits[0][0, 0, 3, 4], logits[0][0, 2, 3, 4] = 3.0, 2.0, 1.0  # one box; classes 0, 0 and 2
    logits[0][0, 0, 3, 5] = 0.5  # 24 px wide, 16 px from the first: IoU 0.2
    images = model.preprocess_image(make_inputs((0,)))
    found = model.forward_inference(images, features, [logits, deltas])[0]
    assert found.pred_classes.tolist() == [0, 2, 0]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 1.0, 0.5]).sigmoid())
    torch.testing.assert_close(found.pred_boxes.tensor, anchors[3, [3, 3, 5]])


def test_no_object_has_no_top_scored_location():
    scene, assignment = tiny_musu().assign(make_inputs((0,)))
    assert len(top_scored(scene).u) == len(assignment.anchors) == 0


def test_soft_labels_keep_a_pair_whole():
    """An anchor in two bags of a class: the larger label with its own scale, not the larger scale."""
    pair = torch.tensor([5, 5, 6]), torch.tensor([1, 1, 0])
    kept = soft_labels(*pair, torch.tensor([0.9, 0.4, 0.2]), torch.tensor([0.1, 1.0, 3.0]), CLASSES)
    assert kept.anchors.tolist() == [5, 6] and kept.classes.tolist() == [1, 0]
    torch.testing.assert_close(kept.labels, torch.tensor([0.9, 0.2]))
    torch.testing.assert_close(kept.scales, torch.tensor([0.1, 3.0]))


def test_autocast():
    """P15: heads in bfloat16, assignment and losses in float32."""
    model = tiny_musu(norm="GN")
    batch = make_inputs()
    exact, _ = train_step(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = train_step(model, batch)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], rtol=0.1, atol=0)


def test_takes_the_head_and_weights_of_a_retinanet():
    """The detector adds no parameter to Detectron2's: a RetinaNet's checkpoint is one of MuSu's."""
    model = tiny_musu(ratios=RATIOS)
    assert type(model.head) is RetinaNetHead
    other = RetinaNet(
        backbone=type(model.backbone)(),
        head=RetinaNetHead(
            input_shape=list(model.backbone.output_shape().values()), num_classes=CLASSES, num_anchors=3, conv_dims=[32]
        ),
        head_in_features=["p3", "p4"],
        anchor_generator=tiled_anchors(strides=[8, 16], aspect_ratios=RATIOS),
        box2box_transform=model.box2box_transform,
        anchor_matcher=None,
        num_classes=CLASSES,
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )
    model.load_state_dict(other.state_dict(), strict=True)


def test_anchors_tile():
    """Scale 8 on stride 16: 128, 161.27 and 203.19 px, each with ratios height / width of 1/2, 1, 2."""
    cell = next(iter(tiled_anchors(strides=[16], octaves=3, aspect_ratios=RATIOS).cell_anchors.buffers()))
    size = cell[:, 2:] - cell[:, :2]
    assert size.prod(dim=1).sqrt().tolist() == pytest.approx([128] * 3 + [161.2699] * 3 + [203.1873] * 3, rel=1e-4)
    assert (size[:, 1] / size[:, 0]).tolist() == pytest.approx(RATIOS * 3, rel=1e-4)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"reg_param": "log"}, "reg_param is 'log', choose one of delta, ltrb"),
        ({"normalizer": "mean"}, "normalizer is 'mean', choose one of weight_sum_ema"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny_musu(**kwargs)


def test_head_of_another_number_of_anchors():
    with pytest.raises(UserError, match="the head predicts 2 anchors a location, the anchor generator has 3"):
        train_step(tiny_musu(ratios=RATIOS, num_anchors=2), make_inputs())
