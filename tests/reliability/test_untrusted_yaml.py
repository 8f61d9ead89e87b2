"""YAML that somebody else made: it makes no object, and calls nothing outside the trusted modules."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

import train_net
from detectron2.config import LazyConfig
from shared import trust
from shared.config import load_config
from shared.errors import UserError
from shared.predictor import LazyConfigModel, predictor_cfg
from shared.trust import read_lazy_yaml, trusted_callable
from tests.paths import ROOT
from tests.reliability.corpus import LAZY, save_config
from tests.reliability.test_untrusted import refuses
from tests.scenes import own_data_flags

TINY = ROOT / "tests/tiny"


def tags(marker) -> list[str]:
    return [
        f"!!python/object/apply:builtins.open ['{marker}', 'w']",
        f"!!python/object/new:builtins.open ['{marker}', 'w']",
        f"!!python/object/apply:os.mkdir ['{marker}']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/object:tests.reliability.payload.Payload {marker: x}",
        "!!python/object/apply:detectron2.layers.ShapeSpec []",
    ]


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("kind", ["cfgnode", "lazy", "model text"])
def test_yaml_that_makes_objects(kind, number, tmp_path):
    marker = tmp_path / "marker"
    tag = tags(marker)[number]
    if kind == "cfgnode":
        (tmp_path / "a.yaml").write_text(f"VERSION: 2\nOUTPUT_DIR: {tag}\n")
    else:
        (tmp_path / "a.yaml").write_text(f"model: {tag}\ntrain: {{}}\ndataloader: {{}}\noptimizer: {{}}\n")
    with pytest.raises(UserError):
        if kind == "model text":
            cfg = predictor_cfg(load_config(LAZY), "w.pth")
            cfg.MODEL.LAZY.YAML = f"model: {tag}\n"
            LazyConfigModel(cfg)
        else:
            load_config(str(tmp_path / "a.yaml"))
    assert not marker.exists()


TARGETS = [
    "os.system",
    "builtins.exec",
    "builtins.eval",
    "subprocess.run",
    "shared.config.os.mkdir",
    "shared.config.load_config",
    "shared.trust.yaml.unsafe_load",
    "detectron2.config.LazyConfig.load",
    "detectron2.config.instantiate",
    "detectron2.data.build.load_proposals_into_dataset",
    "detectron2.engine.launch",
    "detectron2.utils.env.setup_custom_environment",
    "torch.load",
    "torch.hub.load",
    "torch.nn.modules.module.__builtins__",
    "torch.nn.Module.__class__",
    "torch.nn.Module.__subclasses__",
    "torch.nn.modules.module.functools.partial",
    "torchvision.datasets.CIFAR10",
    "projects",
    "projects.MSFM.count.load",
    "projects.hosts.project_node",
    "projects.combine.combine_config",
    "torch.nn",
    "pickle.loads",
    "",
    "torch.nn.Conv2d()",
    "..torch.nn.Conv2d",
    17,
    None,
    ["os.system"],
    {"_target_": "torch.nn.Identity"},
    "${model.name}",
]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_target_that_is_not_trusted(target, tmp_path):
    with pytest.raises(UserError, match="^the file: "):
        read_lazy_yaml(yaml.safe_dump({"model": {"a": [{"_target_": target}]}}), "the file")


def test_untrusted_package_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "unheard_of.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\ndef model(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = "model: {_target_: unheard_of.model}\n"
    with pytest.raises(UserError, match=r"key model._target_ names 'unheard_of.model'.*set DETECTION_TRUST=unheard_of"):
        read_lazy_yaml(text, "the file")
    assert not (tmp_path / "marker").exists()
    monkeypatch.setenv(trust.VARIABLE, "else, unheard_of")
    assert read_lazy_yaml(text, "the file") == {"model": {"_target_": "unheard_of.model"}}
    assert (tmp_path / "marker").exists()  # trusted: its code runs


def test_arguments_that_name_pickles(tmp_path):
    call = {"_target_": "detectron2.data.get_detection_dataset_dicts", "names": "x", "proposal_files": ["a.pkl"]}
    with pytest.raises(UserError, match="dataloader.proposal_files can name pickled files"):
        read_lazy_yaml(yaml.safe_dump({"dataloader": call}), "the file")
    hands_on = "{_target_: shared.modeling.changed_resnet.changed_resnet, base: !!python/name:%s '', %s}"
    loader = "detectron2.data.build.build_detection_train_loader"
    for more in ("cfg: {MODEL: {}}", "a: [{b: {DATASETS: {PROPOSAL_FILES_TRAIN: [a.pkl]}}}]"):
        with pytest.raises(UserError, match=r"key model\..* can name pickled files"):
            read_lazy_yaml(f"model: {hands_on % (loader, more)}", "the file")


COMPUTED = [
    "'${oc.create:{_target_:os.mkdir,path:%s}}'",
    "'${oc.decode:\"{_target_:os.mkdir,path:%s}\"}'",
    "'${${train.a}:{_target_:os.mkdir,path:%s}}'",
    "'a ${oc.env:HOME} %s'",
    "!!pairs [a: {_target_: os.mkdir, path: %s}]",
    "!!omap [a: {_target_: os.mkdir, path: %s}]",
    "!!python/tuple [{_target_: os.mkdir, path: %s}]",
    "!!python/object:detectron2.layers.shape_spec.ShapeSpec {channels: '${oc.create:{_target_:os.mkdir,path:%s}}'}",
    "{_target_: torch.nn.Identity, a: [[{_target_: os.mkdir, path: %s}]]}",
]


@pytest.mark.parametrize("value", COMPUTED)
def test_calls_that_no_key_target_shows(value, tmp_path, capsys):
    """OmegaConf's resolvers, and what is neither a mapping nor a list."""
    marker, file = tmp_path / "marker", tmp_path / "config.yaml"
    text = save_config(LAZY, file)
    assert "input_format: BGR" in text
    file.write_text(text.replace("input_format: BGR", f"input_format: {value % marker}"))
    said = refuses(capsys, train_net.cli, "--config-file", file, *own_data_flags(tmp_path), "--dry-run")
    assert str(file) in said and not marker.exists()
    with pytest.raises(UserError):
        cfg = predictor_cfg(load_config(LAZY), "w.pth")
        cfg.MODEL.LAZY.YAML = file.read_text()
        LazyConfigModel(cfg)
    assert not marker.exists()


