"""shared/results_index: what a results.yaml may say, READMEs' tables, counting, resuming a measurement."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.ops import deform_conv2d

from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils.analysis import flop_count_operators
from shared.config import load_config
from shared.errors import UserError
from shared.results_index import check, cost, measured, report, tables
from shared.results_index.differences import Comparison, compare, rounded
from shared.results_index.entries import Model, load_paper, load_papers, missing_configs
from shared.results_index.measured import Cost
from shared.results_index.search import search, words
from tests.paths import ROOT

TINY = "tests/tiny/faster_rcnn.py"
FILE = """\
paper: Test, 2021
tables:
  table1:
    title: Main
    set: COCO val2017
    rows:
      plain: {row: plain, config: projects/LIP/configs/densenet121_imagenet_90e, paper: {AP: 38.0, params_M: 1.0}}
      star: {row: plain*, reason: cited, paper: {AP: 40.5, APs: '?', APm: 20}}
  ours:
    title: not in the paper
    rows:
      wide:
        {row: a|b, config: x.py, overrides: [a.b=1], also: {.yaml: x.yaml}, other: {AP: about 39}, source: S, bold: yes}
readme:
  main:
    rows: [table1, ours/wide]
    columns:
      table: table
      row: row
      config: config
      AP / S / M / L: paper AP APs APm APl
      parameters: parameters
      here: here
