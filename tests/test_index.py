"""The index itself (projects/*/results.yaml, benchmarks/results/index.*): complete, true to the papers, up to date."""

import re

import pytest

from shared.config import load_config
from shared.results_index import check, cost, measured, report, tables
from shared.results_index.differences import compare
from shared.results_index.entries import FIGURES, GROUPS, all_entries, load_papers, missing_configs
from shared.results_index.search import search
from tests.paths import ROOT, SHARED_FILES

PAPERS = {paper.key: paper for paper in load_papers()}
ENTRIES = all_entries(PAPERS.values())
BY_ID = {entry.id: entry for entry in ENTRIES}
COSTS = measured.read()

# Rows with a config of ours and rows of others, per table, counted in the spec's section
ROWS = {
    "internet": {  # 5.2 to 5.5; Table 3 is a statistics run
        "table1": (8, 0),
        "table2a": (6, 0),
        "table2b": (6, 0),
        "table2c": (3, 0),
        "table2d": (4, 0),
        "table2e": (4, 0),
        "table3": (7, 0),
        "table4": (2, 11),
        "table5": (2, 5),
    },
    "labelenc": {  # 7
        "table1": (27, 0),
        "table2": (8, 0),
        "table3": (2, 0),
        "table4": (6, 0),
        "table5": (7, 0),
        "table6": (7, 0),
        "table7": (6, 0),
    },
    "depla": {  # 5.3; Table 5 has two detectors a row
        "table1": (3, 13),
        "table2": (4, 3),
        "table3": (3, 0),
        "table4": (4, 0),
        "table5": (4, 10),
    },
    "msfm": {  # 4.1: 34 printed rows, of 28 trainings and the base; 4.2
        "table2": (34, 0),
        "table3": (4, 0),
        "table4": (18, 0),
        "table5": (2, 0),
        "table6": (2, 0),
    },
    "lip": {"imagenet": (7, 0), "coco": (4, 0)},  # 4.1, 4.2
    "musu": {"coco": (11, 0), "ablations": (31, 0)},  # 2, 3.3: no table of the paper is known
}
TEXTS = {
    "internet": "internet-feature-intertwiner.txt",
    "labelenc": "labelenc.txt",
    "depla": "depla-aggregation-with-feature-detection.txt",
    "msfm": "msfm.txt",
}
# What the text extraction garbled: the same numbers, otherwise set
GARBLED = {
    "internet/table2b/kl_x10": "35.6 58.2 38.01",
    "internet/table3/proposals": "302 75 36 9 54 14 8 2",
    "internet/table3/share": "302 75 36 9 54 14 8 2",
    "internet/table3/below": "263 39 25 11 34 20 8 0",
    "internet/table3/above": "263 39 25 11 34 20 8 0",
}


@pytest.mark.parametrize("key", ROWS)
def test_every_row_of_the_specs_tables_is_there(key):
    found = {}
    for entry in PAPERS[key].entries:
        ours, cited = found.get(entry.table.name, (0, 0))
        found[entry.table.name] = (ours + bool(entry.config), cited + (not entry.config))
    extra = {"ours", "cifar10"} | ({"ours"} if key == "musu" else set())
    assert {name: rows for name, rows in found.items() if name not in extra} == ROWS[key]


def test_ids_are_unique_and_six_papers():
    assert set(PAPERS) == set(ROWS) and len(BY_ID) == len(ENTRIES)


def test_configs_exist_and_overrides_apply():
    assert missing_configs(ENTRIES) == []
    overridden = {entry.model for entry in ENTRIES if entry.overrides}
    assert len(overridden) >= 8
    for model in overridden:
        load_config(str(ROOT / model.config), model.overrides)


def test_every_config_of_the_projects_is_named():
    """But for what is no paper's row: building blocks, quick configs, digits."""
    named = {config for entry in ENTRIES for config in entry.configs()}
    files = [p for paper in PAPERS.values() for p in (paper.folder / "configs").rglob("*")]
    files = [p for p in files if p.suffix in (".py", ".yaml") and "common" not in p.parts]
    files = [str(p.relative_to(ROOT)) for p in files if not re.search("quick|digits|__init__", p.name)]
    assert len(files) > 200 and sorted(set(files) - named) == []


def test_labelenc_rows_know_what_is_trained_before_and_evaluated_after():
    for entry in PAPERS["labelenc"].entries:
        needs = re.search("_step2_|_kd_", entry.config) is not None
        assert bool(entry.first) == bool(entry.plain) == needs, entry.id


