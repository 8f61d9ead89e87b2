"""GeneralizedRCNN and ProposalNetwork."""

import pytest
import torch
from omegaconf import OmegaConf

from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import GeneralizedRCNN, ProposalNetwork
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tests.embedded.rcnn_parts import (
    TinyBackbone,
    make_cascade,
    make_heads,
    make_inputs,
    make_predictor,
    make_rcnn,
    make_rpn,
)

LOSSES = ["loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"]


def detecting(**changes):
    """In eval mode, and keeping every detection."""
    heads = make_heads(mask=True, box_predictor=make_predictor(test_score_thresh=0.0))
    return make_rcnn(**{"roi_heads": heads, **changes}).eval()


def test_images_are_normalised_then_padded_with_zeros_to_the_stride():
    model = make_rcnn()
    images = [torch.full((3, 9, 16), 200, dtype=torch.uint8), torch.full((3, 4, 17), 50.0)]
    batch = model.preprocess_image([{"image": x} for x in images])
    assert batch.tensor.shape == (2, 3, 16, 24)  # multiples of 8
    assert [tuple(s) for s in batch.image_sizes] == [(9, 16), (4, 17)]
    # (200 - mean) / std and (50 - mean) / std, means 100, 110, 120, stds 50, 60, 70
    torch.testing.assert_close(batch.tensor[0, :, 8, 15], torch.tensor([2.0, 1.5, 8 / 7]))
    torch.testing.assert_close(batch.tensor[1, :, 3, 16], torch.tensor([-1.0, -1.0, -1.0]))
    assert (batch.tensor[0, :, 9:] == 0).all() and (batch.tensor[0, :, :, 16:] == 0).all()


def test_a_backbone_may_ask_for_square_inputs():
    class Square(TinyBackbone):
        padding_constraints = {"square_size": 56}

    model = make_rcnn(backbone=Square())
    assert model.preprocess_image(make_inputs()).tensor.shape == (2, 3, 56, 56)


def test_pixel_statistics_are_no_part_of_the_checkpoint():
    model = make_rcnn(pixel_mean=OmegaConf.create([1.0, 2.0, 3.0]))
    assert model.pixel_mean.shape == model.pixel_std.shape == (3, 1, 1)
    assert model.pixel_mean.flatten().tolist() == [1, 2, 3]
    assert not any("pixel" in k for k in model.state_dict())
    assert {k.split(".")[0] for k in model.state_dict()} == {"backbone", "proposal_generator", "roi_heads"}
    assert model.device == torch.device("cpu")


@pytest.mark.parametrize("cascade", [False, True])
@pytest.mark.parametrize("with_gt", [(True, True), (True, False), (False, False)])
def test_training_reaches_every_parameter_also_without_ground_truth(with_gt, cascade):
    model = make_rcnn(**({"roi_heads": make_cascade(mask=True)} if cascade else {}))
    with EventStorage():
        losses = model(make_inputs(with_gt))
    if not cascade:
        assert list(losses) == LOSSES  # the detector's, then the proposals'
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert (model.backbone.stem.weight.grad != 0).any()


def test_equal_seeds_give_equal_losses():
    model, inputs = make_rcnn(), make_inputs()
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with EventStorage():
            runs.append(torch.stack(list(model(inputs).values())))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_training_needs_instances():
    with EventStorage(), pytest.raises(AssertionError, match="gt_instances"):
        make_rcnn()([{"image": torch.zeros(3, 16, 16)}])


def test_detections_come_at_the_size_that_is_asked_for():
    model, inputs = detecting(), make_inputs()
    raw = model.inference(inputs, do_postprocess=False)
    assert [tuple(r.image_size) for r in raw] == [(32, 48), (40, 30)]
    assert raw[0].pred_masks.shape[1:] == (1, 8, 8)
    inputs[0].update(height=64, width=144)  # twice, three times
    first, second = (r["instances"] for r in model(inputs))
    assert tuple(first.image_size) == (64, 144) and tuple(second.image_size) == (40, 30)
    assert first.pred_masks.shape == (len(first), 64, 144)
    assert first.pred_masks.dtype == torch.bool
    kept = raw[0].pred_boxes.nonempty()
    expected = raw[0].pred_boxes.tensor[kept] * torch.tensor([3.0, 2, 3, 2])
    torch.testing.assert_close(first.pred_boxes.tensor, expected)
    assert len(first) > 0


