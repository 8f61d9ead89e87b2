"""The label encoder: sizes, exact forms of its stem, a pyramid like the host's, names that ImageNet weights miss."""

import itertools
import pickle

import pytest
import torch

from detectron2.config import LazyConfig, instantiate
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from projects.LabelEnc import LabelEncoder, LabelMaps
from projects.LabelEnc.encoder import build_encoder
from projects.LabelEnc.maps import label_maps
from shared.checkpoint import WeightsCheckpointer
from tests.paths import ROOT

from .hosts import CLASSES, TARGETS, enc_host, label_enc, make_instances, plain_host

ADAPTION = 3 * (9 * 256 * 256 + 256)
WHOLE = {"retinanet": 17_907_712, "fcos": 13_778_944, "faster_rcnn_fpn": 13_254_656}


def size(module):
    return sum(p.numel() for p in module.parameters())


def small_body(**changes):
    torch.manual_seed(0)
    return LabelEncoder(CLASSES, **{"stem_out": 8, "res2_out": 16, **changes}).double()


@pytest.mark.parametrize("name", list(WHOLE))
def test_sizes_with_80_classes(name):
    """Body, its stages, whole encoder, and adaption net."""
    cfg = LazyConfig.load(str(ROOT / f"configs/common/models/{name}.py")).model
    with torch.device("meta"):
        plain = size(instantiate(cfg))
        cfg.update(_target_=TARGETS[name], label_enc=label_enc(stem_out=128, res2_out=256))
        model = instantiate(cfg)
    encoder, body = model.label_enc.encoder, model.label_enc.encoder.bottom_up
    assert [size(body.stem), *map(size, body.stages.values())] == [501_888, 94_592, 656_896, 2_624_512, 6_032_384]
    assert size(body) == 9_910_272 and size(encoder) == WHOLE[name]
    assert size(model.label_enc.adapt) == ADAPTION == 1_770_240
    assert size(model) == plain + WHOLE[name] + ADAPTION
    assert not any("Norm" in type(m).__name__ for m in model.label_enc.modules())


@pytest.mark.parametrize("height, width", [(64, 96), (45, 67), (33, 31)])
def test_shapes_are_a_resnets(height, width):
    resnet = ResNet(BasicStem(norm=""), ResNet.make_default_stages(18, norm=""), out_features=["res2", "res5"])
    wanted = resnet(torch.zeros(1, 3, height, width))
    maps = small_body()([LabelMaps(torch.zeros(1, 1, height, width).double(), torch.tensor([0]))])
    for name in ("res2", "res5"):
        assert maps[name].shape[2:] == wanted[name].shape[2:]
    assert [m.shape[1] for m in maps.values()] == [16, 32, 64, 128]


BOXES = [[2.0, 3.0, 30.0, 25.0], [10.0, 5.0, 50.0, 40.0], [0.0, 0.0, 9.0, 33.0], [40.0, 20.0, 51.0, 30.0]]
OBJECTS = {  # classes of the objects of each image
    "none": [[], []],
    "one": [[3], []],
    "some": [[3, 1], [1, 3, 0]],
    "all": [[0, 1, 2], [2, 3, 4, 4]],
    "own channels": [[3, 1], [], [2, 1]],  # three images: one group each
}


@pytest.mark.parametrize("objects", list(OBJECTS))
def test_gathered_and_folded_forms_are_exact(objects):
    """In float64: the maps, and the gradient of every parameter, of all four forms. 53 px: borders at every stride."""
    targets = [make_instances(BOXES[: len(c)], c, (37, 53)) for c in OBJECTS[objects]]
    groups = label_maps(targets, (37, 53), num_classes=CLASSES, dtype=torch.float64)
    assert len(groups) == (3 if objects == "own channels" else 1)
    results = []
    for gather, fold in itertools.product((False, True), repeat=2):
        body = small_body(gather_classes=gather, fold_stem=fold)
        maps = list(body(groups).values())
        weights = [torch.randn(m.shape, generator=torch.Generator().manual_seed(i)) for i, m in enumerate(maps)]
        loss = sum((w * m).sum() for w, m in zip(weights, maps))
        results.append(maps + list(torch.autograd.grad(loss, list(body.parameters()))))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])
    stem = results[-1][len(maps)]  # of the gathered and folded form; weights of absent classes get zeros
    present = sorted({c for image in OBJECTS[objects] for c in image})
    assert stem.flatten(2).any(dim=2).any(dim=0).nonzero()[:, 0].tolist() == present
    assert maps[0].shape[0] == len(targets)


def test_images_may_be_grouped_in_any_way():
    targets = [make_instances(BOXES[: len(c)], c, (37, 53)) for c in ([3, 1], [], [2, 1, 2])]
    options = dict(num_classes=CLASSES, dtype=torch.float64)
    body = small_body()
    together = body(label_maps(targets, (37, 53), **options))
    for i, target in enumerate(targets):
        alone = body(label_maps([target], (37, 53), **options))
        for name in together:
            torch.testing.assert_close(together[name][i : i + 1], alone[name])


