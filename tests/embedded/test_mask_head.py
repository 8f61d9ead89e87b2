"""Mask head: initialisation, loss, inference."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import BaseMaskRCNNHead, MaskRCNNConvUpsampleHead, build_mask_head
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

K, M = 3, 4


def first(tensor):
    return round(tensor.flatten()[0].item(), 5)


def shape(channels=8):
    return ShapeSpec(channels=channels, height=14, width=14)


def test_initialisation_equals_the_recorded_seed():
    torch.manual_seed(7)
    head = MaskRCNNConvUpsampleHead(shape(), num_classes=3, conv_dims=[8, 8, 8])
    names = ["mask_fcn1", "mask_fcn2", "deconv", "predictor"]
    values = [first(head.get_submodule(n).weight) for n in names]
    assert values == [0.01134, 0.09299, -0.15420, 0.00063]
    assert list(head.state_dict()) == [f"{n}.{k}" for n in names for k in ("weight", "bias")]
    assert all((p == 0).all() for name, p in head.named_parameters() if name.endswith("bias"))


def test_layers_double_the_side_and_iterating_applies_them():
    head = MaskRCNNConvUpsampleHead(
        shape(2), num_classes=3, conv_dims=OmegaConf.create([5, 6]), vis_period=7, loss_weight=0.5
    )
    assert (head.vis_period, head.loss_weight) == (7, 0.5)
    x = torch.randn(2, 2, 7, 7)
    f = torch.nn.functional
    y = f.conv2d(x, head.mask_fcn1.weight, padding=1).relu()
    y = f.conv_transpose2d(y, head.deconv.weight, stride=2).relu()
    expected = f.conv2d(y, head.predictor.weight)
    assert expected.shape == (2, 3, 14, 14)
    torch.testing.assert_close(head.layers(x), expected)
    for layer in head:
        x = layer(x)
    torch.testing.assert_close(x, expected)


def test_norm_replaces_the_bias_but_not_the_deconvolutions():
    head = MaskRCNNConvUpsampleHead(shape(), num_classes=1, conv_dims=[32, 4], conv_norm="GN")
    assert [k for k in head.state_dict() if "predictor" not in k] == [
        "mask_fcn1.weight",
        "mask_fcn1.norm.weight",
        "mask_fcn1.norm.bias",
        "deconv.weight",
        "deconv.bias",
    ]


def test_conv_dims_must_not_be_empty():
    with pytest.raises(AssertionError, match="conv_dims"):
        MaskRCNNConvUpsampleHead(shape(), num_classes=1, conv_dims=[])


@pytest.mark.parametrize("agnostic", [False, True])
def test_from_config(agnostic):
    cfg = get_cfg()
    cfg.merge_from_list(
        f"MODEL.ROI_MASK_HEAD.NUM_CONV 2 MODEL.ROI_MASK_HEAD.CONV_DIM 6 VIS_PERIOD 11 "
        f"MODEL.ROI_HEADS.NUM_CLASSES 5 MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK {agnostic}".split()
    )
    head = build_mask_head(OmegaConf.create(cfg.dump()), shape(3))
    assert head.mask_fcn1.weight.shape == (6, 3, 3, 3)
    assert head.mask_fcn2.weight.shape == (6, 6, 3, 3)
    assert head.predictor.weight.shape == (1 if agnostic else 5, 6, 1, 1)
    assert head.vis_period == 11


def instances(polygons=False):
    """2 + 0 + 1 instances whose proposal boxes are 4 x 4 pixels, so that the masks' cells are
    pixels: rows 0 and 1 of a box; all of it; columns 0 to 2."""
    parts = [
        ([[0.0, 0, 4, 4], [8, 8, 12, 12]], [[0, 0, 4, 2], [8, 8, 12, 12]], [0, 2]),
        ([], [], []),
        ([[4.0, 8, 8, 12]], [[4, 8, 7, 12]], [1]),
    ]
    result = []
    for boxes, filled, classes in parts:
        x = Instances((16, 16), proposal_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))
        x.gt_classes = torch.tensor(classes, dtype=torch.int64)
        if polygons:
            x.gt_masks = PolygonMasks(
                [[torch.tensor([a, b, c, b, c, d, a, d]).double().numpy()] for a, b, c, d in filled]
            )
        else:
            masks = torch.zeros(len(boxes), 16, 16, dtype=torch.bool)
            for mask, (a, b, c, d) in zip(masks, filled):
                mask[b:d, a:c] = True
            x.gt_masks = BitMasks(masks)
        result.append(x)
    return result


def targets():
    t = torch.zeros(3, M, M)
    t[0, :2] = 1
    t[1] = 1
    t[2, :, :3] = 1
    return t


@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize("agnostic", [False, True])
def test_loss_equals_the_slow_one(polygons, agnostic):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1 if agnostic else K, M, M, generator=g).requires_grad_()
    with EventStorage() as storage:
        loss = mask_rcnn_loss(logits, instances(polygons))
    total = wrong = false_positive = false_negative = 0
    for r, c in enumerate([0, 0, 0] if agnostic else [0, 2, 1]):
        for z, t in zip(logits[r, c].double().flatten().tolist(), targets()[r].flatten().tolist()):
            total += math.log(1 + math.exp(-z if t else z))
            wrong += (z > 0) != bool(t)
            false_positive += z > 0 and not t
            false_negative += z <= 0 and bool(t)
    assert loss.item() == pytest.approx(total / 48, rel=1e-5)  # 3 * 4 * 4 cells
    latest = {k: v[0] for k, v in storage.latest().items()}
    assert latest == pytest.approx(
        {  # 8 + 16 + 12 cells are filled, 12 are not
            "mask_rcnn/accuracy": 1 - wrong / 48,
            "mask_rcnn/false_positive": false_positive / 12,
            "mask_rcnn/false_negative": false_negative / 36,
        }
    )
    assert 0 < wrong and 0 < false_positive and 0 < false_negative
    loss.backward()
    touched = (logits.grad != 0).flatten(2).all(2)
    expected = [[r, 0 if agnostic else c] for r, c in enumerate([0, 2, 1])]
    assert touched.nonzero().tolist() == expected


def test_a_perfect_prediction_costs_nothing():
    logits = torch.full((3, K, M, M), -50.0)
    for r, c in enumerate([0, 2, 1]):
        logits[r, c] = targets()[r] * 100 - 50
    with EventStorage() as storage:
        assert mask_rcnn_loss(logits, instances()) < 1e-8
    assert storage.latest()["mask_rcnn/accuracy"][0] == 1


@pytest.mark.parametrize("given", [[], instances()[1:2]])
def test_no_instances_give_zero_with_a_graph(given):
    logits = torch.zeros(0, K, M, M, requires_grad=True)
    with EventStorage() as storage:
        loss = mask_rcnn_loss(logits, given)
    assert loss == 0
    loss.backward()
    assert logits.grad.shape == logits.shape
    assert storage.latest() == {}


def test_pictures_are_put_every_vis_period():
    logits = torch.zeros(3, K, M, M)
    for iteration, count in ((0, 3), (1, 0), (2, 3)):
        with EventStorage(iteration) as storage:
            mask_rcnn_loss(logits, instances(), vis_period=2)
        assert len(storage._vis_data) == count
    _, picture, _ = storage._vis_data[0]  # prediction sigmoid(0) = 0.5 beside the truth
    assert picture.shape == (3, M, 2 * M)
    assert (torch.as_tensor(picture)[..., :M] == 0.5).all()
    assert torch.equal(torch.as_tensor(picture)[0, :, M:], targets()[0])


def test_inference_gives_each_instance_the_probabilities_of_its_class():
    logits = torch.randn(3, K, M, M)
    given = [Instances((16, 16), pred_classes=torch.tensor(c)) for c in ([0, 2], [], [1])]
    given[1].pred_classes = given[1].pred_classes.long()
    mask_rcnn_inference(logits, given)
    torch.testing.assert_close(given[0].pred_masks, logits[[0, 1], [0, 2]].sigmoid()[:, None])
    torch.testing.assert_close(given[2].pred_masks, logits[2:, 1:2].sigmoid())
    assert given[1].pred_masks.shape == (0, 1, M, M)
    mask_rcnn_inference(logits[:, :1], given)  # class agnostic
    torch.testing.assert_close(given[2].pred_masks, logits[2:, :1].sigmoid())


class Constant(BaseMaskRCNNHead):
    """Takes whatever the features are, ignores them."""

    def layers(self, x):
        return torch.zeros(3, K, M, M)


def test_base_head_returns_the_weighted_loss_or_the_instances():
    head = Constant(loss_weight=2.0)
    with EventStorage():
        losses = head("anything", instances())
    assert list(losses) == ["loss_mask"]
    assert losses["loss_mask"].item() == pytest.approx(2 * math.log(2))
    given = [Instances((16, 16), pred_classes=torch.tensor([0, 1, 2]))]
    assert head.eval()("anything", given) is given
    assert (given[0].pred_masks == 0.5).all()


def test_base_head_needs_layers():
    with pytest.raises(NotImplementedError):
        BaseMaskRCNNHead()(None, [])
