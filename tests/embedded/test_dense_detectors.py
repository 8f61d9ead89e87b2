"""RetinaNet and what dense detectors share."""

import math

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torchvision.ops import nms

from detectron2.config import get_cfg
from detectron2.layers import CycleBatchNormList, ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import DenseDetector
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from tests.embedded.dense_parts import (
    NUM_CLASSES,
    FixedHead,
    TwoLevels,
    image,
    make_fcos,
    make_retinanet,
    rows,
    slow_focal,
    targets,
)

FINE, COARSE = (4, 6), (2, 3)  # cells of a 32 x 48 image
A = 2  # anchors per cell of make_retinanet


def fixed_head(n, scale=1.0):
    return FixedHead(n, [FINE, COARSE], [A * NUM_CLASSES, A * 4], scale)


def specs(n, channels=8):
    return [ShapeSpec(channels=channels)] * n


def make_head(norm="", levels=5, conv_dims=(8, 8), **kwargs):
    return RetinaNetHead(
        input_shape=specs(levels), num_classes=3, num_anchors=9, conv_dims=list(conv_dims), norm=norm, **kwargs
    )


# ---------------------------------------------------------------- head
def test_head_equals_the_recorded_seed():
    torch.manual_seed(7)
    head = make_head()
    names = ["cls_subnet.0", "bbox_subnet.0", "cls_subnet.2", "cls_score", "bbox_pred"]
    first = [round(head.get_submodule(n).weight.flatten()[0].item(), 5) for n in names]
    assert first == [0.00072, -0.03443, -0.00170, -0.00882, 0.00885]


@pytest.mark.parametrize("norm, conv_at, last", [("", [0, 2], 3), ("GN", [0, 3], 5)])
def test_head_layers(norm, conv_at, last):
    head = RetinaNetHead(input_shape=specs(2, 32), num_classes=3, num_anchors=2, conv_dims=[32, 64], norm=norm)
    for tower in (head.cls_subnet, head.bbox_subnet):
        assert [i for i, m in enumerate(tower) if isinstance(m, nn.Conv2d)] == conv_at
        assert isinstance(tower[last], nn.ReLU) and len(tower) == last + 1
        for i in conv_at:
            assert tower[i].kernel_size == (3, 3) and (tower[i].bias == 0).all()
    assert head.cls_score.weight.shape == (6, 64, 3, 3)
    assert head.bbox_pred.weight.shape == (8, 64, 3, 3)
    torch.testing.assert_close(head.cls_score.bias, torch.full((6,), -4.59512))
    assert (head.bbox_pred.bias == 0).all()


def test_prior_probability():
    bias = make_head(prior_prob=0.2).cls_score.bias
    torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, 0.2))


def test_head_is_shared_over_levels():
    head = make_head(levels=2)
    x = torch.randn(1, 8, 4, 4)
    logits, deltas = head([x, x])
    assert torch.equal(logits[0], logits[1]) and torch.equal(deltas[0], deltas[1])
    torch.testing.assert_close(logits[0], head.cls_score(head.cls_subnet(x)))
    torch.testing.assert_close(deltas[0], head.bbox_pred(head.bbox_subnet(x)))


def test_batch_norm_keeps_statistics_per_level():
    head = make_head("BN", levels=2, conv_dims=[8])
    norm = head.cls_subnet[1]
    assert isinstance(norm, CycleBatchNormList) and len(norm) == 2
    keys = [k for k in head.state_dict() if k.startswith("cls_subnet.1.")]
    assert {"cls_subnet.1.weight", "cls_subnet.1.0.running_mean"} < set(keys)
    with torch.no_grad():
        head.cls_subnet[0].weight.zero_()
        head.cls_subnet[0].weight[:, :, 1, 1] = torch.eye(8)
    head([torch.full((1, 8, 2, 2), 1.0), torch.full((1, 8, 2, 2), 3.0)])
    assert norm[0].running_mean[0].item() == pytest.approx(0.1)  # momentum .1
    assert norm[1].running_mean[0].item() == pytest.approx(0.3)


def test_head_from_config():
    cfg = get_cfg()
    cfg.MODEL.RETINANET.NUM_CLASSES = 4
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.RETINANET.PRIOR_PROB = 0.5
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8, 16]]
    shapes = [ShapeSpec(channels=8, stride=8), ShapeSpec(channels=8, stride=16)]
    head = RetinaNetHead(cfg, shapes)
    assert head.cls_score.out_channels == 2 * 3 * 4 and len(head.cls_subnet) == 2
    assert (head.cls_score.bias == 0).all()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [8, 16]]
    with pytest.raises(AssertionError, match="anchors"):
        RetinaNetHead(cfg, shapes)


