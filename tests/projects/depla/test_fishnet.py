"""FishNet: the table of its stages, its parts by hand, DEPLA's sites in it, both forms."""

import pytest
import torch

from projects.DEPLA import DEPLA, DEPLASpec
from shared.classification import ImageClassifier
from shared.classification.weights import fit_backbone
from shared.modeling.fishnet import FEATURES, FishBlock, FishBridge, FishNet
from tests.projects.depla.nets import images

# (module, channels, stride) of f1 to f10 of FishNet-150
TABLE = [
    ("stem", 64, 4),
    ("tail1", 128, 8),
    ("tail2", 256, 16),
    ("tail3", 512, 32),
    ("bridge", 512, 32),
    ("body1", 512 + 256, 16),
    ("body2", 384 + 128, 8),
    ("body3", 256 + 64, 4),
    ("head1", 320 + 512, 8),
    ("head2", 832 + 768, 16),
    ("head3", 1600 + 512, 32),
]
# X and Y of the six sites: trunk after its sampling, branch
SITES = {"body1": (512, 256), "body2": (384, 128), "body3": (256, 64), "head1": (320, 512), "head2": (832, 768)}
SITES["head3"] = (1600, 512)
NARROW = {"depth": 99, "width": 8}


def narrow(seed=0, **kwargs):
    torch.manual_seed(seed)
    return FishNet(**{**NARROW, **kwargs}).eval()


