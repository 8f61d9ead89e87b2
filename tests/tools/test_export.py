"""tools/export.py: the file gives what the model gives, on images that the recorder has not seen, and without us."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from shared.config import load_config
from shared.errors import UserError
from shared.export import FORMATS, ExportProgram
from shared.export.program import largest_difference
from shared.export.tracing import traceable
from shared.ops import library
from shared.training.run import make_run
from tests.image_folders import make_image_folder
from tests.paths import ROOT
from tests.projects.test_steps import shrink
from tests.scenes import make_coco
from tools import export

FASTER, RETINANET = str(ROOT / "tests/tiny/faster_rcnn.py"), str(ROOT / "tests/tiny/retinanet.py")
YAML = str(ROOT / "tests/tiny/faster_rcnn.yaml")
HOSTS = {  # as docs/exporting.md calls them
    "RetinaNet": "configs/quickstart_retinanet.py",
    "FCOS": "projects/MuSu/configs/quick_fcos.py",
    "MuSu": "projects/MuSu/configs/quick.py",
    "RepPoints": "projects/Detectors/configs/reppoints_quick.py",
    "Faster R-CNN": "configs/quickstart.py",
    "Mask R-CNN": "configs/baselines/mask_rcnn_r50_fpn_1x.py",
    "Cascade R-CNN": "configs/baselines/cascade_rcnn_r50_fpn_1x.py",
    "Cascade Mask R-CNN": "configs/baselines/cascade_mask_rcnn_r50_fpn_1x.py",
    "Grid R-CNN": "projects/Detectors/configs/grid_rcnn_quick.py",
    "Dynamic R-CNN": "projects/Detectors/configs/dynamic_rcnn_quick.py",
    "with InterNet": "projects/InterNet/configs/quick.py",
    "with DEPLA": "projects/DEPLA/configs/faster_rcnn_depla_quick.py",
    "with LIP": "projects/LIP/configs/faster_rcnn_lip_quick.py",
    "with MSFM": "projects/MSFM/configs/faster_rcnn_msfm_quick.py",
    "classifier": "configs/classification/digits_resnet.py",
}
LOADER = """
import sys, torch, torchvision
outputs = torch.jit.load(sys.argv[1])(torch.load(sys.argv[2]))
assert not {"detectron2", "projects", "shared"} & set(sys.modules)
torch.save(outputs, sys.argv[3])
"""


@pytest.fixture
def trained(tmp_path):
    """A function that makes weights of a tiny config and an image; returns the flags of the tool, and the model."""

    def make(config, *opts):
        torch.manual_seed(0)
        model = instantiate(LazyConfig.load(config).model).eval()
        torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
        _, images = make_coco(tmp_path / "coco", images=2)
        flags = ["--config-file", config, "--weights", str(tmp_path / "weights.pth")]
        return [*flags, "--image", str(images / "0.png"), *opts], model

    return make


def run(flags, kind, output, *more):
    export.main([*flags, "--format", kind, "--output", str(output), *more])


def image_of(flags, size=None):
    return export.example_image(make_run(load_config(flags[1])), flags[5], size)


# ---------------------------------------------------------------- whole models, in a process of their own
def run_alone(script, tmp_path, *files):
    """In a process that finds nothing of this repository."""
    (tmp_path / "load.py").write_text(script)
    command = [sys.executable, "-I", str(tmp_path / "load.py"), *map(str, files)]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)


@pytest.mark.parametrize("config", [FASTER, RETINANET], ids=["faster_rcnn", "retinanet"])
def test_torchscript_without_the_repository(config, trained, tmp_path, capsys):
    flags, model = trained(config)
    run(flags, "torchscript", tmp_path / "detector.pt")
    out = capsys.readouterr().out
    assert "input    3 x 64 x 64, uint8, BGR" in out and "outputs  boxes, scores, classes" in out
    other = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    torch.save(other, tmp_path / "image.pt")
    files = [tmp_path / name for name in ("detector.pt", "image.pt", "outputs.pt")]
    done = run_alone(LOADER, tmp_path, *files)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        instances = model([{"image": other}])[0]["instances"]
    expected = (instances.pred_boxes.tensor, instances.scores, instances.pred_classes)
    assert len(instances) > 10
    for a, b in zip(expected, torch.load(files[2]), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5)


def test_notes_in_the_file(trained, tmp_path):
    """Size, channels, outputs and class names; another size than the example's."""
    flags, _ = trained(RETINANET)
    run(flags, "torchscript", tmp_path / "d.pt", "--size", "64", "96", "+train.class_names=[red,green,blue]")
    notes = {"export.json": ""}
    program = torch.jit.load(tmp_path / "d.pt", _extra_files=notes)
    notes = json.loads(notes["export.json"])
    assert notes["input"] == {"size": [3, 64, 96], "dtype": "uint8", "channels": "BGR"}
    assert notes["outputs"] == ["boxes", "scores", "classes"] and notes["class_names"] == ["red", "green", "blue"]
    assert program(torch.zeros(3, 64, 96, dtype=torch.uint8))[0].shape[1] == 4