def numbers_of(entry) -> list[str]:
    """The paper's numbers, in the order in which they are printed."""
    return [value for value in entry.figures.get("paper", {}).values() if re.fullmatch(r"[\d.]+", value)]


@pytest.mark.parametrize("key", TEXTS)
def test_figures_stand_in_the_papers_text(key):
    """Every row's numbers, in a row. Several of LabelEnc's rows are one line there: see the next test."""
    file = SHARED_FILES / "papers" / TEXTS[key]
    if not file.exists():
        pytest.skip(f"no text of the paper: {file} is not here")
    text = " ".join(["", *re.findall(r"\d+(?:\.\d+)?", file.read_text()), ""])
    checked = 0
    for entry in PAPERS[key].entries:
        numbers = numbers_of(entry)
        if not numbers:
            continue
        checked += 1
        if entry.id.startswith("depla/table5/faster_rcnn"):  # its FLOPs stand before the columns of Mask R-CNN
            numbers = numbers[1:]
        wanted = GARBLED.get(entry.id, " ".join(numbers))
        assert f" {wanted} " in text, (entry.id, numbers)
        assert set(numbers) <= {*wanted.split(), "38.0"}, entry.id
    assert checked >= {"internet": 40, "labelenc": 63, "depla": 44, "msfm": 60}[key]


def test_labelencs_rows_stand_in_the_papers_text():
    file = SHARED_FILES / "papers/labelenc.txt"
    if not file.exists():
        pytest.skip(f"no text of the paper: {file} is not here")
    text = file.read_text()
    rows = PAPERS["labelenc"].select("table1")
    for one, two, ours in zip(rows[::3], rows[1::3], rows[2::3]):
        assert "\t".join(e.figures["paper"]["AP"] for e in (one, two, ours)) in text, one.id
    for number in range(2, 8):
        part = text[text.index(f"Table {number}. ") :][:700]
        for entry in PAPERS["labelenc"].select(f"table{number}"):
            assert "\t".join(entry.figures["paper"].values()) in part, entry.id


@pytest.mark.parametrize(
    "file, section, key, tables_, columns",
    [
        ("internet.md", r"### 5.2 .*?(?=### 5.3)", "internet", r"table1|table2.", 6),
        ("internet.md", r"### 5.4 .*?(?=### 5.5)", "internet", "table4", 6),
        ("msfm.md", r"### 4.1 .*?(?=### 4.2)", "msfm", "table2|table3", 6),
    ],
)
def test_figures_are_the_specs(file, section, key, tables_, columns):
    """Every row of the spec's section is a row of the index, figure by figure."""
    path = SHARED_FILES / "specs" / file
    if not path.exists():
        pytest.skip(f"no spec: {path} is not here")
    names = FIGURES[:columns]
    ours = {
        tuple(float(e.figures["paper"][n]) if n in e.figures["paper"] else None for n in names)
        for e in PAPERS[key].entries
        if re.fullmatch(tables_, e.table.name) and not {"diverges", "?"} & {*e.figures["paper"].values()}
    }
    found = 0
    for line in re.search(section, path.read_text(), re.DOTALL)[0].splitlines():
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")][-columns:]
        if line.startswith("|") and re.fullmatch(r"\d+\.\d+", cells[0]) and len(cells) == columns:
            found += 1
            assert tuple(float(cell) if cell else None for cell in cells) in ours, line
    assert found >= 2


def test_musu_prints_no_figure():
    """Nothing of its results is known (spec, 3.1)."""
    assert [e.id for e in PAPERS["musu"].entries if e.figures] == []
    assert "not known" in "\n".join(tables.render_table(PAPERS["musu"], "coco", COSTS))


@pytest.mark.parametrize(
    "query, wanted",
    [
        ("which config is Table 2d, decay weight?", "internet/table2d/decay"),
        ("Table 2d decay weight", "internet/table2d/decay"),
        ("MSFM Table 4 Grid R-CNN", "msfm/table4/grid_rcnn"),
        ("internet_r101_fpn_512_no_detach", "internet/table2e/no_detach"),
        ("vanilla KD teacher ResNet101", "labelenc/table6/r50_kd_r101"),
        ("LIP Bottleneck-256", "lip/imagenet/lip_resnet50_b256"),
        ("FPN-DEPLA T = 0.2", "depla/table4/t0.2"),
        ("MuSu nine anchors", "musu/coco/musu_r50_a9_fpn_1x"),
    ],
)
def test_search_finds(query, wanted):
    assert search(ENTRIES, query)[0].id == wanted