def test_head_wants_its_number_of_levels():
    with pytest.raises(AssertionError):
        make_head(levels=2)([torch.randn(1, 8, 4, 4)])


# ---------------------------------------------------------------- dense detectors
def test_permutation_equals_a_loop():
    maps = [torch.randn(2, 3 * 5, 2, 4), torch.randn(2, 3 * 5, 1, 2)]
    permuted = torch.cat([permute_to_N_HWA_K(m, 5) for m in maps], dim=1)
    assert torch.equal(permuted, rows(maps, 5))
    assert permuted.shape == (2, (8 + 2) * 3, 5)


def test_maps_are_sorted_by_stride_unless_named():
    model = DenseDetector(TwoLevels(), None, pixel_mean=[0.0], pixel_std=[1.0])
    assert list(model.head_in_features) == ["fine", "coarse"]
    names = OmegaConf.create(["coarse"])
    model = DenseDetector(TwoLevels(), None, names, pixel_mean=[0.0], pixel_std=[1.0])
    assert list(model.head_in_features) == ["coarse"]


def test_images_are_normalised_then_padded_with_zero():
    model = make_retinanet(None, pixel_mean=OmegaConf.create([1.0, 2.0, 3.0]), pixel_std=OmegaConf.create([2.0] * 3))
    batch = [{"image": torch.full((3, 20, 17), 7, dtype=torch.uint8)}, image((10, 30))]
    images = model.preprocess_image(batch)
    assert images.tensor.shape == (2, 3, 32, 32) and images.image_sizes == [(20, 17), (10, 30)]
    assert images.tensor[0, :, 19, 16].tolist() == [3, 2.5, 2]
    assert not images.tensor[0, :, 20:].any() and not images.tensor[0, :, :, 17:].any()
    assert not any("pixel" in name for name in model.state_dict())
    assert model.device == torch.device("cpu") and model.pixel_mean.shape == (3, 1, 1)


def test_training_needs_instances():
    model = make_retinanet(fixed_head(1))
    with pytest.raises(AssertionError, match="(?i)instance"):
        model([image()])


# ---------------------------------------------------------------- RetinaNet: training
def test_labels_of_anchors():
    model = make_retinanet(None, anchor_matcher=Matcher([0.4, 0.5], [0, -1, 1]))
    anchors = [Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4.5], [0, 0, 10, 3.9]]))]
    anchors.append(Boxes(torch.tensor([[20.0, 20, 30, 30]])))
    gt = [targets([[40.0, 40, 41, 41], [0, 0, 10, 10]], [2, 1]), targets([], [])]
    labels, boxes = model.label_anchors(anchors, gt)
    # IoU 1, .45 (between .4 and .5), .39, 0
    assert labels[0].tolist() == [1, -1, NUM_CLASSES, NUM_CLASSES]
    assert boxes[0][0].tolist() == [0, 0, 10, 10]
    assert labels[1].tolist() == [NUM_CLASSES] * 4 and labels[1].dtype == torch.int64
    assert boxes[1].tolist() == [[0, 0, 0, 0]] * 4


GT = [targets([[2.0, 3, 15, 14], [20, 5, 46, 30]], [0, 2]), targets([[10.0, 10, 26, 25]], [1])]