def test_stage_table():
    with torch.device("meta"):
        net, x = FishNet(150, num_classes=1000), torch.zeros(1, 3, 224, 224)
    seen = {}
    for name, _, _ in TABLE:
        module = getattr(net, name)
        module.register_forward_hook(
            lambda m, _, out, name=name: seen.update({name: out if torch.is_tensor(out) else out[0]})
        )
    assert net(x)["linear"].shape == (1, 1000)
    assert {n: tuple(y.shape) for n, y in seen.items()} == {n: (1, c, 224 // s, 224 // s) for n, c, s in TABLE}
    blocks = {name: len(part.blocks) for name, part in net.named_children() if hasattr(part, "blocks")}
    assert blocks == dict(tail1=2, tail2=4, tail3=8, bridge=4, body1=2, body2=2, body3=2, head1=2, head2=2, head3=4)
    assert [len(getattr(net, f"{p}{i}").branch) for p in ("body", "head") for i in (1, 2, 3)] == [2, 2, 2, 2, 2, 4]
    dilations = [m.conv2.conv.dilation[0] for i in (1, 2, 3) for m in getattr(net, f"body{i}").blocks]
    assert dilations == [1, 1, 2, 2, 4, 4]
    assert net.final.conv.out_channels == 1056


def test_sites():
    with torch.device("meta"):
        net = FishNet(150, aggregation=DEPLASpec())
    found = {name: m for name, m in net.named_modules() if isinstance(m, DEPLA)}
    assert list(found) == [f"{name}.aggregate" for name in SITES]
    for name, (trunk, branch) in SITES.items():
        depla = found[f"{name}.aggregate"]
        assert (depla.soft_rpn.conv.in_channels, depla.transform.in_channels) == (trunk, branch)


def test_group_sum_by_hand():
    """6 channels to 3: pairs of neighbours; also channels_last."""
    torch.manual_seed(0)
    block = FishBlock(8, 4, "BN", dilation=2, group_sum=True).eval()
    x = torch.randn(2, 8, 5, 6)
    residual = block.conv3(block.conv2(block.conv1(x)))
    pairs = torch.stack([x[:, 2 * i] + x[:, 2 * i + 1] for i in range(4)], dim=1)
    torch.testing.assert_close(block(x), residual + pairs)
    torch.testing.assert_close(block(x.contiguous(memory_format=torch.channels_last)), residual + pairs)


def test_bridge_by_hand():
    torch.manual_seed(0)
    bridge = FishBridge(2, 16, "BN").eval()
    x = torch.randn(2, 16, 3, 4)
    score = bridge.score2(bridge.score1(x))
    mean = bridge.gate_norm(score).relu().mean(dim=(2, 3))
    hidden = (mean @ bridge.gate1.weight.flatten(1).T + bridge.gate1.bias).relu()
    gate = (hidden @ bridge.gate2.weight.flatten(1).T + bridge.gate2.bias).sigmoid()[:, :, None, None]
    torch.testing.assert_close(bridge(x), gate * (1 + bridge.blocks(score)))


def test_unit_by_hand():
    """Up: blocks, each cell four times, beside the branch; down: blocks, the maximum of 2 x 2 cells."""
    net = narrow()
    up, down = net.body3, net.head1
    x, source = torch.randn(1, 64, 3, 4), torch.randn(1, 8, 6, 8)
    trunk = up.blocks(x).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(up(x, source)[0], torch.cat([trunk, up.branch(source)], 1))
    x, source = torch.randn(1, 40, 6, 8), torch.randn(1, 64, 3, 4)
    refined = down.blocks(x)
    trunk = refined.unflatten(3, (4, 2)).unflatten(2, (3, 2)).amax(dim=(3, 5))
    out, tap = down(x, source)
    torch.testing.assert_close(out, torch.cat([trunk, down.branch(source)], 1))
    torch.testing.assert_close(tap, refined)


@pytest.mark.parametrize("back_filling", ["plain", "adaptive"])
def test_depla_starts_as_the_host_and_learns(back_filling):
    host = narrow(2, num_classes=3)
    ours = narrow(1, num_classes=3, aggregation=DEPLASpec(back_filling=back_filling))
    left = ours.load_state_dict(host.state_dict(), strict=False)
    assert not left.unexpected_keys and {k.split(".")[1] for k in left.missing_keys} == {"aggregate"}
    x = images(2)
    assert torch.equal(ours(x)["linear"], host(x)["linear"])
    optimizer = torch.optim.SGD(ours.train().parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(ours(x)["linear"], torch.tensor([0, 2])).backward()
        optimizer.step()
    assert [n for n, p in ours.named_parameters() if p.grad.abs().max() == 0] == []


def test_taps():
    """refined: blocks of the head before pooling; concat: f7, f8, f9. Each after a norm and ReLU, if wanted."""
    x, seen = images(1), {}
    for tap in ("refined", "concat"):
        net = narrow(tap=tap, out_features=FEATURES, out_norm_act=False)
        for name in ("body3", "head1", "head2", "head3"):
            getattr(net, name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        out = net(x)
        if tap == "refined":
            expected = [seen["head1"][1], seen["head2"][1], seen["head3"][1], seen["head3"][0]]
        else:
            expected = [seen[name][0] for name in ("body3", "head1", "head2", "head3")]
        assert all(torch.equal(out[f], e) for f, e in zip(FEATURES, expected))
        assert not net.out_norms
        normed = narrow(tap=tap, out_features=FEATURES)
        normed.load_state_dict(net.state_dict(), strict=False)
        for f, y in normed(x).items():
            torch.testing.assert_close(y, normed.out_norms[f](out[f]).relu())
    shapes = normed.output_shape()
    assert [(s.channels, s.stride) for s in shapes.values()] == [(40, 4), (104, 8), (200, 16), (264, 32)]
    assert normed.size_divisibility == 32


def test_a_classifier_fills_the_detector():
    """Both forms share one tree of modules: all of the classifier's weights but the last find their place."""
    pixels = {"pixel_mean": [0.0] * 3, "pixel_std": [1.0] * 3}
    spec = DEPLASpec()
    classifier = ImageClassifier(backbone=narrow(aggregation=spec), num_classes=4, in_feature="final", **pixels)
    detector = torch.nn.ModuleDict({"backbone": narrow(1, aggregation=spec, out_features=FEATURES)})
    weights = fit_backbone(classifier.state_dict(), detector).weights
    left = detector.load_state_dict(weights, strict=False)
    assert {k.split(".")[1] for k in left.unexpected_keys} == {"final"}
    assert {".".join(k.split(".")[1:3]) for k in left.missing_keys} == {f"out_norms.fish{i}" for i in (2, 3, 4)}
    x = images(1)
    with torch.no_grad():
        final = classifier.backbone.final(detector["backbone"].eval()(x)["fish5"]).relu()
        torch.testing.assert_close(final, classifier.eval().backbone(x)["final"])


def test_freezing():
    net = narrow(freeze_at=3)
    assert not any(p.requires_grad for part in (net.stem, net.tail1, net.tail2) for p in part.parameters())
    assert all(p.requires_grad for p in net.tail3.parameters())
    assert not any(p.requires_grad for p in narrow(freeze_at=11).head3.parameters())


def test_refusals():
    for kwargs, message in (
        ({"depth": 152}, "depth must be one of 99, 150, 201, got 152"),
        ({"tap": "body"}, "tap must be one of refined, concat, got 'body'"),
        ({"width": 12}, "width must be a multiple of 8, got 12"),
        ({"out_features": ["res5"]}, "out_features must be among fish2, fish3, fish4, fish5, final"),
        ({"out_features": ["linear"]}, "out_features must be among"),
    ):
        with pytest.raises(ValueError, match=message):
            FishNet(**{**NARROW, **kwargs})
    with pytest.raises(ValueError, match=r"sides that 32 divides, got \(64, 90\)"):
        narrow()(torch.zeros(1, 3, 64, 90))
    with pytest.raises(ValueError, match="keep_sum adds Y to X, which have 32 and 64 channels"):
        narrow(aggregation=DEPLASpec(keep_sum=True))