def test_inference_ignores_the_ground_truth_and_draws_nothing():
    model, inputs = detecting(), make_inputs()
    state = torch.get_rng_state()
    with_gt = model(inputs)[0]["instances"]
    assert torch.equal(torch.get_rng_state(), state)
    without = model([{"image": x["image"]} for x in inputs])[0]["instances"]
    assert torch.equal(with_gt.scores, without.scores)


def test_given_boxes_are_kept_and_get_masks():
    model, inputs = detecting(), make_inputs()[:1]
    x = Instances((32, 48), pred_boxes=Boxes(torch.tensor([[4.0, 4, 20, 30]])))
    x.pred_classes = torch.tensor([1])
    inputs[0].update(height=64, width=96)
    (result,) = model.inference(inputs, detected_instances=[x])
    assert result["instances"].pred_boxes.tensor.tolist() == [[8, 8, 40, 60]]
    assert result["instances"].pred_masks.shape == (1, 64, 96)
    (raw,) = model.inference(inputs, detected_instances=[x], do_postprocess=False)
    assert raw.pred_masks.shape == (1, 1, 8, 8)


def test_inference_in_training_mode_is_an_error():
    with pytest.raises(AssertionError):
        make_rcnn().inference(make_inputs())


def test_without_a_proposal_generator_the_inputs_bring_proposals():
    model, inputs = make_rcnn(proposal_generator=None), make_inputs()
    for x in inputs:
        x["proposals"] = Instances(
            x["image"].shape[1:], proposal_boxes=x["instances"].gt_boxes.clone(), objectness_logits=torch.ones(2)
        )
    with EventStorage():
        assert list(model(inputs)) == LOSSES[:3]
    assert len(model.eval()(inputs)) == 2


@pytest.mark.parametrize("cascade", [False, True])
def test_non_finite_weights_stop_training_and_give_nothing_at_inference(cascade):
    model = make_rcnn(**({"roi_heads": make_cascade()} if cascade else {}))
    with torch.no_grad():
        model.backbone.stem.weight[0] = float("inf")
    with EventStorage(), pytest.raises(FloatingPointError):
        model(make_inputs())
    results = model.eval()(make_inputs())
    assert [len(r["instances"]) for r in results] == [0, 0]


def test_the_first_image_is_drawn_every_vis_period():
    pytest.importorskip("detectron2.utils.visualizer")
    model = make_rcnn(vis_period=2)
    for iteration, count in ((1, 0), (2, 1)):
        with EventStorage(iteration) as storage:
            model(make_inputs())
        assert len(storage._vis_data) == count
    name, picture, _ = storage._vis_data[0]
    assert "GT bounding boxes" in name and "proposals" in name
    assert tuple(picture.shape) == (3, 32, 96)  # two of 32 x 48


def test_pictures_need_the_input_format():
    with pytest.raises(AssertionError, match="input_format"):
        make_rcnn(vis_period=2, input_format=None)


# ---- ProposalNetwork


def proposal_network():
    return ProposalNetwork(
        backbone=TinyBackbone(),
        proposal_generator=make_rpn(),
        pixel_mean=[100.0, 110.0, 120.0],
        pixel_std=[50.0, 60.0, 70.0],
    )


def test_proposal_network_trains_and_proposes():
    model, inputs = proposal_network(), make_inputs((True, False))
    with EventStorage():
        losses = model(inputs)
    assert list(losses) == ["loss_rpn_cls", "loss_rpn_loc"]
    assert not any("pixel" in k for k in model.state_dict())
    inputs[0].update(height=64, width=144)
    first, second = model.eval()(inputs)
    assert list(first) == ["proposals"]
    assert tuple(first["proposals"].image_size) == (64, 144)
    assert tuple(second["proposals"].image_size) == (40, 30)
    model_boxes = first["proposals"].proposal_boxes.tensor
    assert model_boxes[:, 0::2].max() > 48 and len(model_boxes) > 0


# ---- from the config


