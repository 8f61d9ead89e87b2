"""The intertwiner in the first stage of a cascade."""

import pytest
import torch

from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.utils.events import EventStorage

from .parts import make_box_head, make_cascade, make_features, make_proposals, make_targets


def train_step(heads, targets=None, features=None):
    targets = targets or [make_targets(), make_targets(sides=(60,), classes=(2,))]
    with EventStorage():
        return heads(None, features or make_features(), [make_proposals(), make_proposals()], targets)[1]


@torch.no_grad()
def detect(heads):
    return heads.eval()(None, make_features(), [make_proposals(), make_proposals()])[0]


@pytest.mark.parametrize("objects", [True, False])
def test_losses_of_every_stage_and_one_of_the_intertwiner(objects):
    heads = make_cascade(mask=True)
    losses = train_step(heads, None if objects else [make_targets(())] * 2)
    stages = {f"{name}_stage{k}" for k in range(3) for name in ("loss_cls", "loss_box_reg")}
    assert set(losses) == stages | {"loss_inter", "loss_mask"}
    assert (losses["loss_inter"] > 0) == objects
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())


def test_parts_run_once_and_the_critic_only_feeds_the_first_head():
    heads, calls = make_cascade(), []
    heads.makeup.register_forward_hook(lambda *_: calls.append("makeup"))
    for stage, head in enumerate(heads.box_head):
        head.register_forward_pre_hook(lambda _, args, stage=stage: calls.append((stage, len(args))))
    detect(heads)
    assert calls == ["makeup", (0, 2), (1, 1), (2, 1)]


def test_stages_scale_gradients_alike():
    """Without parts it is CascadeROIHeads with this pooler: same losses, same gradients of the maps."""
    bare = dict(makeup=None, critic=None, intertwiner=None)
    torch.manual_seed(0)
    ours = make_cascade(**bare, box_heads=[make_box_head("separate") for _ in range(3)])
    standard = CascadeROIHeads(
        box_heads=list(ours.box_head),
        box_predictors=list(ours.box_predictor),
        proposal_matchers=ours.proposal_matchers,
        num_classes=ours.num_classes,
        batch_size_per_image=16,
        positive_fraction=0.5,
        box_in_features=ours.box_in_features,
        box_pooler=ours.box_pooler,
    )
    results = []
    for heads in (ours, standard):
        features = make_features(requires_grad=True)
        torch.manual_seed(1)  # of the sampling
        losses = train_step(heads, features=features)
        sum(losses.values()).backward()
        results.append(({k: v.detach() for k, v in losses.items()}, [f.grad for f in features.values()]))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("makeup_on", ["roi", "map"])
def test_makeup_learns_at_full_rate_and_the_maps_at_a_third(makeup_on):
    """Of the gradients of the intertwiner's loss, against a cascade without the scaling."""
    gradients = []
    for scaled in (True, False):
        torch.manual_seed(0)
        heads, features = make_cascade(makeup_on=makeup_on), make_features(requires_grad=True)
        if not scaled:
            heads._scale_gradient = lambda x: x
        train_step(heads, features=features)["loss_inter"].backward()
        gradients.append((heads.makeup.units[0].weight.grad, features["p4"].grad))
    assert gradients[0][0].any() and gradients[0][1].any()
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[0][1] * 3, gradients[1][1])


def test_detections_need_no_intertwiner():
    heads = make_cascade(mask=True)
    train_step(heads)
    stripped = make_cascade(mask=True, intertwiner=None)
    stripped.load_state_dict({k: v for k, v in heads.state_dict().items() if not k.startswith("intertwiner.")})
    one, two = detect(heads), detect(stripped)
    assert sum(map(len, one)) > 0
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor) and torch.equal(a.scores, b.scores)
        assert torch.equal(a.pred_masks, b.pred_masks)


def test_masks_share_the_first_stages_features():
    heads, seen = make_cascade(mask=True, mask_uses_makeup=True), []
    heads.mask_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    losses = train_step(heads)
    losses["loss_mask"].backward()
    assert len(seen[0]) == 10 and heads.makeup.units[0].weight.grad.abs().sum() > 0
    assert sum(map(len, detect(heads))) == len(seen[1])


def test_error_for_a_later_head_that_fuses():
    with pytest.raises(ValueError, match=r"box_heads\[1\] has fusion 'linear'"):
        make_cascade(box_heads=[make_box_head() for _ in range(3)])
