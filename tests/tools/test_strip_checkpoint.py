"""tools/strip_checkpoint.py, and what modules say about parts for training alone."""

import resource

import pytest
import torch
from torch import nn

from detectron2.config import LazyConfig, instantiate
from detectron2.modeling.roi_heads import StandardROIHeads
from shared.training_only import training_only_prefixes
from shared.trust import VARIABLE
from tests.paths import ROOT
from tools import strip_checkpoint

LAZY = str(ROOT / "tests/tiny/faster_rcnn.py")


class Teacher(nn.Module):
    training_only = ("inner",)

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 3)


class HeadsWithTeacher(StandardROIHeads):
    """RoI heads with a part that inference does not use."""

    training_only = ("teacher", "absent")

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.teacher, self.absent = Teacher(), None


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run's config.yaml and checkpoint, of a model with a teacher."""
    monkeypatch.setenv(VARIABLE, "tests")  # whose class the .yaml names
    cfg = LazyConfig.load(LAZY)
    cfg.model.roi_heads._target_ = f"{__name__}.HeadsWithTeacher"
    for part in (cfg.dataloader.train, cfg.dataloader.test):
        part.dataset.names.update(json_file="unused.json", image_root="unused")
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    model = instantiate(cfg.model)
    content = {"model": model.state_dict(), "optimizer": {"state": torch.zeros(5)}, "iteration": 7}
    torch.save(content, tmp_path / "model.pth")
    return tmp_path, model


def strip(folder, *more, config=None, weights="model.pth", output="small.pth"):
    flags = ["--config-file", config or str(folder / "config.yaml"), "--weights", str(folder / weights)]
    strip_checkpoint.main([*flags, "--output", str(folder / output), *more])
    return torch.load(folder / output, weights_only=True)


def test_prefixes():
    class Outer(nn.Module):
        training_only = ("b",)

        def __init__(self):
            super().__init__()
            self.a, self.b = Teacher(), Teacher()

    assert training_only_prefixes(Outer()) == ["b.", "a.inner."]  # b.inner is in b
    assert training_only_prefixes(nn.Linear(1, 1)) == []
    outer = Outer()
    outer.training_only = ("c",)
    with pytest.raises(ValueError, match="Outer.training_only names 'c'"):
        training_only_prefixes(outer)


def test_removes_the_teacher_and_the_optimizer_alone(run, capsys):
    folder, model = run
    before = (folder / "model.pth").read_bytes()
    content = strip(folder)
    teacher = {f"roi_heads.teacher.inner.{kind}" for kind in ("weight", "bias")}
    assert set(content) == {"model"}
    assert set(model.state_dict()) - set(content["model"]) == teacher
    for key, value in content["model"].items():
        torch.testing.assert_close(value, model.state_dict()[key], rtol=0, atol=0)
    out = capsys.readouterr().out
    assert "roi_heads.teacher: 2 entries, 9 numbers" in out  # 2 x 3 weights, 3 biases
    assert "removed  optimizer" in out and "removed  iteration" in out
    assert (folder / "model.pth").read_bytes() == before


def test_detections_stay_the_same(run):
    folder, model = run
    other = instantiate(LazyConfig.load(str(folder / "config.yaml")).model)
    other.load_state_dict(strip(folder)["model"], strict=False)
    image = [{"image": torch.randint(0, 255, (3, 64, 64), generator=torch.Generator().manual_seed(0)).float()}]
    with torch.no_grad():
        first, second = (m.eval()(image)[0]["instances"] for m in (model, other))
    assert len(first) > 0
    torch.testing.assert_close(first.scores, second.scores, rtol=0, atol=0)
    torch.testing.assert_close(first.pred_boxes.tensor, second.pred_boxes.tensor, rtol=0, atol=0)


def test_model_without_such_parts_and_yaml(run, capsys):
    folder, _ = run
    for config in (LAZY, str(ROOT / "tests/tiny/faster_rcnn.yaml")):
        model = strip_checkpoint.build_on_cpu(config, [])
        torch.save(model.state_dict(), folder / "bare.pth")
        content = strip(folder, config=config, weights="bare.pth", output=f"{config[-1]}.pth")
        assert set(content["model"]) == set(model.state_dict())
        assert "it has none for training alone" in capsys.readouterr().out


def refused(capsys, *args, **kwargs):
    with pytest.raises(SystemExit) as e:
        strip(*args, **kwargs)
    assert e.value.code == 2
    return capsys.readouterr().err


def test_refuses_to_overwrite(run, capsys):
    folder, _ = run
    assert "model.pth exists already" in refused(capsys, folder, output="model.pth")
    assert "is a folder: name a file" in refused(capsys, folder, output=".")
    (folder / "file").write_text("x")
    assert "cannot be made" in refused(capsys, folder, output="file/small.pth")


def test_a_file_that_cannot_be_written_is_not_there(run, capsys):
    """A limit on the size of files, as a full disk."""
    folder, _ = run
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        said = refused(capsys, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be written (File too large)" in said and "Traceback" not in said
    assert sorted(file.name for file in folder.iterdir()) == ["config.yaml", "model.pth"]
    assert strip(folder)


def test_refuses_other_weights(run, capsys):
    folder, model = run
    assert "does not exist" in refused(capsys, folder, weights="no.pth")
    (folder / "w.pkl").write_bytes(b"")
    assert "must be a .pth file" in refused(capsys, folder, weights="w.pkl")
    state = {k: v for k, v in model.state_dict().items() if "cls_score.weight" not in k}
    torch.save({"model": state}, folder / "part.pth")
    message = refused(capsys, folder, weights="part.pth")
    assert "1 entries are missing or of another shape, such as roi_heads.box_predictor.cls_score.weight" in message
    message = refused(capsys, folder, "model.roi_heads.num_classes=4")
    assert "another architecture" in message and "box_predictor" in message
    assert not (folder / "small.pth").exists()