def test_stem_with_an_activation():
    body, plain = small_body(stem_act="relu", fold_stem=False), small_body()
    groups = label_maps([make_instances(BOXES, [0, 1, 2, 3], (37, 53))], (37, 53), num_classes=CLASSES)
    groups = [LabelMaps(g.maps.double(), g.present) for g in groups]
    assert not torch.allclose(body(groups)["res2"], plain(groups)["res2"])
    with pytest.raises(ValueError, match="fold_stem"):
        LabelEncoder(CLASSES, stem_act="relu")
    with pytest.raises(ValueError, match="blocks"):
        LabelEncoder(CLASSES, blocks=(1, 2, 2))


def test_initial_weights():
    """Standard deviations of the widest layers: uniform of variance 1 / fan-in; normal of variance 2 / fan-out."""
    torch.manual_seed(0)
    official, msra = LabelEncoder(CLASSES), LabelEncoder(CLASSES, init="msra")
    for body, std in ((official, (1 / (9 * 512)) ** 0.5), (msra, (2 / (9 * 512)) ** 0.5)):
        weight = body.stages["stage5"][0].spatial.weight
        assert weight.std().item() == pytest.approx(std, rel=0.01)
    assert official.stages["stage5"][0].spatial.weight.abs().max() <= (3 / (9 * 512)) ** 0.5
    assert official.stages["stage5"][0].spatial.bias.any() and official.stem.bias.any()
    empty = [LabelMaps(torch.zeros(1, 1, 64, 64), torch.tensor([0]))]
    assert all(not maps.any() for maps in msra(empty).values()) and official(empty)["res5"].any()


def test_imagenet_weights_pass_the_encoder_by(tmp_path):
    """Weights that are matched by the ends of names fill the backbone, and leave every entry of LabelEnc as it was."""
    source = plain_host("retinanet", seed=5).backbone.bottom_up.state_dict()
    file = tmp_path / "R-18.pkl"
    content = {"model": {k: v.numpy() for k, v in source.items()}, "__author__": "test", "matching_heuristics": True}
    file.write_bytes(pickle.dumps(content))
    model = enc_host("retinanet")
    before = {k: v.clone() for k, v in model.label_enc.state_dict().items()}
    WeightsCheckpointer(model).load(str(file), checkpointables=[])
    after = model.state_dict()
    assert all(torch.equal(after["backbone.bottom_up." + k], v) for k, v in source.items())
    assert all(torch.equal(after["label_enc." + k], v) for k, v in before.items())


def test_no_name_ends_like_one_of_a_resnet():
    with torch.device("meta"):
        names = ResNet(BasicStem(), ResNet.make_default_stages(101)).state_dict().keys()
        ours = enc_host("faster_rcnn_fpn").label_enc.state_dict().keys()
    assert len(names) > 500 and len(ours) > 40
    assert not any(own.endswith(f".{name}") for own in ours for name in names)


class Levels(Backbone):
    """Maps of any names and strides."""

    def __init__(self, **strides):
        super().__init__()
        self._out_features = list(strides)
        self._out_feature_strides, self._out_feature_channels = strides, dict.fromkeys(strides, 6)

    def forward(self, x):
        return {name: x.new_zeros(len(x), 6, x.shape[2] // s, x.shape[3] // s) for name, s in self.strides.items()}


def test_pyramid_is_like_the_hosts():
    """Other names below, group norm, averaged fusion; P6 from the widest map below, or from P5."""
    below = Levels(block6=8, block13=16, block17=32)
    host = FPN(below, list(below.output_shape()), 32, "GN", LastLevelP6P7(6, 32, "block17"), fuse_type="avg")
    encoder = build_encoder(small_body(), host)
    assert encoder.output_shape() == host.output_shape()
    assert encoder.in_features == ("res3", "res4", "res5") and encoder._fuse_type == "avg"
    assert encoder.top_block.in_feature == "res5" and encoder.top_block.p6.in_channels == 128
    assert encoder.fpn_lateral5.in_channels == 128 and encoder.fpn_lateral5.bias is None
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert len(norms) == len({id(m.weight) for m in norms}) == 6
    host = FPN(below, list(below.output_shape()), 32, "", LastLevelP6P7(32, 32, "p5"))
    assert build_encoder(small_body(), host).top_block.p6.in_channels == 32
    host = FPN(below, list(below.output_shape()), 32, "", LastLevelMaxPool())
    assert set(build_encoder(small_body(), host).output_shape()) == {"p3", "p4", "p5", "p6"}
    assert build_encoder(small_body(), FPN(below, ["block6"], 32)).top_block is None


def test_hosts_that_the_encoder_cannot_follow():
    class Other(LastLevelMaxPool):
        pass

    class P6(torch.nn.Module):
        num_levels, in_feature = 1, "p5"

    below = Levels(res3=8, res4=16, res5=32)
    build_encoder(small_body(), FPN(below, ["res3", "res4", "res5"], 32, top_block=Other()))
    with pytest.raises(ValueError, match="it has P6"):
        build_encoder(small_body(), FPN(below, ["res3", "res4", "res5"], 32, top_block=P6()))
    with pytest.raises(ValueError, match=r"strides 4 to 32.*fine \(2\)"):
        build_encoder(small_body(), FPN(Levels(fine=2, res2=4), ["fine", "res2"], 32))
    with pytest.raises(ValueError, match="must be an FPN, got Levels"):
        instantiate(label_enc()).build(below, CLASSES)