def tiny_cfg():
    cfg = get_cfg()
    cfg.merge_from_list(
        "MODEL.DEVICE cpu MODEL.BACKBONE.NAME build_resnet_fpn_backbone MODEL.RESNETS.DEPTH 18 "
        "MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.RESNETS.OUT_FEATURES ['res2','res3'] "
        "MODEL.FPN.IN_FEATURES ['res2','res3'] MODEL.FPN.OUT_CHANNELS 16 "
        "MODEL.ANCHOR_GENERATOR.SIZES [[32],[64]] MODEL.RPN.IN_FEATURES ['p2','p3'] "
        "MODEL.ROI_HEADS.NAME StandardROIHeads MODEL.ROI_HEADS.IN_FEATURES ['p2','p3'] "
        "MODEL.ROI_BOX_HEAD.NAME FastRCNNConvFCHead MODEL.ROI_BOX_HEAD.NUM_FC 1 "
        "MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 3 "
        "MODEL.PIXEL_MEAN [1.,2.,3.] INPUT.FORMAT RGB VIS_PERIOD 5".split()
    )
    return cfg


@pytest.fixture
def simple_fpn(monkeypatch):
    """LastLevelMaxPool wants p5; these tests have two levels."""
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool

    init = LastLevelMaxPool.__init__

    def to_p3(self):
        init(self)
        self.in_feature = "p3"

    monkeypatch.setattr(LastLevelMaxPool, "__init__", to_p3)


@pytest.mark.parametrize("as_omegaconf", [False, True])
def test_from_config_builds_backbone_then_proposals_then_heads(simple_fpn, as_omegaconf):
    from detectron2.modeling import build_backbone, build_proposal_generator, build_roi_heads

    cfg = tiny_cfg()
    torch.manual_seed(7)
    model = build_model(OmegaConf.create(cfg.dump()) if as_omegaconf else cfg)
    assert type(model) is GeneralizedRCNN
    assert (model.input_format, model.vis_period) == ("RGB", 5)
    assert model.pixel_mean.flatten().tolist() == [1, 2, 3]
    torch.manual_seed(7)
    shapes = build_backbone(cfg).output_shape()
    rpn, heads = build_proposal_generator(cfg, shapes), build_roi_heads(cfg, shapes)
    anchors = model.proposal_generator.rpn_head.anchor_deltas.weight
    assert torch.equal(anchors, rpn.rpn_head.anchor_deltas.weight)
    weight = model.roi_heads.box_predictor.bbox_pred.weight
    assert torch.equal(weight, heads.box_predictor.bbox_pred.weight)
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    model = build_model(cfg)
    assert type(model) is ProposalNetwork
    assert not any(k.startswith("roi_heads") for k in model.state_dict())


def recorded(model, expected):
    modules = dict(model.named_modules())
    for suffix, value in expected.items():
        (module,) = [m for name, m in modules.items() if name.endswith(suffix)]
        weight = module.weight
        assert round(weight.flatten()[0].item(), 5) == value, suffix


SEEDS = {
    "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml": {
        "res5.2.conv3": -0.00590,
        "fpn_output5": -0.02520,
        "rpn_head.anchor_deltas": 0.00079,
    },
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml": {
        "box_head.2.fc2": 0.03018,
        "box_predictor.2.bbox_pred": 0.00005,
        "mask_head.predictor": 0.00217,
    },
    "common/models/mask_rcnn_fpn.py": {
        "bottom_up.res5.2.conv3": -0.00590,
        "fpn_output5": -0.02520,
        "rpn_head.conv": 0.00788,
        "box_head.fc2": -0.00795,
        "mask_head.predictor": 0.00058,
    },
    "common/models/cascade_rcnn.py": {
        "mask_head.predictor": -0.00066,
        "box_head.2.fc2": 0.01492,
        "box_predictor.2.bbox_pred": 0.00002,
    },
}


@pytest.mark.parametrize("path", SEEDS)
def test_the_zoos_models_start_from_the_recorded_weights(path):
    model_zoo = pytest.importorskip("detectron2.model_zoo")
    from detectron2.config import instantiate

    cfg = model_zoo.get_config(path)
    torch.manual_seed(7)
    if path.endswith(".py"):
        model = instantiate(cfg.model)
    else:
        cfg.MODEL.DEVICE = "cpu"
        model = build_model(cfg)
    recorded(model, SEEDS[path])
