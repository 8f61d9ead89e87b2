"""Where DEPLA reads and writes: what is recorded, areas by hand, the tool's pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.config import LazyConfig, instantiate
from projects.DEPLA.regions import effective_area, recorded_regions, sharpened
from tests.paths import ROOT
from tests.projects.depla.nets import D, L, X, Y, make_depla, make_inputs
from tools import region_maps

CONFIG = str(ROOT / "projects/DEPLA/configs/faster_rcnn_depla_quick.py")


def test_effective_area_by_hand():
    """A uniform map 1, one of eight cells 1/8; 0.5 on two of eight: 1 / (8 (1/4 + 1/4)) = 1/4."""
    maps = torch.zeros(3, 2, 4)
    maps[0], maps[1, 0, 0], maps[2, 1, 1:3] = 3.0, 1.0, 0.5
    torch.testing.assert_close(effective_area(maps), torch.tensor([1.0, 1 / 8, 1 / 4]))


@pytest.mark.parametrize("back_filling", ["plain", "adaptive"])
def test_records_and_lets_go(back_filling):
    depla = make_depla(back_filling=back_filling, temperature=0.5)
    x, y = make_inputs(y_size=(3, 4), n=1)
    expected = depla.trace(x, y)
    with recorded_regions(torch.nn.ModuleDict({"site": depla})) as found:
        assert torch.equal(depla(x, y), expected.out)
    assert list(found) == ["site"]
    regions = found["site"]
    assert regions.x.shape == (X, 6, 8) and regions.y.shape == (Y, 3, 4) and regions.maps.shape == (L, D, 6, 8)
    torch.testing.assert_close(regions.heat, expected.heat[0].float())
    torch.testing.assert_close(regions.maps, sharpened(expected.scores[0], 0.5).float())
    torch.testing.assert_close(regions.maps.sum(dim=(2, 3)), torch.ones(L, D))
    torch.testing.assert_close(regions.out, expected.out[0].float())
    assert regions.groups(2) == expected.transformed[0].norm(dim=1).argsort(descending=True)[:2].tolist()
    areas = [effective_area(sharpened(expected.scores[0], t)).mean().item() for t in region_maps.TEMPERATURES]
    assert areas == sorted(areas, reverse=True) and areas[-1] < 0.5 * areas[0]
    found.clear()
    depla(x, y)
    assert found == {}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The quick config with random weights saved, and an image."""
    folder = tmp_path_factory.mktemp("depla")
    cfg = LazyConfig.load(CONFIG)
    torch.manual_seed(0)
    torch.save({"model": instantiate(cfg.model).state_dict()}, folder / "model.pth")
    pixels = torch.randint(0, 256, (80, 120, 3), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save(folder / "image.png")
    return folder


def arguments(folder, output, *more):
    start = ["--config-file", CONFIG, "--weights", str(folder / "model.pth")]
    return [*start, "--input", str(folder / "image.png"), "--output", str(output), *map(str, more)]


def test_tool(trained, tmp_path, capsys):
    region_maps.main(arguments(trained, tmp_path / "maps", "--modules", "fpn_depla3", "--groups", 2))
    start = "000-image.fpn_depla3."
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == [
        start + e for e in ("features.png", "groups.png", "npz")
    ]
    for kind in ("groups", "features"):
        assert Image.open(tmp_path / "maps" / f"{start}{kind}.png").width > 1000
    raw = np.load(tmp_path / "maps" / f"{start}npz")
    # 80 x 120 becomes 171 x 256 of 192 x 256: 22 of 24 rows of stride 8
    assert raw["maps"].shape == (16, 4, 22, 32) and raw["heat"].shape == (16, 22, 32)
    # mask_padding is on: nothing lay in the rows that were cut off
    np.testing.assert_allclose(raw["maps"].sum(axis=(2, 3)), 1, rtol=1e-4)
    assert "fpn_depla3: reads" in capsys.readouterr().out


def test_tool_on_a_classifier(trained, tmp_path, capsys):
    config = str(ROOT / "projects/DEPLA/configs/depla_resnet_digits.py")
    torch.save({"model": instantiate(LazyConfig.load(config).model).state_dict()}, tmp_path / "model.pth")
    start = ["--config-file", config, "--weights", str(tmp_path / "model.pth")]
    region_maps.main(
        [*start, "--input", str(trained / "image.png"), "--output", str(tmp_path / "maps"), "--groups", "1"]
    )
    assert len(list((tmp_path / "maps").iterdir())) == 3 and "res4.0.depla: reads" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        region_maps.main(["--config-file", config, "--input", str(trained), "--output", str(tmp_path / "more")])
    assert "No weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, message",
    [
        (["--modules", "res9"], "'res9' is in no name of the model's DEPLA modules: backbone."),
        (["--groups", 0], "--groups must be at least 1, got 0"),
        (["--weights", ""], "No weights"),
    ],
)
def test_tool_refuses(trained, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as stop:
        region_maps.main(arguments(trained, tmp_path / "maps", *more))
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_tool_refuses_a_model_without_depla(trained, tmp_path, capsys):
    config = str(ROOT / "configs/quickstart.py")
    torch.save({"model": instantiate(LazyConfig.load(config).model).state_dict()}, tmp_path / "plain.pth")
    more = ["--config-file", config, "--weights", str(tmp_path / "plain.pth")]
    with pytest.raises(SystemExit):
        region_maps.main(arguments(trained, tmp_path / "maps", *more))
    assert "The config's model has no DEPLA" in capsys.readouterr().err