def slow_retinanet_losses(model, gt, beta):
    anchors = model.anchor_generator([torch.zeros(1, 1, *FINE), torch.zeros(1, 1, *COARSE)])
    labels, boxes = model.label_anchors(anchors, gt)
    anchors = torch.cat([a.tensor for a in anchors])
    logits, deltas = (rows(list(m), k) for m, k in zip(model.head.maps, (NUM_CLASSES, 4)))
    cls = reg = 0.0
    num_pos = 0
    for i in range(len(gt)):
        for r, label in enumerate(labels[i].tolist()):
            if label >= 0:
                cls += sum(slow_focal(logits[i, r, k].item(), k == label) for k in range(NUM_CLASSES))
            if 0 <= label < NUM_CLASSES:
                num_pos += 1
                target = model.box2box_transform.get_deltas(anchors[r][None], boxes[i][r][None])[0]
                for d in (deltas[i, r] - target).abs().tolist():
                    reg += 0.5 * d * d / beta if d < beta else d - 0.5 * beta
    return cls, reg, num_pos


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_losses_equal_slow_loops_and_the_normaliser_is_a_moving_average(beta):
    model = make_retinanet(fixed_head(2), smooth_l1_beta=beta)
    batch = [image(instances=gt) for gt in GT]
    cls, reg, num_pos = slow_retinanet_losses(model, GT, beta)
    assert 3 <= num_pos < 30
    normaliser = 100.0
    for _ in range(2):
        with EventStorage() as storage:
            losses = model(batch)
        normaliser = 0.9 * normaliser + 0.1 * num_pos
        assert losses["loss_cls"].item() == pytest.approx(cls / normaliser, rel=1e-4)
        assert losses["loss_box_reg"].item() == pytest.approx(reg / normaliser, rel=1e-4)
        assert model.loss_normalizer == pytest.approx(normaliser)
        assert storage.latest()["num_pos_anchors"][0] == num_pos / 2  # per image
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    assert "loss_normalizer" not in model.state_dict()


def test_focal_parameters_and_box_loss_type_are_used():
    batch = [image(instances=gt) for gt in GT]
    with EventStorage():
        plain = make_retinanet(fixed_head(2))(batch)
        gamma = make_retinanet(fixed_head(2), focal_loss_gamma=1.0)(batch)
        alpha = make_retinanet(fixed_head(2), focal_loss_alpha=0.5)(batch)
        giou = make_retinanet(fixed_head(2), box_reg_loss_type="giou")(batch)
    assert gamma["loss_cls"] > plain["loss_cls"] != alpha["loss_cls"]
    assert giou["loss_box_reg"] != plain["loss_box_reg"]
    assert giou["loss_cls"] == plain["loss_cls"]


def test_images_without_ground_truth():
    model = make_retinanet(fixed_head(2), box2box_transform=make_fcos(None).box2box_transform)
    batch = [image(instances=targets([], [])) for _ in range(2)]
    with EventStorage():
        losses = model(batch)
    assert losses["loss_box_reg"].item() == 0
    assert model.loss_normalizer == pytest.approx(100 * 0.9 + 1 * 0.1)  # max(#pos, 1)
    expected = sum(slow_focal(v, False) for m in model.head.maps[0] for v in m.flatten().tolist())
    assert losses["loss_cls"].item() == pytest.approx(expected / 90.1, rel=1e-4)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.head.parameters())


# ---------------------------------------------------------------- RetinaNet: inference
def test_inference_equals_a_slow_reference():
    limits = {"test_score_thresh": 0.6, "test_topk_candidates": 20, "test_nms_thresh": 0.4}
    model = make_retinanet(fixed_head(2), max_detections_per_image=12, **limits).eval()
    with torch.no_grad():
        out = model([image(height=64, width=96), image((30, 40))])
    assert out[0]["instances"].image_size == (64, 96)  # twice the image
    assert out[1]["instances"].image_size == (30, 40)  # the image before padding
    anchors = model.anchor_generator([torch.zeros(1, 1, *FINE), torch.zeros(1, 1, *COARSE)])
    candidates = []
    for level in range(2):
        scores, deltas = (rows([m[level]], k)[0].detach() for m, k in zip(model.head.maps, (NUM_CLASSES, 4)))
        boxes = model.box2box_transform.apply_deltas(deltas, anchors[level].tensor)
        found = [
            (scores[r, k].sigmoid().item(), k, boxes[r])
            for r in range(len(boxes))
            for k in range(NUM_CLASSES)
            if scores[r, k].sigmoid() > 0.6
        ]
        assert len(found) > (20 if level == 0 else 2)
        candidates += sorted(found, key=lambda f: -f[0])[:20]
    kept = []
    for k in range(NUM_CLASSES):
        mine = [c for c in candidates if c[1] == k]
        keep = nms(torch.stack([c[2] for c in mine]), torch.tensor([c[0] for c in mine]), 0.4)
        kept += [mine[i] for i in keep.tolist()]
    assert 12 < len(kept) < len(candidates)
    kept = sorted(kept, key=lambda f: -f[0])[:12]
    expected = torch.stack([c[2] for c in kept]) * 2
    expected[:, 0::2].clamp_(0, 96)
    expected[:, 1::2].clamp_(0, 64)
    full = ((expected[:, 2:] - expected[:, :2]) > 0).all(dim=1)
    result = out[0]["instances"]
    torch.testing.assert_close(result.pred_boxes.tensor, expected[full], atol=1e-4, rtol=1e-4)
    assert result.pred_classes.tolist() == [c[1] for c, f in zip(kept, full) if f]
    scores = torch.tensor([c[0] for c in kept])
    torch.testing.assert_close(result.scores, scores[full])


