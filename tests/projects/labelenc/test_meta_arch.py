"""Hosts with LabelEnc: the host's own losses, outputs and state; what the second pass must not disturb."""

import pytest
import torch

from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from detectron2.modeling.backbone.resnet import ResNet
from detectron2.utils.analysis import flop_count_operators
from detectron2.utils.events import EventStorage
from projects.LabelEnc import LabelEncMixin
from shared.config import get_collection_cfg
from shared.training_only import training_only_prefixes
from tests.paths import ROOT
from tools.strip_checkpoint import strip

from .hosts import CLASSES, HOSTS, enc_config, enc_host, host_config, label_enc, make_batch, plain_host

DIS = "labelenc/loss_dis"


def step(model, iteration=2, seed=0, batch=None):
    """Losses, and the last scalars, of one training forward."""
    torch.manual_seed(seed)
    with EventStorage(iteration) as storage:
        losses = model(batch or make_batch())
        return losses, {name: value for name, (value, _) in storage.latest().items()}


def rewind_randomness(model, features):
    """Make the encoder return `features`, and restart the generator: the second pass repeats the first one."""

    def encode(instances, size):
        torch.manual_seed(0)
        return {name: maps.clone() for name, maps in features.items()}

    model.label_enc.encode = encode


@pytest.mark.parametrize("name", HOSTS)
def test_losses_are_the_hosts_own(name):
    """Step 1's detection losses and scalars, bit for bit; its reconstruction of the image's maps is the same again."""
    plain, model = plain_host(name), enc_host(name)
    losses, scalars = step(plain)
    images = plain.preprocess_image(make_batch())
    rewind_randomness(model, model.backbone(images.tensor))
    ours, our_scalars = step(model)
    assert set(ours) == set(losses) | {f"labelenc/{key}" for key in losses} | {DIS}
    for key, loss in losses.items():
        assert torch.equal(ours[key], loss) and torch.equal(ours[f"labelenc/{key}"], loss)
    assert set(our_scalars) == set(scalars) | {f"labelenc/{key}" for key in scalars}
    for key, value in scalars.items():
        assert our_scalars[key] == value == our_scalars[f"labelenc/{key}"]
    assert scalars and any(value for value in scalars.values())


@pytest.mark.parametrize("name", HOSTS)
def test_step2_without_distance_is_the_plain_host(name):
    """Neither encoder nor adaption net, and no file of step 1 needed."""
    model = enc_host(name, mode="step2", weight_dis=0.0)
    assert list(model.state_dict()) == list(plain_host(name).state_dict())
    model.after_initial_weights(set(model.state_dict()))
    (losses, scalars), (ours, our_scalars) = step(plain_host(name)), step(model)
    assert losses.keys() == ours.keys() and all(torch.equal(losses[k], ours[k]) for k in losses)
    assert scalars == our_scalars