def test_class_names_of_the_data(trained, tmp_path):
    """Of a .py config, which holds none itself."""
    flags, _ = trained(RETINANET)
    run(flags, "torchscript", tmp_path / "d.pt", "dataloader.test.dataset.names=digits_val")
    notes = {"export.json": ""}
    torch.jit.load(tmp_path / "d.pt", _extra_files=notes)
    assert json.loads(notes["export.json"])["class_names"] == [str(i) for i in range(10)]


def test_backbone_by_torch_export(trained, tmp_path):
    flags, model = trained(RETINANET)
    run(flags, "torch.export", tmp_path / "b.pt2", "--part", "backbone")
    notes = {"export.json": ""}
    program = torch.export.load(tmp_path / "b.pt2", extra_files=notes).module()
    names = json.loads(notes["export.json"])["outputs"]
    image = image_of(flags).flip(0)
    with torch.no_grad():
        expected = model.backbone(model.preprocess_image([{"image": image}]).tensor)
        got = program(image)
    assert names == list(expected) == ["p3", "p4", "p5"]
    for name, value in zip(names, got, strict=True):
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


def test_yaml(tmp_path, capsys):
    torch.save(make_run(load_config(YAML)).build_model().state_dict(), tmp_path / "w.pth")
    _, images = make_coco(tmp_path, images=1)
    flags = ["--config-file", YAML, "--weights", str(tmp_path / "w.pth"), "--image", str(images / "0.png")]
    run(flags, "torchscript", tmp_path / "d.pt")
    assert "checked  on 4 images" in capsys.readouterr().out


def test_classifier(tmp_path, capsys):
    config = str(ROOT / "tests/tiny/classifier.py")
    cfg = load_config(config, ["model.num_classes=3"])
    torch.save({"model": instantiate(cfg.model).state_dict()}, tmp_path / "w.pth")
    image = make_image_folder(tmp_path / "images") / "a_red/0.png"
    flags = ["--config-file", config, "--weights", str(tmp_path / "w.pth"), "--image", str(image)]
    run(flags, "torch.export", tmp_path / "c.pt2", "model.num_classes=3")
    assert "outputs  scores" in capsys.readouterr().out
    program = torch.export.load(tmp_path / "c.pt2").module()
    scores = program(torch.zeros(3, 16, 16, dtype=torch.uint8))[0]
    assert scores.shape == (3,) and float(scores.sum()) == pytest.approx(1)


# ---------------------------------------------------------------- what is refused
def refused(capsys, *args):
    with pytest.raises(SystemExit) as e:
        run(*args)
    assert e.value.code == 2
    return capsys.readouterr().err