"""
COST = Cost(1_234_567, 1_000_000, None, 12.3456, 12.5, [224, 224], "2.12.1", "embedded", "2026-11-21")


def write(folder, text=FILE):
    project = folder / "projects/Test"
    project.mkdir(parents=True)
    (project / "results.yaml").write_text(text)
    return project / "results.yaml"


def test_entries(tmp_path):
    (paper,) = load_papers(write(tmp_path).parents[2])
    plain, star, wide = paper.entries
    assert [e.id for e in paper.entries] == ["test/table1/plain", "test/table1/star", "test/ours/wide"]
    assert plain.table.label == "Table 1" and wide.table.label == "not in the paper"
    assert plain.model == Model("projects/LIP/configs/densenet121_imagenet_90e.py") and star.model is None
    assert wide.model == Model("projects/Test/configs/x.py", ("a.b=1",)) and wide.bold and not plain.bold
    assert list(wide.twins()) == [Model("projects/Test/configs/x.yaml")] and list(wide.models()) == [wide.model]
    assert plain.figures["paper"]["AP"] == "38.0" and plain.set == "COCO val2017" and wide.set == ""
    assert wide.figure("AP") == "about 39" and wide.figure("AP50") is None


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("paper: Test", "papers: Test", r"results.yaml: unknown key 'papers'; did you mean paper"),
        ("paper: Test, 2021\n", "", "results.yaml: paper is missing."),
        ("paper: Test, 2021", "paper: Test\nparameters: some", "must be one of all, mmdetection, got 'some'"),
        ("    title: Main\n", "", "results.yaml, table1: title is missing"),
        ("row: plain, ", "", "table1/plain: row is missing"),
        ("row: plain,", "rows: plain, row: a,", r"table1/plain: unknown key 'rows'; did you mean row"),
        ("row: plain,", "row: [plain],", "table1/plain: row must be a text"),
        ("AP: 38.0", "AP5: 38.0", r"table1/plain, paper: unknown figure 'AP5'; did you mean"),
        ("AP: 38.0", "AP: 38.0 (1)", "AP must be a number as printed, 'diverges' or '\\?', got '38.0 \\(1\\)'"),
        ("AP: 38.0", "AP: [38.0]", "AP must be a number as printed"),
        ("paper: {AP: 38.0, params_M: 1.0}", "paper: 38.0", "table1/plain, paper: expected a mapping, got '38.0'"),
        ("reason: cited, ", "", "table1/star: give a config, or the reason why there is none"),
        ("reason: cited", "reason: cited, config: x", "table1/star: give a config, or the reason"),
        ("[a.b=1]", "[a.b]", r"ours/wide: overrides must be a list of key=value, got \['a.b'\]"),
        ("[a.b=1]", "a.b=1", "ours/wide: overrides must be a list"),
        ("      wide:", "      Wide:", "ours/Wide: a name has lower-case letters"),
        ("      star:", "      plain:", "not valid YAML: 'plain' stands twice .* line 8"),
        ("AP: 38.0", "AP: 38.0, AP: 38.1", "'AP' stands twice"),
        ("tables:", "tables: {", "not valid YAML"),
    ],
)
def test_errors_name_file_and_row(tmp_path, old, new, message):
    assert FILE.count(old) >= 1
    file = write(tmp_path, FILE.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as error:
        load_paper(file)
    assert str(file) in str(error.value)


def test_missing_configs_are_named(tmp_path):
    paper = load_paper(write(tmp_path, FILE.replace("densenet121", "densnet121")))
    found = missing_configs(paper.entries)
    assert len(found) == 3 and "table1/plain: no config projects/LIP/configs/densnet121" in found[0]
    assert "did you mean densenet121_imagenet_90e.py" in found[0] and "ours/wide: no config" in found[1]


# ---------------------------------------------------------------- tables
def test_table(tmp_path):
    paper = load_paper(write(tmp_path))
    costs = {"projects/LIP/configs/densenet121_imagenet_90e.py": COST}
    assert tables.render_table(paper, "main", costs) == [
        "| table | row | config | AP / S / M / L | parameters | here |",
        "|---|---|---|---|---|---|",
        "| 1 | plain | [densenet121_imagenet_90e](../LIP/configs/densenet121_imagenet_90e.py) | 38.0 | 1,234,567 "
        "| not trained |",
        r"| 1 | plain\* | – | 40.5 / ? / 20 | – | – |",
        r"| ours | **a\|b** | [x](configs/x.py), [.yaml](configs/x.yaml), `a.b=1` | – | not measured "
        "| not trained |",
    ]


def test_columns_of_counts(tmp_path):
    text = FILE.replace("paper: Test, 2021", "paper: Test, 2021\nparameters: mmdetection")
    text = text.replace("    title: Main\n", "    title: Main\n    base: table1/plain\n")
    text = text[: text.index("      table: table")] + "".join(
        f"      {kind}: {kind}\n"
        for kind in (
            *("inference parameters", "printed parameters", "printed millions", "extra parameters"),
            *("multiply-adds", "multiply-adds with norms", "counted FLOPs", "linked row", "other AP"),
        )
    )
    paper = load_paper(write(tmp_path, text))
    costs = {str(paper.entries[0].model): replace(COST, parameters_mmdetection=42_845_000, with_norms_G=120.04)}
    assert tables.render_table(paper, "main", costs)[2] == (
        "| 1,000,000 | 42,845,000 | 42.9 | 0 | 12.346 | 120.0 | 120.0 "
        "| [plain](../LIP/configs/densenet121_imagenet_90e.py) | – |"
    )
    assert tables.render_table(paper, "main", costs)[4].endswith("| [**a\\|b**](configs/x.py) | **about 39** |")


def test_here_is_what_was_trained(tmp_path):
    paper = load_paper(write(tmp_path, FILE.replace("paper: {AP: 38.0,", "here: {AP: 37.9}, paper: {AP: 38.0,")))
    assert tables.render_table(paper, "main", {})[2].endswith("| not measured | 37.9 |")


def test_readme(tmp_path):
    paper = load_paper(write(tmp_path))
    readme = paper.folder / "README.md"
    readme.write_text("# Test\n<!-- results: main -->\nold\n<!-- end -->\ntail\n")
    text = tables.render_readme(paper, {})
    assert text.startswith("# Test\n<!-- results: main -->\n\n| table |") and text.endswith("|\n\n<!-- end -->\ntail\n")
    readme.write_text(text)
    assert tables.render_readme(paper, {}) == text
    for broken, message in (
        ("# Test\n", "must have one place '<!-- results: main -->'"),
        (text + text, "must have one place"),
        (text.replace(": main", ": mian"), "has no table 'mian'; did you mean main"),
    ):
        readme.write_text(broken)
        with pytest.raises(UserError, match=message):
            tables.render_readme(paper, {})


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("here: here", "here: hear", "readme/main: unknown kind of column 'hear'; did you mean here"),
        ("[table1, ours/wide]", "[table1, ours/wade]", "no table or row 'ours/wade'; did you mean ours/wide"),
        ("    columns:", "    column:", "readme/main: expected rows and columns"),
    ],
)
def test_errors_of_tables(tmp_path, old, new, message):
    paper = load_paper(write(tmp_path, FILE.replace(old, new)))
    with pytest.raises(UserError, match=message):
        tables.render_table(paper, "main", {})


# ---------------------------------------------------------------- differences
@pytest.mark.parametrize(
    "number, like, twice, wanted",
    [(4.112, "4.1", False, "4.1"), (5.342, "5.33", False, "5.34"), (42.845, "42.9", True, "42.9")]
    + [(42.8449, "42.9", True, "42.8"), (42.845, "42.8", False, "42.8"), (2.5, "3", False, "3")],
)
def test_rounded(number, like, twice, wanted):
    assert rounded(number, like, twice) == wanted


def test_compare(tmp_path):
    paper = load_paper(write(tmp_path))
    (missing,) = compare(paper.entries, {})
    assert missing.ours is None and not missing.agrees and "not measured" in str(missing)
    (found,) = compare(paper.entries, {str(paper.entries[0].model): COST})
    assert found == Comparison(paper.entries[0], "params_M", "1.0", 1.234567) and found.rounded == "1.2"
    assert "| test/table1/plain | parameters, M | 1.0 | 1.235 | +0.235 (+23.5%) | – |" in report.render(
        [paper], {str(paper.entries[0].model): COST}
    )
    assert "| Test, 2021 | Table 1 | 2 | 2 | 1 | 1 |" in report.render([paper], {})


def test_flops_may_be_of_another_config(tmp_path):
    text = FILE.replace("params_M: 1.0", "flops_G: 12.5").replace("row: plain,", "row: plain, flops_of: other,")
    paper = load_paper(write(tmp_path, text))
    (found,) = compare(paper.entries, {"projects/Test/configs/other.py": COST})
    assert found.agrees and found.ours == 12.5


# ---------------------------------------------------------------- search
def test_search(tmp_path):
    entries = load_paper(write(tmp_path)).entries
    assert words("Table 2d, a_b 0.2") == words("table2d a_b 0.2") == ["table", "2d", "a_b", "0.2", "a", "b"]
    assert [e.name for e in search(entries, "densenet121")] == ["plain"]
    assert [e.name for e in search(entries, "dense")] == ["plain"]  # the start of a word
    assert [e.name for e in search(entries, "cited plain")] == ["star", "plain"]
    assert search(entries, "nothing of this") == []


# ---------------------------------------------------------------- counting
def tiny(*overrides):
    return load_config(str(ROOT / TINY), overrides)


def test_counts_are_fvcores():
    """Of a detector that keeps as many proposals as its RPN reports; convolutions and matrix products."""
    kept = 50
    cfg = tiny(f"model.proposal_generator.post_nms_topk=[{kept},{kept}]", "model.proposal_generator.nms_thresh=1.1")
    size = (64, 96)
    ours, _ = cost.multiply_adds(cost.build(cfg), size)
    torch.manual_seed(0)
    model = cost.instantiate(cfg.model).eval()
    seen = []
    model.roi_heads.box_head.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    image = torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    theirs = flop_count_operators(model, [{"image": image, "height": size[0], "width": size[1]}])
    assert set(seen) == {kept}
    products = sum(theirs.get(name, 0) for name in ("conv", "linear", "addmm", "matmul"))
    assert ours == pytest.approx(products, rel=1e-6) and theirs["conv"] > 0 and products > theirs["conv"]


@pytest.mark.parametrize(
    "config, plain, with_norms",
    [  # as the papers' specs and fvcore have them, at 224 x 224
        ("projects/LIP/configs/lip_resnet50_imagenet_90e.py", 5.300, 5.342),
        ("projects/DEPLA/configs/depla_resnet50_adaptive_imagenet_100e.py", None, 4.209),
        ("projects/DEPLA/configs/depla_seresnet50_imagenet_100e.py", None, 4.208),
    ],
)
def test_classifiers(config, plain, with_norms):
    cfg = load_config(str(ROOT / config))
    assert cost.image_size(cfg) == (224, 224)
    found = cost.multiply_adds(cost.build(cfg), (224, 224))
    assert found[1] == pytest.approx(with_norms, abs=5.1e-4)
    assert plain is None or found[0] == pytest.approx(plain, abs=5.1e-4)


def test_deformable_convolutions_count():
    """c3 to c5 of ResNet-50 at 800 x 1344 get offsets of 18 channels by 3x3; the convolutions themselves stay."""
    found = []
    for name in ("", "_dcn"):
        cfg = load_config(str(ROOT / f"projects/MSFM/configs/faster_rcnn_r50{name}_fpn_1x.py"))
        assert cost.image_size(cfg) == (800, 1333)
        found.append(cost.multiply_adds(cost.build(cfg), cost.image_size(cfg))[0])
    stages = ((4, 128, 16_800), (6, 256, 4_200), (3, 512, 1_050))  # blocks, width, cells
    assert found[1] - found[0] == pytest.approx(sum(n * 9 * w * 18 * p for n, w, p in stages) / 1e9, rel=1e-6)


def test_deformable_convolutions_of_torchvision_count():
    """As in RepPoints."""

    class Net(nn.Module):
        def forward(self, inputs):
            x = inputs[0]["image"].new_zeros(1, 4, 3, 5)
            return deform_conv2d(x, x.new_zeros(1, 18, 3, 5), x.new_zeros(6, 4, 3, 3), padding=1)

    assert cost.multiply_adds(Net(), (8, 8))[0] == pytest.approx(6 * 15 * 4 * 9 / 1e9)


def test_every_proposal_counts():
    """InterNet's units on 1000 RoIs: 3x3 of 256 channels on 14 x 14; 3x3 to 512 on 7 x 7, 7x7 to 1024."""
    found = []
    for name in ("baseline", "internet"):
        model = cost.build(load_config(str(ROOT / f"projects/InterNet/configs/{name}_r50_fpn_512.py")))
        found.append(cost.multiply_adds(model, (512, 512))[0])
    units = 196 * 9 * 256 * 256 + 49 * 9 * 256 * 512 + 49 * 512 * 1024
    assert found[1] - found[0] == pytest.approx(1000 * units / 1e9, rel=1e-6)


