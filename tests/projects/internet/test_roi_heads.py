"""The RoI heads in training and at inference."""

import pytest
import torch
from torch import nn

from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.utils.events import EventStorage
from projects.InterNet import MakeUp
from shared.training_only import training_only_prefixes

from .parts import (
    CHANNELS,
    CLASSES,
    DIM,
    NAMES,
    make_box_head,
    make_critic,
    make_features,
    make_heads,
    make_intertwiner,
    make_pooler,
    make_proposals,
    make_targets,
)


def train_step(heads, targets=None, features=None, iteration=0):
    """Losses and the storage's values of a step with two images."""
    targets = targets or [make_targets(), make_targets(sides=(60,), classes=(2,))]
    with EventStorage(iteration) as storage:
        _, losses = heads(None, features or make_features(), [make_proposals(), make_proposals()], targets)
    return losses, {name: value for name, (value, _) in storage.latest().items()}


@torch.no_grad()
def detect(heads):
    return heads.eval()(None, make_features(), [make_proposals(), make_proposals()])[0]


def assert_same_detections(one, two):
    assert sum(map(len, one)) > 0
    for a, b in zip(one, two, strict=True):
        assert a.get_fields().keys() == b.get_fields().keys()
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        for name in a.get_fields().keys() - {"pred_boxes"}:
            assert torch.equal(a.get(name), b.get(name))


def copy_into(heads, other):
    """Load what both have; `other` must lack nothing."""
    missing, _ = heads.load_state_dict(other.state_dict(), strict=False)
    assert not missing
    return heads


@pytest.mark.parametrize("fusion", ["linear", "separate", "add"])
def test_losses_gradients_and_counts(fusion):
    heads = make_heads(fusion, norm="BN")
    losses, scalars = train_step(heads)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_inter"}
    assert losses["loss_inter"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())
    assert heads.makeup.units[0].weight.grad.abs().sum() > 0
    # Foreground: the first image's four boxes and their targets, one per level: two RoIs each; the second's 60 px box
    # and its target. Pairs: 2 (0 + 1 + 2 + 3) + 2 * 3
    assert scalars["internet/num_small"] == 10 and scalars["internet/num_large"] == 18
    assert heads.intertwiner.buffer.count.tolist() == [2 * (0 + 3), 2 * 1, 2 * 2 + 6]
    rois = [scalars[f"internet/num_rois_level{level}"] for level in (2, 3, 4, 5)]
    assert sum(rois) == 5 + 4 + 5 + 1 and rois[3] == 4


def test_intertwiner_loss_reaches_makeup_critic_and_maps_alone():
    heads, features = make_heads("separate"), make_features(requires_grad=True)
    train_step(heads, features=features)[0]["loss_inter"].backward()
    reached = {name for name, p in heads.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached and all(name.startswith(("makeup.", "critic.")) for name in reached)
    assert all(f.grad.abs().sum() > 0 for f in features.values())


def test_separate_gives_the_critic_foreground_rows_alone():
    heads, seen = make_heads("separate"), []
    heads.critic.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    train_step(heads)
    assert seen == [10, 8]  # small path; large path: of the ten, two are on the finest level
    detect(heads)
    assert len(seen) == 2


@pytest.mark.parametrize("fusion", ["linear", "separate"])
def test_training_parts_change_no_detection(fusion):
    """With "separate" intertwiner nor critic is needed, with "linear" the critic."""
    heads = make_heads(fusion, norm="BN", mask=True)
    train_step(heads)
    critic = make_critic(norm="BN") if fusion == "linear" else None
    stripped = make_heads(fusion, norm="BN", mask=True, intertwiner=None, critic=critic)
    names = ["intertwiner."] if fusion == "linear" else ["critic.", "intertwiner."]
    assert sorted(training_only_prefixes(heads)) == names
    gone = {k for k in heads.state_dict() if k.startswith(tuple(names))}
    assert gone == set(heads.state_dict()) - set(stripped.state_dict()) != set()
    calls = []
    heads.intertwiner.register_forward_pre_hook(lambda *_: calls.append(1))
    assert_same_detections(detect(heads), detect(copy_into(stripped, heads)))
    assert not calls


def test_linear_depends_on_the_critic():
    heads = make_heads()
    before = detect(heads)
    with torch.no_grad():
        heads.critic.layers[1].bias += 3
    after = detect(heads)
    assert not torch.equal(before[0].scores, after[0].scores)


def test_fused_rows_belong_to_their_own_roi():
    """Each image alone gives what both together give, box by box: levels are mixed in both."""
    heads = make_heads().eval()
    maps = make_features()
    proposals = [make_proposals((60, 10, 40)), make_proposals((20, 60, 10))]
    values = []
    heads.box_predictor.register_forward_hook(lambda *args: values.append(args[2]))
    with torch.no_grad():
        heads(None, maps, proposals)
        for i in range(2):
            heads(None, {k: v[i : i + 1] for k, v in maps.items()}, proposals[i : i + 1])
    both, first, second = values
    for whole, parts in zip(both, zip(first, second)):
        torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-4, atol=1e-6)


def test_without_parts_it_is_the_baseline():
    """No make-up, no critic: StandardROIHeads with this pooler; and so is an identity make-up."""
    heads = make_heads("separate", makeup=None, critic=None, intertwiner=None)
    shared = {k: getattr(heads, k) for k in ("num_classes", "batch_size_per_image", "positive_fraction")}
    shared |= {k: getattr(heads, k) for k in ("proposal_matcher", "box_pooler", "box_head", "box_predictor")}
    standard = StandardROIHeads(box_in_features=NAMES, **shared)
    expected = detect(standard)
    assert_same_detections(detect(heads), expected)
    makeup = MakeUp(channels=CHANNELS, norm="")
    nn.init.dirac_(makeup.units[0].weight)
    makeup.units[0].activation = None
    same = make_heads("separate", makeup=makeup, critic=None, intertwiner=None)
    assert_same_detections(detect(copy_into_some(same, heads)), expected)


