"""Every pair of methods, and more at once: a step of training that reaches each of them, detections, or a reason."""

import re
from functools import cache
from itertools import combinations

import pytest
import torch

from detectron2.config import LazyConfig, instantiate
from detectron2.utils.events import EventStorage
from projects.combine import METHODS, combine
from shared.errors import UserError
from shared.modeling.memory import memories_held
from tests.paths import ROOT
from tools import pairs
from tools.pairs import HOSTS, TRIPLES, combined, load_host, make_batch, run

# What cannot be one with the other, by the hosts' kinds
ROI_HEADS = {"dynamic", "grid", "internet", "internet_ot"}
DENSE_HEADS = {"musu", "reppoints"}
IN_RESNET = {"lip", "se_resnet", "msfm", "depla"}
FISHNETS = {"fishnet", "depla_fishnet"}
BACKBONES = {*FISHNETS, "lip_densenet"}
OWN = {  # names of parameters that a method brings, or trains in its own way; dynamic has none
    "fishnet": r"bottom_up\.(tail|body|head)\d\.",
    "depla_fishnet": r"bottom_up\.head3\.aggregate\.",
    "lip_densenet": r"bottom_up\.dense5\.transition\.pool\.",
    "lip": r"\.res5\.0\.main_pool\.",
    "se_resnet": r"\.res3\.0\.se\.",
    "msfm": r"\.res3\.0\.msfm2\.",  # in a narrow res4 all is behind DEPLA, which starts as the shortcut alone
    "depla": r"bottom_up\..*\.(depla|aggregate)\.",
    "depla_fpn": r"backbone\.fpn_depla\d\.",
    "musu": r"^head\.",
    "reppoints": r"^head\.refine_conv\.",
    "grid": r"grid_head\.",
    "internet": r"\.makeup\.",
    "internet_ot": r"\.transport\.",
    "labelenc": r"label_enc\.encoder\.bottom_up\.",
}
LOSS = {  # that a method adds, where it adds one
    "musu": "loss_musu_cls",
    "reppoints": "loss_box_refine",
    "grid": "loss_grid",
    "internet": "loss_inter",
    "internet_ot": "loss_ot",
    "labelenc": "labelenc/loss_dis",
}


def goes_together(host: str, a: str, b: str) -> bool:
    """By what each method replaces, stated here a second time on purpose."""
    names = {a, b}
    if len(names & BACKBONES) == 2 or len(names & DENSE_HEADS) == 2 or {"internet", "internet_ot"} == names:
        return False
    if names & ROI_HEADS and (host == "RetinaNet" or names & DENSE_HEADS):
        return False
    if names & BACKBONES and names & IN_RESNET:
        return names == {"fishnet", "depla"}
    return True


PAIRS = [(host, *pair) for host in HOSTS for pair in combinations(METHODS, 2)]
TRAINS = [pair for pair in PAIRS if goes_together(*pair)]
# each method with one of every kind; the others of TRAINS are slow
QUICK = [
    ("Faster R-CNN", *pair)
    for pair in (
        ("lip", "msfm"),
        ("se_resnet", "depla"),
        ("depla_fpn", "dynamic"),
        ("fishnet", "depla"),
        ("lip_densenet", "internet"),
        ("grid", "internet_ot"),
        ("dynamic", "internet"),
        ("internet", "labelenc"),
        ("dynamic", "grid"),
    )
] + [("RetinaNet", *pair) for pair in (("msfm", "musu"), ("depla_fpn", "reppoints"), ("musu", "labelenc"))]
cached_host = cache(load_host)


def test_the_quick_ones_are_pairs_and_hold_every_method():
    assert set(QUICK) <= set(TRAINS)
    assert {name for _, *names in QUICK for name in names} == set(METHODS) - {"depla_fishnet"}
    assert len(PAIRS) == 2 * 105 and len(TRAINS) == 81 + 40


def trains(host_name, names):
    host = cached_host(host_name)
    outcome = run(host, names)  # raises where a loss, a gradient or a detection is not finite, or a gradient missing
    assert outcome.refusal == ""
    assert outcome.detections > 0
    for name in names:
        assert name not in LOSS or LOSS[name] in outcome.losses, name
        own = [moves for parameter, moves in outcome.gradients.items() if re.search(OWN.get(name, "$^"), parameter)]
        assert any(own) == (name != "dynamic"), name


@pytest.mark.parametrize("host, a, b", [p if p in QUICK else pytest.param(*p, marks=pytest.mark.slow) for p in TRAINS])
def test_a_pair_trains(host, a, b):
    trains(host, (a, b))


@pytest.mark.parametrize("host", ["Faster R-CNN", pytest.param("RetinaNet", marks=pytest.mark.slow)])
def test_every_other_pair_is_refused(host):
    refused = [(a, b) for h, a, b in PAIRS if h == host and (h, a, b) not in TRAINS]
    assert len(refused) == {"Faster R-CNN": 24, "RetinaNet": 65}[host]
    for pair in refused:
        with pytest.raises(UserError):
            combine(cached_host(host), *pair)


@pytest.mark.parametrize("host, names", [(host, names) for host in HOSTS for names in TRIPLES[host]])
def test_three_and_more_train(host, names):
    trains(host, names)