def test_references_are_read():
    for value in ("${a.b}", "${..a[0].b-c}", "x/${.a}/${...b}"):
        assert read_lazy_yaml(yaml.safe_dump({"k": value}), "the file") == {"k": value}


def test_advice_opens_no_guarded_package():
    for name in ("os.system", "detectron2.config.instantiate", "torch.load", "builtins.exec"):
        with pytest.raises(UserError) as e:
            trusted_callable(name, "a key")
        assert "could run any code." in str(e.value) and trust.VARIABLE not in str(e.value)


def test_yaml_of_its_own_folder(capsys, tmp_path):
    """A run folder from elsewhere, end to end: its config.yaml calls something else."""
    file = tmp_path / "config.yaml"
    text = save_config(LAZY, file)
    assert "_target_: torch.optim.SGD" in text
    file.write_text(text.replace("_target_: torch.optim.SGD", "_target_: os.mkdir"))
    said = refuses(capsys, train_net.cli, "--config-file", file, *own_data_flags(tmp_path))
    assert "optimizer._target_ names 'os.mkdir'" in said and str(file) in said


def test_python_file_that_a_config_names(capsys, tmp_path):
    """A text must not have a program run: a teacher's config is a .yaml, or the collection's own."""
    program = tmp_path / "teacher.py"
    program.write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n")
    flags = [*own_data_flags(tmp_path), f"train.output_dir={tmp_path / 'run'}"]
    names = [f"model.label_enc.teacher_config={program}", "model.label_enc.teacher_weights=w.pth"]
    said = refuses(capsys, train_net.cli, "--config-file", TINY / "labelenc_kd.py", *flags, *names)
    assert "teacher_config names" in said and not (tmp_path / "marker").exists()


def saved_configs() -> list[Path]:
    """One config of each folder; with its siblings, all of the collection's calls: see the slow test."""
    return sorted({f.parent: f for f in all_configs()}.values())


def all_configs() -> list[Path]:
    files = [*(ROOT / "configs").rglob("*.py"), *(ROOT / "projects").glob("*/configs/*.py"), *TINY.glob("*.py")]
    own_class = TINY / "dying.py"  # of the tests, which are not to be trusted
    return sorted(f for f in files if "common" not in f.parts and f != own_class)


def check_round_trip(file: Path, tmp_path) -> None:
    save_config(str(file), tmp_path / "config.yaml")
    again = load_config(str(tmp_path / "config.yaml"))
    LazyConfig.save(again, str(tmp_path / "again.yaml"))
    assert (tmp_path / "again.yaml").read_text() == (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize("file", saved_configs(), ids=lambda f: str(f.relative_to(ROOT)))
def test_saved_configs_are_trusted_and_read_back_whole(file, tmp_path):
    check_round_trip(file, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("file", all_configs(), ids=lambda f: str(f.relative_to(ROOT)))
def test_all_saved_configs_are_trusted_and_read_back_whole(file, tmp_path):
    check_round_trip(file, tmp_path)


RUNS = re.compile(r"load_config\(|LazyConfig\.load|runpy|exec_module")


def test_trusted_modules_of_ours_load_no_config_but_where_it_is_guarded():
    """A new module that runs a config file belongs into trust.UNTRUSTED."""
    entries = [ROOT / entry.replace(".", "/") for entry in trust.TRUSTED if entry.startswith(("projects", "shared"))]
    entries += [folder for folder in (ROOT / "projects").iterdir() if trust.PROJECT.match(f"projects.{folder.name}.")]
    files = [f for e in entries for f in (e.rglob("*.py") if e.is_dir() else [e.with_suffix(".py")])]
    assert len(files) > 80
    loads = {str(f.relative_to(ROOT)) for f in files if RUNS.search(f.read_text())}
    assert {f for f in loads if "/configs/" not in f} == {"projects/LabelEnc/teacher.py", "projects/MSFM/count.py"}


def test_trusted_callable_is_what_its_name_says():
    import torchvision

    assert trusted_callable("torch.nn.Conv2d", "x") is torch.nn.Conv2d
    assert trusted_callable("torchvision.transforms.v2.Resize", "x") is torchvision.transforms.v2.Resize
    with pytest.raises(UserError, match="x names torch.nn.Conv5d, which cannot be found"):
        trusted_callable("torch.nn.Conv5d", "x")


def test_model_of_a_program_needs_no_trust(tmp_path):
    """What a .py config names may be predicted with in the same process, whatever package it is of."""
    cfg = load_config(LAZY)
    cfg.model = OmegaConf.create(
        {"_target_": "tests.reliability.test_untrusted_yaml.Own"}, flags={"allow_objects": True}
    )
    assert isinstance(LazyConfigModel(predictor_cfg(cfg, "w.pth")), Own)


class Own(torch.nn.Identity):
    pass