def test_mask_head_counts_a_hundred_boxes():
    found = []
    for name in ("mask", "faster"):
        model = cost.build(load_config(str(ROOT / f"configs/baselines/{name}_rcnn_r50_fpn_1x.py")))
        found.append(cost.multiply_adds(model, (800, 1333))[0])
    box = 4 * 196 * 9 * 256 * 256 + 784 * 256 * 256 + 784 * 256 * 80  # 14 x 14 four times, 28 x 28 twice
    assert found[0] - found[1] == pytest.approx(100 * box / 1e9, rel=1e-6)


def test_norms_and_means():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            norms = (nn.BatchNorm2d(4), FrozenBatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True))
            self.norms = nn.ModuleList(norms)

        def forward(self, inputs):
            x = inputs[0]["image"].new_zeros(1, 4, 3, 5)
            return [norm(x) for norm in self.norms], x.mean(dim=(2, 3))

    net = Net().to("meta")
    assert cost.multiply_adds(net, (8, 8)) == (0, pytest.approx((2 + 2 + 5 + 5 + 1) * 60 / 1e9))
    assert all(not norm._forward_hooks for norm in net.norms)


def test_models_are_left_as_they_were():
    cfg = tiny()
    model = cost.build(cfg)
    before = {name: dict(vars(m)) for name, m in model.named_modules()}
    cost.multiply_adds(model, (64, 64))
    after = {name: dict(vars(m)) for name, m in model.named_modules()}
    assert {n: v.keys() for n, v in before.items()} == {n: v.keys() for n, v in after.items()}