@pytest.mark.parametrize(
    "host", ["mask_rcnn_fpn", *(pytest.param(h, marks=pytest.mark.slow) for h in ("cascade_faster_rcnn_fpn", "fcos"))]
)
def test_other_hosts_build(host):
    """Masks, a cascade and FCOS with what they allow, at full width, without memory for the weights."""
    model = LazyConfig.load(str(ROOT / f"configs/common/models/{host}.py")).model
    names = {"mask_rcnn_fpn": ["dynamic", "grid", "internet"], "cascade_faster_rcnn_fpn": ["internet_ot"], "fcos": []}
    with torch.device("meta"):
        built = instantiate(combined(model, ["lip", "msfm", "depla_fpn", *names[host], "labelenc"]))
    assert hasattr(built.backbone.bottom_up.res3[0], "msfm2") and hasattr(built, "label_enc")
    assert host != "mask_rcnn_fpn" or built.roi_heads.mask_on


# ---------------------------------------------------------------- LabelEnc's second pass
def step(names):
    torch.manual_seed(0)
    model = instantiate(combined(cached_host("Faster R-CNN"), names))
    with EventStorage(pairs.ITERATION):
        model(make_batch(10))
    return model


def test_labelencs_second_pass_leaves_memories_alone():
    """The label maps' boxes and features are none of the images': one iteration counts once."""
    alone, around = step(["dynamic", "internet"]), step(["dynamic", "internet", "labelenc"])
    assert int(alone.roi_heads.statistics.step) == int(around.roi_heads.statistics.step) == 1
    counts = around.roi_heads.intertwiner.buffer.count
    assert counts.sum() > 0
    with EventStorage(pairs.ITERATION), memories_held(around):
        around(make_batch(10))
    assert torch.equal(around.roi_heads.intertwiner.buffer.count, counts)
    assert int(around.roi_heads.statistics.step) == 1
    with EventStorage(pairs.ITERATION):
        around(make_batch(10))
    assert int(around.roi_heads.statistics.step) == 2


def test_the_buffer_takes_in_the_images_objects_once(monkeypatch):
    model = step(["internet", "labelenc"])
    seen = []
    update = model.roi_heads.intertwiner.buffer.update
    monkeypatch.setattr(
        model.roi_heads.intertwiner.buffer,
        "update",
        lambda sums, counts: (seen.append((model.roi_heads.intertwiner.buffer.held, counts)), update(sums, counts))[1],
    )
    before = model.roi_heads.intertwiner.buffer.count.clone()
    with EventStorage(pairs.ITERATION):
        model(make_batch(10))
    assert [held for held, _ in seen] == [False, True]
    assert torch.equal(model.roi_heads.intertwiner.buffer.count, before + seen[0][1])


def test_what_training_alone_needs_is_told():
    """For tools/strip_checkpoint.py: of mixed RoI heads too."""
    assert set(step(["dynamic", "internet"]).roi_heads.training_only) == {"statistics", "intertwiner"}


# ---------------------------------------------------------------- the table
def test_the_table_is_made_of_what_ran(monkeypatch, tmp_path):
    ran = []

    def fake(host, names):
        ran.append(names)
        return pairs.Outcome(tuple(names), refusal="Because." if {"musu", "grid"} <= set(names) else "")

    monkeypatch.setattr(pairs, "run", fake)
    file = tmp_path / "table.md"
    pairs.main(["--output", str(file)])
    text = file.read_text()
    assert len(ran) == 2 * (len(METHODS) + 105) + sum(map(len, TRIPLES.values()))
    assert text.count("\n1. Because.") == 2 and text.count(" [1] ") == 2
    assert text.count(" trains ") == 2 * (len(METHODS) + 104)
    assert "- msfm + musu + labelenc: trains" in text and "/" + str(ROOT).strip("/") not in text
    pairs.main(["--output", str(file)])  # its own table may be replaced


def test_it_writes_over_nothing_else(tmp_path, capsys):
    file = tmp_path / "mine"
    for content in (b"mine", bytes(range(256))):
        file.write_bytes(content)
        with pytest.raises(SystemExit):
            pairs.main(["--output", str(file)])
        assert f"--output {file} exists already: name another file" in capsys.readouterr().err
        assert file.read_bytes() == content
    with pytest.raises(SystemExit):
        pairs.main(["--output", str(tmp_path)])
    assert f"--output {tmp_path} is a folder: name a file." in capsys.readouterr().err


def test_the_table_in_docs_agrees():
    """Which pairs train is as stated above, on both hosts."""
    sections = (ROOT / "docs/combinations.md").read_text().split("\n## ")[1:]
    assert [section.partition("\n")[0] for section in sections] == list(HOSTS)
    for section, host in zip(sections, HOSTS):
        rows = [
            [cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")
        ]
        header, rows = rows[0], rows[1:]
        assert header[1:] == [row[0] for row in rows] == list(METHODS)
        for name, *cells in rows:
            for other, cell in zip(METHODS, cells):
                if other == name:
                    assert (cell == "trains") == (host == "Faster R-CNN" or name not in ROI_HEADS)
                    break
                assert (cell == "trains") == goes_together(host, other, name), (host, other, name)