@pytest.mark.parametrize("name", HOSTS)
def test_evaluation_is_the_plain_hosts(name):
    """Outputs of LabelEnc's detector and of the stripped checkpoint in a plain host, bit for bit; same FLOPs."""
    model, plain = enc_host(name), plain_host(name, seed=1)
    for detector in (model, plain):
        if hasattr(detector, "roi_heads"):
            predictor = detector.roi_heads.box_predictor
            for part in predictor if isinstance(predictor, torch.nn.ModuleList) else [predictor]:
                part.test_score_thresh = 0.0
        else:
            detector.test_score_thresh = 0.0
        detector.eval()
    kept, removed = strip(model.state_dict(), model)
    assert training_only_prefixes(model) == ["label_enc."] and len(removed["label_enc."]) > 20
    plain.load_state_dict(kept, strict=True)
    batch = [{"image": x["image"], "height": 100, "width": 120} for x in make_batch()]
    with torch.no_grad():
        outputs, wanted = model(batch), plain(batch)
    for output, expected in zip(outputs, wanted):
        output, expected = output["instances"], expected["instances"]
        assert len(output) == len(expected) > 0
        assert torch.equal(output.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert torch.equal(output.scores, expected.scores)
        assert torch.equal(output.pred_classes, expected.pred_classes)
    if name == "retinanet":
        assert flop_count_operators(model, batch[:1]) == flop_count_operators(plain, batch[:1])


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_normalizer_moves_once_and_is_shared(name):
    plain, model = plain_host(name), enc_host(name)
    for _ in range(2):
        step(plain)
        step(model)
        assert model.loss_normalizer == plain.loss_normalizer
    assert model.loss_normalizer not in (100, 300)


def test_backbone_is_restored_also_after_an_error():
    model = enc_host()
    step(model)
    assert "forward" not in vars(model.backbone)
    before = model.loss_normalizer

    def fail(instances, size):
        raise RuntimeError("encoder")

    model.label_enc.encode = fail
    with EventStorage() as storage, pytest.raises(RuntimeError, match="encoder"):
        model(make_batch())
    assert "forward" not in vars(model.backbone)
    assert model.loss_normalizer != before  # the first pass was whole
    with EventStorage() as storage:
        model.label_enc.__dict__.pop("encode")
        model(make_batch())
        assert "labelenc/num_pos_anchors" in storage.latest()


def test_an_overridden_backbone_stays_overridden():
    model, calls = enc_host(mode="step2"), []
    forward = model.backbone.forward

    def counted(x):
        calls.append(x.shape)
        return forward(x)

    model.backbone.forward = counted
    step(model)
    assert model.backbone.forward is counted and len(calls) == 1


def test_pictures_of_the_second_pass_are_dropped():
    model = enc_host("faster_rcnn_fpn")
    model.vis_period = 1
    with EventStorage(0) as storage:
        batch = make_batch()
        model(batch)
        assert len(storage._vis_data) == 1


@pytest.mark.parametrize("name", HOSTS)
def test_empty_batch(name):
    """No object in any image: finite losses, and a gradient for every parameter that is trained, the stem's too."""
    for iteration in (0, 2):
        model = enc_host(name)
        losses, _ = step(model, iteration, batch=make_batch(objects=False))
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_other_sizes_of_images():
    """Maps of the encoder are as large as the backbone's, for one image and three."""
    model = enc_host()
    for sizes in ([(33, 40)], [(64, 64), (40, 97), (100, 30)]):
        images = torch.zeros(len(sizes), 3, -(-max(h for h, _ in sizes) // 32) * 32, 128)
        features = model.backbone(images)
        instances = [make_batch()[1]["instances"] for _ in sizes]
        encoded = model.label_enc.encode(instances, tuple(images.shape[-2:]))
        assert {k: v.shape for k, v in encoded.items()} == {k: v.shape for k, v in features.items()}


class MyRCNN(GeneralizedRCNN):
    """Somebody's detector: its losses count twice."""

    def forward(self, batched_inputs):
        outputs = super().forward(batched_inputs)
        return {name: 2 * loss for name, loss in outputs.items()} if self.training else outputs


class LabelEncMyRCNN(LabelEncMixin, MyRCNN):
    """The recipe's two lines."""


def test_recipe_for_another_host_on_cascade_rcnn():
    config = enc_config("cascade_faster_rcnn_fpn")
    config._target_ = LabelEncMyRCNN
    torch.manual_seed(0)
    model = instantiate(config)
    losses, _ = step(plain_host("cascade_faster_rcnn_fpn"))
    ours, scalars = step(model)
    assert isinstance(model, MyRCNN)
    for name, loss in losses.items():
        assert torch.equal(ours[name], 2 * loss) and f"labelenc/{name}" in ours
    assert {"stage2/roi_head/num_fg_samples", "labelenc/stage2/roi_head/num_fg_samples"} <= scalars.keys()
    sum(ours.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert training_only_prefixes(model) == ["label_enc."]


def test_heads_with_batch_norm_are_refused_in_step1_alone():
    config = enc_config("retinanet")
    config.head.norm = "BN"
    with pytest.raises(ValueError, match=r"batch norm \(head.cls_subnet.*'GN'"):
        instantiate(config)
    config.label_enc.mode = "step2"
    instantiate(config)
    config = enc_config("retinanet")
    config.head.norm = "GN"
    config.backbone.norm = "BN"  # of the pyramid: images' and labels' are two
    model = instantiate(config)
    step(model)
    for fpn in (model.backbone, model.label_enc.encoder):
        assert fpn.fpn_output3.norm.num_batches_tracked == 1
    config.label_enc.mode = "step2"
    model = instantiate(config).train()
    step(model)
    assert model.label_enc.encoder.fpn_output3.norm.num_batches_tracked == 0


def test_backbone_without_a_pyramid_is_refused():
    config = enc_config("retinanet")
    resnet = host_config("retinanet").backbone.bottom_up
    config.backbone = resnet
    config.head_in_features = ["res3", "res4", "res5"]
    with pytest.raises(ValueError, match=f"must be an FPN, got {ResNet.__name__}"):
        instantiate(config)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mode": "step3"}, r"mode \(MODE\) is 'step3', choose one of 'step1', 'step2', 'kd'"),
        ({"source": "polygon"}, r"SOURCE\) is 'polygon'"),
        ({"stem_act": "gelu"}, r"STEM_ACT\) is 'gelu'"),
        ({"init": "gaussian"}, r"INIT\) is 'gaussian'"),
        ({"dist_norm": "hw"}, r"DIST_NORM\) is 'hw'"),
        ({"dist_reduction": "max"}, r"DIST_REDUCTION\) is 'max'"),
        ({"init_fpn": "teacher"}, r"INIT_FPN\) is 'teacher'"),
        ({"weight_rec": 0.0}, r"weight_rec \(WEIGHT_REC\) 0.0"),
    ],
)
def test_errors_of_values(changes, message):
    with pytest.raises(ValueError, match=message):
        enc_host(**changes)


YAML_CHANGES = {
    "LabelEncRetinaNet": {"MODE": "step1", "STEM_OUT": 16, "RES2_OUT": 32, "BLOCKS": (1, 1, 2, 1)},
    "LabelEncGeneralizedRCNN": {"MODE": "step2", "ADAPT_SHARED": False, "ADAPT_CONVS": 2},
}


@pytest.mark.parametrize("name", list(YAML_CHANGES))
def test_yaml_form_builds_the_same(name):
    dense = name == "LabelEncRetinaNet"
    cfg = get_collection_cfg()
    cfg.merge_from_file(str(ROOT / ("configs/Base-RetinaNet.yaml" if dense else "configs/Base-RCNN-FPN.yaml")))
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = name, "meta"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.LABELENC.merge_from_other_cfg(CfgNode(YAML_CHANGES[name]))
    lazy = label_enc()
    lazy.update({"stem_out": 128, "res2_out": 256, **{k.lower(): v for k, v in YAML_CHANGES[name].items()}})
    with torch.device("meta"):
        one = build_model(cfg)
        file = ROOT / f"configs/common/models/{'retinanet' if dense else 'faster_rcnn_fpn'}.py"
        model = LazyConfig.load(str(file)).model
        model.update(_target_=META_ARCH_REGISTRY.get(name), label_enc=lazy)
        two = instantiate(model)
    shapes = [{k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (one, two)]
    assert shapes[0] == shapes[1] and len([k for k in shapes[0] if k.startswith("label_enc.")]) > 40
    trained = [{k for k, v in m.label_enc.named_parameters() if v.requires_grad} for m in (one, two)]
    assert trained[0] == trained[1] != set()


def test_class_count_is_the_hosts():
    assert enc_host("retinanet").label_enc.encoder.bottom_up.stem.in_channels == CLASSES
    assert enc_host("mask_rcnn_fpn").label_enc.encoder.bottom_up.stem.in_channels == CLASSES


def test_mixed_precision():
    """The distance is float32; everything gets a finite gradient."""
    model = enc_host("retinanet")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = step(model)
    assert losses[DIS].dtype == torch.float32
    full, _ = step(enc_host("retinanet"))
    torch.testing.assert_close(losses[DIS], full[DIS], atol=0.03, rtol=0)
    sum(losses.values()).backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in grads)