def test_bad_input(trained, tmp_path, capsys):
    flags, _ = trained(RETINANET)
    assert "must end in .pt, as --format torchscript does" in refused(capsys, flags, "torchscript", tmp_path / "d.onnx")
    (tmp_path / "there.pt").write_text("mine")
    assert "exists already" in refused(capsys, flags, "torchscript", tmp_path / "there.pt")
    missing = [*flags[:-1], str(tmp_path / "no.png")]
    assert "no.png does not exist" in refused(capsys, missing, "torchscript", tmp_path / "d.pt")
    (tmp_path / "bad.png").write_text("no image")
    assert "bad.png cannot be read" in refused(
        capsys, [*flags[:-1], str(tmp_path / "bad.png")], "torchscript", tmp_path / "d.pt"
    )
    sizes = refused(capsys, flags, "torchscript", tmp_path / "d.pt", "--size", "0", "64")
    assert "--size must be at least 1 x 1 pixels, got 0 x 64" in sizes
    if os.path.isdir("/proc"):  # where nobody can write
        assert "/proc" in (said := refused(capsys, flags, "torchscript", "/proc/d.pt")) and "cannot be written" in said
    nothing = ["model.test_score_thresh=1.0"]
    assert "finds nothing" in refused(capsys, flags, "torchscript", tmp_path / "d.pt", *nothing)
    assert not (tmp_path / "d.pt").exists() and not list(tmp_path.glob("tmp*"))


def test_a_program_that_differs_is_not_written(trained, tmp_path, capsys, monkeypatch):
    flags, _ = trained(RETINANET)
    load = type(FORMATS["torchscript"]).load

    def other(self, path):
        program = load(self, path)
        return lambda image: tuple(x + 1 if x.is_floating_point() else x for x in program(image))

    monkeypatch.setattr(type(FORMATS["torchscript"]), "load", other)
    assert "differ from the model's by 1" in refused(capsys, flags, "torchscript", tmp_path / "d.pt")
    assert not (tmp_path / "d.pt").exists()


def test_what_a_format_cannot_record(trained, tmp_path, capsys, monkeypatch):
    flags, _ = trained(RETINANET)

    def record(self, program, image):
        raise RuntimeError("data-dependent\n expression")

    monkeypatch.setattr(type(FORMATS["torch.export"]), "record", record)
    message = refused(capsys, flags, "torch.export", tmp_path / "d.pt2")
    assert "cannot record this model (RuntimeError: data-dependent expression): take torchscript, onnx" in message


def test_onnx_needs_packages(trained, tmp_path, capsys, monkeypatch):
    flags, _ = trained(RETINANET)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = refused(capsys, flags, "onnx", tmp_path / "d.onnx")
    assert "run pip install onnx onnxscript onnxruntime" in message


# ---------------------------------------------------------------- parts
def test_sizes_are_recorded():
    """A slice of as many rows as another tensor has: `len` as a constant would give the example's."""
    from detectron2.structures import Boxes

    def count(boxes):
        return boxes.new_zeros(_length_of(Boxes(boxes)))

    with traceable():
        program = torch.jit.trace(count, (torch.rand(3, 4),), check_trace=False)
    assert program(torch.rand(5, 4)).shape == (5,)


def _length_of(boxes):
    return boxes.__len__()


def test_largest_difference():
    """Detections in another order are the same; another class, number or box is not."""
    names = ("boxes", "scores", "classes")
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 20], [0, 0, 10, 10]])
    a = (boxes, torch.tensor([0.9, 0.8, 0.8]), torch.tensor([1, 1, 2]))
    order = torch.tensor([0, 2, 1])
    assert largest_difference(names, a, tuple(x[order] for x in a)) == 0
    moved = (boxes + torch.tensor([0.0, 0, 0, 0.25]), *a[1:])
    assert largest_difference(names, a, moved) == 0.25
    assert largest_difference(names, a, (*a[:2], torch.tensor([1, 1, 1]))) == float("inf")
    assert largest_difference(names, a, tuple(x[:2] for x in a)) == float("inf")
    empty = tuple(x[:0] for x in a)
    assert largest_difference(names, empty, empty) == 0
    assert largest_difference(("maps",), (torch.zeros(2),), (torch.full((2,), 0.5),)) == 0.5


def test_native_ops_are_named():
    class Text(type(FORMATS["torchscript"])):
        def text(self, recorded):
            return recorded

    assert Text().native_ops("%1 = d2ops::lip_pool2d(%2)\n torch.ops.d2ops.soft_roi_pool.default(x)") == [
        "lip_pool2d",
        "soft_roi_pool",
    ]
    assert Text().native_ops("aten::add") == []


