"""Importance maps: what is recorded, the contrast by hand, the tool's pictures."""

import pytest
import torch
from PIL import Image

from detectron2.config import LazyConfig, instantiate
from projects.LIP.importance import Site, contrast, recorded_sites
from tests.paths import ROOT
from tests.projects.lip.nets import images, three_blocks
from tools import importance_maps


def test_contrast_by_hand():
    """Box of 1.5 x 1 cells in 4 x 2: (8 + 0.5 * 4) / 1.5 = 20/3 inside; outside 0.5 * 4 + 6 * 1 over 6.5 cells."""
    values = torch.tensor([[1.0, 8.0, 4.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    # the outside: half of the 4, and 1s in the six other cells
    expected = (10 / 1.5) / ((2 + 6) / 6.5)
    assert contrast(values, (0.25, 0.0, 0.625, 0.5)) == pytest.approx(expected)
    finer = values.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert contrast(finer, (0.25, 0.0, 0.625, 0.5)) == pytest.approx(expected)


def test_importance_by_hand():
    """Channel 0 weighs cells 1 : 3, relative to their mean 0.5 and 1.5; channel 1 all alike, 1: mean 0.75 and 1.25.

    Channel 0's logits lie 1000 higher, which changes nothing.
    """
    logits = torch.tensor([[[0.0, 3.0]], [[5.0, 5.0]]])
    logits[0] = torch.tensor([1.0, 3.0]).log()
    site = Site(torch.zeros(2, 1, 2), logits, {})
    torch.testing.assert_close(site.importance(), torch.tensor([[0.75, 1.25]]))
    shifted = Site(site.x, logits + torch.tensor([90.0, -90.0]).view(2, 1, 1), {})
    torch.testing.assert_close(shifted.importance(), site.importance(), rtol=1e-4, atol=1e-4)


def test_records_every_site_and_lets_go():
    net = three_blocks(init="random").eval()
    with torch.no_grad(), recorded_sites(net) as sites:
        net(images(1))
    assert set(sites) == {"stem.pool", "res3.0.main_pool", "res3.0.shortcut_pool"}
    site = sites["res3.0.shortcut_pool"]
    assert site.x.shape == site.logits.shape == (16, 16, 24)
    assert {k: v.shape for k, v in site.poolings.items()} == dict.fromkeys(("max", "average", "LIP"), (16, 8, 12))
    assert (site.poolings["LIP"] <= site.poolings["max"] + 1e-5).all()
    assert 0 < site.logits.min() and site.logits.max() < 12 and site.logits.std() > 1
    sites.clear()
    net(images(1))
    assert sites == {}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The quick config with random weights saved, and an image."""
    folder = tmp_path_factory.mktemp("lip")
    cfg = LazyConfig.load(str(ROOT / "projects/LIP/configs/faster_rcnn_lip_quick.py"))
    torch.manual_seed(0)
    torch.save({"model": instantiate(cfg.model).state_dict()}, folder / "model.pth")
    pixels = torch.randint(0, 256, (80, 120, 3), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save(folder / "image.png")
    return folder


def arguments(folder, output, *more):
    config = str(ROOT / "projects/LIP/configs/faster_rcnn_lip_quick.py")
    start = ["--config-file", config, "--weights", str(folder / "model.pth")]
    return [*start, "--input", str(folder / "image.png"), "--output", str(output), *map(str, more)]


def test_tool(trained, tmp_path, capsys):
    importance_maps.main(arguments(trained, tmp_path / "maps", "--box", 10, 20, 40, 60))
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == ["000-image.importance.png", "000-image.object.png"]
    out = capsys.readouterr().out
    assert "7 sites" in out and out.count("average") == 7 and "res5.0.shortcut_pool" in out
    for picture in (tmp_path / "maps").iterdir():
        assert Image.open(picture).width > 500


def test_tool_without_an_object(trained, tmp_path, capsys):
    importance_maps.main(arguments(trained, tmp_path / "maps", "--score-threshold", 1.0))
    assert [p.name for p in (tmp_path / "maps").iterdir()] == ["000-image.importance.png"]
    assert "give --box" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more, message",
    [
        (["--box", 40, 20, 10, 60], "must lie in the image of 120 x 80 pixels"),
        (["--box", 0, 0, 120, 80], "must lie in the image"),
        (["--weights", ""], "No weights"),
    ],
)
def test_tool_refuses(trained, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as stop:
        importance_maps.main(arguments(trained, tmp_path / "maps", *more))
    assert stop.value.code == 2 and message in capsys.readouterr().err