def test_score_threshold_is_strict_and_nothing_is_a_result():
    head = FixedHead(1, [FINE, COARSE], [A * NUM_CLASSES, A * 4], scale=0.0)  # scores exactly .5
    model = make_retinanet(head, test_score_thresh=0.5).eval()
    with torch.no_grad():
        assert len(model([image()])[0]["instances"]) == 0
        model.test_score_thresh = 0.49
        assert len(model([image()])[0]["instances"]) > 0


# ---------------------------------------------------------------- building
def retinanet_cfg():
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    octaves = [2 ** (i / 3) for i in range(3)]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[s * o for o in octaves] for s in (32, 64, 128, 256, 512)]
    return cfg


def test_parameter_count_and_keys_of_r50():
    model = build_model(retinanet_cfg())
    assert sum(p.numel() for p in model.parameters()) == 37_915_572
    assert sum(p.numel() for p in model.backbone.parameters()) == 31_452_352
    assert len(model.state_dict()) == 301


def test_every_key_of_the_config_is_read():
    cfg = retinanet_cfg()
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    r = cfg.MODEL.RETINANET
    r.NUM_CLASSES, r.IN_FEATURES, r.NUM_CONVS, r.NORM = 7, ["p4", "p5"], 1, "BN"
    r.IOU_THRESHOLDS, r.IOU_LABELS, r.BBOX_REG_WEIGHTS = [0.6], [0, 1], (1.0, 2.0, 3.0, 4.0)
    r.FOCAL_LOSS_ALPHA, r.FOCAL_LOSS_GAMMA = 0.3, 1.5
    r.SMOOTH_L1_LOSS_BETA, r.BBOX_REG_LOSS_TYPE = 0.2, "giou"
    r.SCORE_THRESH_TEST, r.TOPK_CANDIDATES_TEST, r.NMS_THRESH_TEST = 0.11, 12, 0.13
    cfg.TEST.DETECTIONS_PER_IMAGE, cfg.VIS_PERIOD, cfg.INPUT.FORMAT = 14, 15, "RGB"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[64]]
    for config in (cfg, OmegaConf.create(cfg.dump())):
        m = build_model(config)
        assert isinstance(m, RetinaNet) and list(m.head_in_features) == ["p4", "p5"]
        assert (m.num_classes, m.focal_loss_alpha, m.focal_loss_gamma) == (7, 0.3, 1.5)
        assert (m.smooth_l1_beta, m.box_reg_loss_type) == (0.2, "giou")
        assert (m.test_score_thresh, m.test_topk_candidates, m.test_nms_thresh) == (0.11, 12, 0.13)
        assert (m.max_detections_per_image, m.vis_period, m.input_format) == (14, 15, "RGB")
        assert list(m.box2box_transform.weights) == [1.0, 2.0, 3.0, 4.0]
        assert m.anchor_matcher.labels == [0, 1] and m.anchor_matcher.allow_low_quality_matches
        assert m.anchor_generator.strides == [16, 32] and len(m.head.cls_subnet[1]) == 2
        assert m.head.cls_score.out_channels == 3 * 7


def test_unregistered_architectures_are_named():
    assert "FCOS" not in META_ARCH_REGISTRY  # built from a LazyConfig only
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN2"
    with pytest.raises(KeyError, match="PanopticFPN2"):
        build_model(cfg)


def test_prior_gives_the_expected_first_loss():
    """All logits at the prior p: every background class costs (1 - alpha) p^2 (-log(1 - p))."""
    head = FixedHead(1, [FINE, COARSE], [A * NUM_CLASSES, A * 4], scale=0.0)
    with torch.no_grad():
        for m in head.maps[0]:
            m.fill_(-math.log(99))
    model = make_retinanet(head)
    with EventStorage():
        loss = model([image(instances=targets([], []))])["loss_cls"].item()
    anchors = A * (4 * 6 + 2 * 3)
    expected = anchors * NUM_CLASSES * 0.75 * 0.01**2 * -math.log(0.99) / 90.1
    assert loss == pytest.approx(expected, rel=1e-4)
