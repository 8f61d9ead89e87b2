"""FPN-DEPLA: its start is FPN's, its merges by hand, names, odd sizes."""

import pytest
import torch
import torch.nn.functional as F

from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from projects.DEPLA import DEPLA, DEPLAFPN, depla_resnet
from projects.DEPLA.fpn import FPN_SPEC
from tests.projects.depla.nets import images

LEVELS = ["res2", "res3", "res4", "res5"]
SPEC = {**vars(FPN_SPEC), "num_groups": 3, "mid_channels": 5, "maps_per_group": 2}


def make(cls=DEPLAFPN, seed=0, fuse_type="sum", **spec):
    torch.manual_seed(seed)
    bottom_up = depla_resnet(
        depla=None, norm="BN", stem_channels=8, res2_channels=16, width_per_group=4, out_features=LEVELS
    )
    extra = {"depla": type(FPN_SPEC)(**{**SPEC, **spec})} if cls is DEPLAFPN else {}
    return cls(bottom_up, LEVELS, 12, top_block=LastLevelMaxPool(), fuse_type=fuse_type, **extra).eval()


@pytest.mark.parametrize("fuse_type", ["sum", "avg"])
def test_starts_as_fpn(fuse_type):
    """With its sum kept, to the bit; FPN's weights load. By the text alone: laterals without any top-down path."""
    host = make(FPN, fuse_type=fuse_type)
    x = images(1)
    with torch.no_grad():
        expected = host(x)
        for keep_sum in (True, False):
            ours = make(seed=1, fuse_type=fuse_type, keep_sum=keep_sum)
            left = ours.load_state_dict(host.state_dict(), strict=False)
            assert not left.unexpected_keys and {k.split(".")[0] for k in left.missing_keys} == {
                "fpn_depla2",
                "fpn_depla3",
                "fpn_depla4",
            }
            found = ours(x)
            assert list(found) == list(expected) and ours.output_shape() == host.output_shape()
            if keep_sum:
                assert all(torch.equal(found[name], expected[name]) for name in expected)
            elif fuse_type == "sum":
                lateral = ours.fpn_output3(ours.fpn_lateral3(ours.bottom_up(x)["res3"]))
                assert torch.equal(found["p3"], lateral)


def test_merges_by_hand():
    """Y of a level is the merged map above it, before that map's output convolution."""
    ours = make(zero_init=False)
    x = images(1, 64, 128)
    with torch.no_grad():
        c = ours.bottom_up(x)
        m5 = ours.fpn_lateral5(c["res5"])
        m4 = ours.fpn_depla4(ours.fpn_lateral4(c["res4"]), m5)
        m3 = ours.fpn_depla3(ours.fpn_lateral3(c["res3"]), m4)
        m2 = ours.fpn_depla2(ours.fpn_lateral2(c["res2"]), m3)
        found = ours(x)
    expected = {"p2": ours.fpn_output2(m2), "p3": ours.fpn_output3(m3), "p4": ours.fpn_output4(m4)}
    expected |= {"p5": ours.fpn_output5(m5), "p6": F.max_pool2d(ours.fpn_output5(m5), 1, 2)}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert not torch.allclose(m4, ours.fpn_lateral4(c["res4"]) + F.interpolate(m5, scale_factor=2), atol=1e-3)


def test_sites_and_odd_sizes():
    ours = make(zero_init=False)
    assert [n for n, m in ours.named_modules() if isinstance(m, DEPLA)] == ["fpn_depla2", "fpn_depla3", "fpn_depla4"]
    assert {m.spec.back_filling for m in ours.modules() if isinstance(m, DEPLA)} == {"adaptive"}
    with torch.no_grad():
        found = ours(images(1, 75, 131))  # p4 of 5 x 9 cells from p5 of 3 x 5
    assert found["p4"].shape[2:] == (5, 9) and found["p5"].shape[2:] == (3, 5)


def test_without_depla_it_is_fpn():
    torch.manual_seed(0)
    bottom_up = depla_resnet(
        depla=None, norm="BN", stem_channels=8, res2_channels=16, width_per_group=4, out_features=LEVELS
    )
    plain = DEPLAFPN(bottom_up, LEVELS, 12, top_block=LastLevelMaxPool(), depla=None).eval()
    host = make(FPN)
    assert list(plain.state_dict()) == list(host.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(images(1))["p2"], host(images(1))["p2"])