def test_mmdetection_parameters_leave_the_config_as_it_was():
    cfg = load_config(str(ROOT / "projects/MSFM/configs/faster_rcnn_r50_fpn_1x.py"))
    assert cost.mmdetection_parameters(cfg) == 41_527_712
    assert cfg.model.backbone.bottom_up.stem.norm == "FrozenBN"


def test_inference_parameters_lack_what_training_alone_needs():
    total, inference = cost.parameters(cost.build(load_config(str(ROOT / "tests/tiny/labelenc_step2.py"))))
    assert inference == cost.parameters(cost.build(load_config(str(ROOT / "tests/tiny/retinanet.py"))))[0] < total


def test_yaml_configs():
    cfg = load_config(str(ROOT / "tests/tiny/faster_rcnn.yaml"))
    assert cost.image_size(cfg) == (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    total = sum(p.numel() for p in cost.build_model(cfg).parameters())
    assert cost.parameters(cost.build(cfg)) == (total, total) and cfg.MODEL.DEVICE == "cpu"


# ---------------------------------------------------------------- the file of measurements
def test_measure_all_goes_on_where_it_stopped(tmp_path, monkeypatch):
    file, done = tmp_path / "index.json", []

    def measure(model, mmdetection):
        if model.config == "broken":
            raise UserError("stop")
        done.append(model.config)
        return replace(COST, parameters_mmdetection=7 if mmdetection else None)

    monkeypatch.setattr(measured, "measure", measure)
    wanted = {Model("a"): False, Model("broken"): False, Model("b", ("x=1",)): True}
    with pytest.raises(UserError, match="stop"):
        measured.measure_all(wanted, file, say=lambda _: None)
    assert done == ["a"] and list(measured.read(file)) == ["a"]
    del wanted[Model("broken")]
    costs = measured.measure_all(wanted, file, say=lambda _: None)
    assert done == ["a", "b"] and costs == measured.read(file) and costs["b x=1"].parameters_mmdetection == 7
    measured.measure_all({Model("a"): True}, file, say=lambda _: None)  # lacks MMDetection's
    assert done == ["a", "b", "a"] and measured.read(file)["a"].parameters_mmdetection == 7
    measured.measure_all(wanted, file, again=True, say=lambda _: None)
    assert done == ["a", "b", "a", "a", "b"]
    measured.drop_others([Model("a"), Model("c")], file)
    assert list(measured.read(file)) == ["a"]


def test_a_broken_file_is_named(tmp_path):
    for text in ("{", "{}", '{"models": {"a": {"parameters": 1}}}'):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(UserError, match="index.json is not an index of measurements"):
            measured.read(tmp_path / "index.json")


def test_measure_and_changed():
    found = measured.measure(Model(TINY), False)
    assert found.parameters_mmdetection is None and found.torch == torch.__version__.partition("+")[0]
    assert measured.changed(Model(TINY), False, found, with_cost=True) == []
    other = replace(found, parameters=1, multiply_adds_G=2.0, date="")
    assert measured.changed(Model(TINY), False, other, False) == [f"parameters is {found.parameters}, was 1"]
    assert len(measured.changed(Model(TINY), False, other, True)) == 2


def test_check_says_what_is_wrong(tmp_path, monkeypatch):
    text = FILE.replace("projects/LIP/configs/densenet121_imagenet_90e", f"projects/../{TINY}")
    text = text.replace("config: x.py", f"config: projects/../{TINY}").replace("also: {.yaml: x.yaml}, ", "")
    entries = load_paper(write(tmp_path, text)).entries
    plain, wide = str(entries[0].model), str(entries[2].model)
    said = []
    monkeypatch.setattr(measured, "read", lambda: {plain: COST})
    with pytest.raises(UserError, match="3 problem"):
        check.run(entries, say=said.append)
    assert f"{plain}: parameters is" in said[0] and "was 1234567" in said[0]
    assert said[2].startswith(f"{wide}: UserError: Unknown config key 'a.b'")
    assert any("1 printed parameters and FLOPs, 1 of them other than ours" in line for line in said)