@pytest.mark.slow
@pytest.mark.skipif(not library.available, reason="the native ops are not built")
@pytest.mark.parametrize("kind", ["torchscript", "torch.export"])
def test_native_ops_need_their_library_and_the_reference_nothing(kind, tmp_path, monkeypatch):
    image = torch.randint(0, 256, (3, 96, 128), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    torch.save(image, tmp_path / "image.pt")
    program, form = ExportProgram(small("with LIP")), FORMATS[kind]
    with torch.no_grad():
        expected = program(image)
    load = "torch.jit.load(sys.argv[1])" if kind == "torchscript" else "torch.export.load(sys.argv[1]).module()"
    script = LOADER.replace("torch.jit.load(sys.argv[1])", load)
    native = next((ROOT / "shared/ops").glob("_C*.so"))
    for choice, ops in (("native", ["lip_pool2d"]), ("reference", [])):
        monkeypatch.setenv("SHARED_OPS", choice)
        recorded = form.record(program, image)
        assert form.native_ops(recorded) == ops
        files = [tmp_path / name for name in (f"{choice}{form.suffix}", "image.pt", f"{choice}.outputs")]
        form.save(recorded, str(files[0]), {})
        alone = run_alone(script, tmp_path, *files)
        assert (alone.returncode == 0) == (choice == "reference"), alone.stderr
        if choice == "native":
            with_library = f"import torch; torch.ops.load_library({str(native)!r})\n" + script
            done = run_alone(with_library, tmp_path, *files)
            assert done.returncode == 0, done.stderr
        difference = largest_difference(program.output_names, expected, torch.load(files[2]))
        assert difference <= form.tolerance


# ---------------------------------------------------------------- the table of docs/exporting.md
def table():
    text = (ROOT / "docs/exporting.md").read_text()
    rows = re.search(r"<!-- formats.*?-->\n(.*?)<!-- /formats -->", text, flags=re.DOTALL)[1].splitlines()
    header, _, *rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert header == ["model", *FORMATS]
    return {row[0]: dict(zip(FORMATS, row[1:], strict=True)) for row in rows}


def test_table_has_every_host():
    assert list(table()) == list(HOSTS)
    assert {cell for row in table().values() for cell in row.values()} <= {"yes", "no"}


def small(host):
    torch.manual_seed(0)
    cfg = load_config(str(ROOT / HOSTS[host]))
    cfg.train.device = "cpu"
    if host == "classifier":
        cfg.model.num_classes = 10
    heads = cfg.model.get("roi_heads", {})
    if "baselines" in HOSTS[host]:
        for head in heads.get("box_heads") or [heads.box_head]:
            head.fc_dims = [64]
        for predictor in heads.get("box_predictors") or [heads.box_predictor]:
            predictor.input_shape = ShapeSpec(channels=64)
    model = shrink(cfg).eval()
    for module in model.modules():
        if hasattr(module, "test_score_thresh"):
            module.test_score_thresh = 0.0  # untrained, but with detections
        if hasattr(module, "test_topk_per_image"):
            module.test_topk_per_image = 10  # masks of many take seconds
    return model


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.slow
def test_table_is_true(host, kind, tmp_path, monkeypatch):
    try:
        FORMATS[kind].check_packages()
    except UserError as e:
        pytest.skip(str(e))
    if kind == "onnx":
        monkeypatch.setenv("SHARED_OPS", "reference")
    size = (32, 32) if host == "classifier" else (96, 128)
    image = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    program, path = ExportProgram(small(host)), str(tmp_path / f"m{FORMATS[kind].suffix}")
    try:
        recorded = export.record(program, image, FORMATS[kind])
        FORMATS[kind].save(recorded, path, {})
        export.check(program, path, image, FORMATS[kind])
        works = "yes"
    except UserError as e:
        works, why = "no", str(e)
    assert works == table()[host][kind], locals().get("why")