def copy_into_some(heads, other):
    assert not heads.load_state_dict(other.state_dict(), strict=False).unexpected_keys
    return heads


def test_makeup_on_maps_pools_made_up_maps():
    heads = make_heads(makeup_on="map", norm="BN").eval()
    seen = []
    heads.box_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    detect(heads)
    maps = list(make_features().values())
    boxes = [make_proposals().proposal_boxes] * 2
    with torch.no_grad():
        expected = make_pooler()(heads.makeup.forward_maps(maps), boxes)
    torch.testing.assert_close(seen[0], expected)
    assert "loss_inter" in train_step(heads.train())[0]


def test_control_has_the_units_and_no_intertwiner_loss():
    heads = make_heads(intertwiner=None)
    losses, _ = train_step(heads)
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in heads.parameters())


@pytest.mark.parametrize("norm", ["BN", "GN", "affine", ""])
@pytest.mark.parametrize("source", ["a", "b", "d"])
@pytest.mark.parametrize("bf16", [False, True])
def test_steps_with_and_without_objects_stay_finite(norm, source, bf16):
    """Images without objects, with one, with small ones alone, with all; SGD steps between."""
    channels = {"hidden": 32, "dim": 64} if norm == "GN" else {}
    transport = dict(loss="l2") if source == "d" else None
    heads = make_heads(
        "linear",
        makeup=MakeUp(channels=CHANNELS, norm="" if norm == "GN" else norm),
        critic=make_critic(norm=norm, **channels),
        box_head=make_box_head(dim=channels.get("dim", DIM)),
        intertwiner=make_intertwiner(
            {"dim": channels.get("dim", DIM)}, transport, large_source=source, reduction="class_mean"
        ),
    )
    optimizer = torch.optim.SGD(heads.parameters(), lr=0.01)
    none, small, one = make_targets(()), make_targets((10,)), make_targets((60,), (2,))
    for targets in ([none, none], [small, none], [one, none], [make_targets(), one], [none, none]):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses, _ = train_step(heads, targets)
        assert ("loss_ot" in losses) == (source == "d")
        total = sum(losses.values())
        assert total.isfinite()
        optimizer.zero_grad()
        total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())
        optimizer.step()
    assert heads.intertwiner.buffer.mean.dtype == torch.float32
    assert heads.intertwiner.buffer.count.sum() > 0


def test_pred_boxes_train_the_mask_branch():
    """`train_on_pred_boxes`: masks are cut for the boxes that the box branch put out."""
    heads = make_heads(mask=True, train_on_pred_boxes=True)
    seen = []
    heads.mask_pooler.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    with torch.no_grad():
        heads.box_predictor.bbox_pred.weight.zero_()
        heads.box_predictor.bbox_pred.bias.fill_(0)
        heads.box_predictor.bbox_pred.bias[0::4] = 5.0  # dx / 10: half a width to the right
    losses, _ = train_step(heads, [make_targets((60,), (2,))] * 2)
    assert "loss_mask" in losses
    assert all((boxes.tensor[:, 0] == 31).all() for boxes in seen[0])  # 1 + 60 / 2


@pytest.mark.parametrize("targets", [(10, 60), ()], ids=["objects", "none"])
def test_masks_share_made_up_features(targets):
    heads = make_heads(mask=True, mask_uses_makeup=True)
    seen, made_up = [], []
    heads.mask_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    heads.makeup.register_forward_hook(lambda *args: made_up.append(args[2]))
    losses, _ = train_step(heads, [make_targets(targets, (0, 2)), make_targets((20,))])
    assert {"loss_mask", "loss_inter"} <= set(losses)
    assert len(made_up) == 1 and 0 < len(seen[0]) < len(made_up[0])
    rows = (made_up[0][None] == seen[0][:, None]).all(dim=(2, 3, 4))
    assert (rows.sum(dim=1) >= 1).all()  # each is a row of the box branch's
    losses["loss_mask"].backward()
    assert heads.makeup.units[0].weight.grad.abs().sum() > 0
    result = detect(heads)
    assert len(made_up) == 3 and len(made_up[2]) == sum(map(len, result)) == len(seen[1])
    assert all(x.pred_masks.shape == (len(x), 1, 28, 28) for x in result)


def test_masks_stay_untouched_by_default():
    heads = make_heads(mask=True)
    seen = []
    heads.mask_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pooled = []
    heads.mask_pooler.register_forward_hook(lambda *args: pooled.append(args[2]))
    train_step(heads)[0]["loss_mask"].backward()
    assert torch.equal(seen[0], pooled[0])
    assert heads.makeup.units[0].weight.grad is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"critic": None}, "need a critic"),
        ({"critic": None, "fusion": "separate"}, "need a critic"),
        ({"critic": make_critic(dim=DIM + 1), "intertwiner": None}, "CRITIC_DIM"),
        ({"intertwiner": {"buffer": {"num_classes": CLASSES + 1}}}, "the buffer has 4 classes"),
        ({"mask_uses_makeup": True, "train_on_pred_boxes": True}, "TRAIN_ON_PRED_BOXES"),
        ({"makeup_on": "image"}, "MAKEUP_ON"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_heads(**arguments)