def test_every_model_is_measured():
    wanted = {str(model) for model in measured.models(ENTRIES)}
    assert set(COSTS) == wanted and len(wanted) > 250


@pytest.mark.parametrize(
    "config, count",
    [  # totals of the specs
        ("projects/InterNet/configs/internet_r50_fpn_512.py", 41_699_936 + 590_592 + 26_874_368),
        ("projects/LabelEnc/configs/retinanet_step2_r50.py", 37_915_572 + 17_907_712 + 1_770_240),
        ("projects/DEPLA/configs/depla_resnet50_imagenet_100e.py", 25_557_032 + 446_208),
        ("projects/LIP/configs/lip_resnet50_imagenet_90e.py", 23_864_232),
        ("projects/MuSu/configs/musu_r50_fpn_1x.py", 32_241_940),
    ],
)
def test_parameters(config, count):
    """In the file, and of the model as it is now."""
    assert COSTS[config].parameters == count
    assert cost.parameters(cost.build(load_config(str(ROOT / config))))[0] == count


def test_labelenc_costs_nothing_at_inference():
    for entry in PAPERS["labelenc"].entries:
        if entry.plain and entry.table.name != "ours":
            ours, plain = COSTS[entry.config], COSTS[entry.plain]
            assert ours.parameters_inference == plain.parameters, entry.id
            assert ours.multiply_adds_G == plain.multiply_adds_G, entry.id


def test_differences_from_the_papers():
    """All of MSFM's parameters but two are the printed ones; DEPLA's FLOPs are not (its README says why)."""
    differing = {(c.entry.id, c.figure): c for c in compare(ENTRIES, COSTS) if not c.agrees}
    assert [i for i, f in differing if f == "params_M"] == ["msfm/table2/scales_3l", "msfm/table4/grid_rcnn_msfm"]
    flops = {i: float(c.printed) - c.ours for (i, f), c in differing.items() if f == "flops_G"}
    assert flops["depla/table3/adaptive"] == pytest.approx(4.9 - 4.209, abs=1e-3)
    assert {i for i in flops if i.startswith("depla")} == {
        *(f"depla/table1/depla_{n}" for n in ("resnet50", "seresnet50", "seresnet101")),
        *(f"depla/table2/depla_{n}" for n in ("resnet50", "seresnet50")),
        *(f"depla/table3/{n}" for n in ("plain", "adaptive")),
        *(f"depla/table5/{d}_rcnn_{n}" for d in ("mask", "faster") for n in ("fishnet150", "depla_fishnet150")),
    }
    assert all(abs(flops[i]) < 0.021 for i in flops if i.startswith("lip"))


@pytest.mark.parametrize("key", ROWS)
def test_readmes_tables_are_up_to_date(key):
    paper = PAPERS[key]
    assert (paper.folder / "README.md").read_text() == tables.render_readme(paper, COSTS), "run tools/index.py tables"


def test_report_is_up_to_date():
    assert report.FILE.read_text() == report.render(list(PAPERS.values()), COSTS), "run tools/index.py tables"


def test_unmeasured_and_untrained_cells_say_so():
    paper = PAPERS["internet"]
    rows = tables.render_table(paper, "coco", {})[2:]
    assert all(row.count(tables.NOT_MEASURED) == 2 and row.endswith("| not trained |") for row in rows)
    assert "not measured" in report.render([paper], {}) and "Written" not in report.render([paper], {})


def test_groups_of_figures():
    """LIP's ImageNet rows are the repository's, not the paper's; what is inferred says from where."""
    for entry in PAPERS["lip"].select("imagenet")[:6]:
        assert set(entry.figures) == {"code"}
    for entry in ENTRIES:
        assert set(entry.figures) <= set(GROUPS) and ("other" not in entry.figures or entry.source), entry.id


@pytest.mark.slow
@pytest.mark.parametrize("key", ROWS)
def test_every_entry_builds_and_counts_as_the_file_says(key):
    said = []
    check.run(PAPERS[key].entries, with_cost=True, say=said.append)
    assert any("all build, as counted" in line for line in said)
