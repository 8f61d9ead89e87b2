"""Generators F: exact sizes, what each computes, and what it costs."""

import pytest
import torch
import torch.nn.functional as F

from detectron2.utils.analysis import FlopCountAnalysis
from projects.InterNet.generators import GENERATORS, Bilinear, ConvUpConv, Deconv, resize
from projects.InterNet.transport import ScaleOT


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(13, 9), (14, 10), (20, 6), (3, 30)])
@pytest.mark.parametrize("name", GENERATORS)
def test_result_has_exactly_the_size(name, size):
    """From 7 x 5: odd and even doubles, and sizes that are no double."""
    out = GENERATORS[name](4, 4, "")(random(2, 4, 7, 5), size)
    assert out.shape == (2, 4, *size) and out.isfinite().all()


def test_conv_up_conv_is_its_formula():
    module, x = ConvUpConv(4, 3, ""), random(2, 4, 5, 3)
    hidden = F.relu(F.conv2d(x, module.reduce.weight, module.reduce.bias, padding=1))
    up = F.interpolate(hidden, size=(9, 6), mode="bilinear", align_corners=False)
    wanted = F.conv2d(up, module.refine.weight, module.refine.bias, padding=1)
    torch.testing.assert_close(module(x, (9, 6)), wanted)
    assert (wanted < 0).any()  # signed, as an FPN's maps are


def test_deconv_is_its_formula():
    module, x = Deconv(4, 3, ""), random(2, 4, 5, 3)
    deconv = module.deconv
    for size, extra in (((9, 6), (0, 1)), ((10, 5), (1, 0))):
        wanted = F.conv_transpose2d(x, deconv.weight, deconv.bias, stride=2, padding=1, output_padding=extra)
        torch.testing.assert_close(module(x, size), F.relu(wanted))


def test_resize_gives_the_share_of_padding_to_its_neighbours():
    """One row (a, b | padding): cells 1 and 2 of 2x mix 3/4 a + 1/4 b and reverse; cell 3 would be 3/4 b + 0."""
    x = torch.tensor([[[[8.0, 4.0, 0.0]]]])
    valid = torch.tensor([[[[1.0, 1.0, 0.0]]]]), torch.tensor([[[[1.0, 1.0, 1.0, 1.0, 0.0, 0.0]]]])
    torch.testing.assert_close(resize(x, (1, 6), valid), torch.tensor([[[[8.0, 7.0, 5.0, 4.0, 0.0, 0.0]]]]))
    torch.testing.assert_close(resize(x, (1, 6))[0, 0, 0, 3], torch.tensor(3.0))


def test_parameters_and_macs_of_the_paper_size():
    """C = 256; MACs of convolutions at 512 x 512 are 64 times those at 64 x 64: F 12.1 G, 3.0 G, 0.75 G."""
    count = {name: sum(p.numel() for p in GENERATORS[name](256, 256, "BN").parameters()) for name in GENERATORS}
    conv = 9 * 256 * 256
    assert count == {"conv_up_conv": 1_180_672, "deconv": 590_592, "bilinear": 0}
    module = ScaleOT(channels=256)
    assert [sum(p.numel() for p in h.parameters()) for h in module.critics] == [589_824] * 3
    assert sum(p.numel() for p in module.parameters()) == 3 * (1_180_672 + 589_824)

    def macs(layer, *args):
        return FlopCountAnalysis(layer, args).unsupported_ops_warnings(False).by_operator()["conv"]

    coarse, fine = torch.zeros(1, 256, 8, 8), torch.zeros(1, 256, 16, 16)
    generate = GENERATORS["conv_up_conv"](256, 256).eval()
    assert macs(generate, coarse, (16, 16)) == conv * (8 * 8 + 16 * 16)
    assert round(64 * conv * (8 * 8 + 16 * 16) / 1e9, 1) == 12.1
    assert macs(module.critics[0], fine) == conv * 8 * 8
    assert round(64 * conv * 8 * 8 / 1e9, 1) == 2.4
    assert macs(GENERATORS["deconv"](256, 256).eval(), coarse, (16, 16)) == conv * 8 * 8


def test_bilinear_has_no_channels_to_change():
    with pytest.raises(ValueError, match="'bilinear' cannot turn 8 channels into 4"):
        Bilinear(8, 4)
