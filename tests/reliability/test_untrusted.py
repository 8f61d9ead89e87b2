"""Files that somebody else made: no checkpoint, pickle or YAML runs code, no annotation file leads out of its folder.

Each payload makes a marker file; none may appear."""

import contextlib
import json
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import train_net
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils import comm
from shared.checkpoint import WeightsCheckpointer
from shared.config import load_config
from shared.data.coco_sets import register_coco_set
from shared.data.named_errors import NamedErrors
from shared.errors import UserError
from tests.paths import ROOT
from tests.reliability.corpus import LAZY, YAML, save_config
from tests.reliability.payload import malicious_pkl, malicious_pth
from tests.scenes import make_coco, own_data_flags
from tools import convert_lip_checkpoint, labelenc_weights, predict, strip_checkpoint

TINY = ROOT / "tests/tiny"
KINDS = {
    "zip": ("w.pth", malicious_pth),
    "legacy": ("w.pth", lambda marker: malicious_pth(marker, legacy=True)),
    "pkl": ("w.pkl", malicious_pkl),
    "pkl 0": ("w.pkl", lambda marker: malicious_pkl(marker, protocol=0)),
}


@pytest.fixture(params=KINDS)
def malicious(request, tmp_path):
    """Path of a checkpoint with a payload. At its end, no payload has run."""
    name, make = KINDS[request.param]
    file = tmp_path / name
    file.write_bytes(make(tmp_path / "marker"))
    yield str(file)
    assert not (tmp_path / "marker").exists()


def refuses(capsys, main, *argv) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in argv])
    assert e.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1]


def test_the_payload_works(tmp_path):
    """What the tests below guard against: each of the files, loaded without care, makes the marker."""
    for name, make in KINDS.values():
        marker, file = tmp_path / "marker", tmp_path / name
        file.write_bytes(make(marker))
        if name.endswith("pkl"):
            pickle.loads(file.read_bytes())
        else:
            torch.load(file, weights_only=False)
        assert marker.exists()
        marker.unlink()


# ---------------------------------------------------------------- checkpoints and pickles
def test_every_process_checks(malicious, monkeypatch):
    """Not only the main one: all of them read the file."""
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    with pytest.raises(UserError, match="Weights file"):
        WeightsCheckpointer(torch.nn.Linear(1, 1)).load(malicious)


@pytest.mark.parametrize("suffix", ["#", "?matching_heuristics=True#", "#.pth"])
def test_name_that_is_opened_as_another_one(tmp_path, suffix):
    """Parsed as an address, `w.pkl#` becomes `w.pkl`."""
    (tmp_path / f"w.pkl{suffix}").write_bytes(pickle.dumps({"model": {"weight": np.zeros((1, 1), np.float32)}}))
    (tmp_path / "w.pkl").write_bytes(malicious_pkl(tmp_path / "marker"))
    with contextlib.suppress(UserError):
        WeightsCheckpointer(torch.nn.Linear(1, 1)).load(str(tmp_path / f"w.pkl{suffix}"))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("config", [LAZY, YAML], ids=["lazy", "yaml"])
def test_initial_weights(malicious, config, capsys, tmp_path):
    output, weights = (
        ("train.output_dir", "train.init_checkpoint") if config == LAZY else ("OUTPUT_DIR", "MODEL.WEIGHTS")
    )
    flags = [
        "--config-file",
        config,
        *own_data_flags(tmp_path),
        f"{output}={tmp_path / 'run'}",
        f"{weights}={malicious}",
    ]
    assert malicious in refuses(capsys, train_net.cli, *flags)
    assert malicious in refuses(capsys, train_net.cli, *flags, "--dry-run")


def test_resumed_checkpoint(capsys, tmp_path):
    """The last checkpoint of a run folder that came from elsewhere."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "model_0000001.pth").write_bytes(malicious_pth(tmp_path / "marker"))
    (run / "last_checkpoint").write_text("model_0000001.pth")
    flags = ["--config-file", LAZY, *own_data_flags(tmp_path), f"train.output_dir={run}", "--resume"]
    assert "model_0000001.pth" in refuses(capsys, train_net.cli, *flags)
    assert not (tmp_path / "marker").exists()


def test_weights_of_labelenc(malicious, capsys, tmp_path):
    """Files that a config's model reads: step 1's encoder, and a teacher's weights."""
    flags = own_data_flags(tmp_path)
    output = f"train.output_dir={tmp_path / 'second'}"
    second = ["--config-file", TINY / "labelenc_step2.py", *flags, output, f"model.label_enc.step1_weights={malicious}"]
    assert malicious in refuses(capsys, train_net.cli, *second)
    teacher = [
        f"model.label_enc.teacher_config={TINY / 'retinanet.py'}",
        f"model.label_enc.teacher_weights={malicious}",
    ]
    taught = ["--config-file", TINY / "labelenc_kd.py", *flags, f"train.output_dir={tmp_path / 'taught'}", *teacher]
    assert malicious in refuses(capsys, train_net.cli, *taught)


TOOLS = {
    "predict": (
        predict.main,
        ["--config-file", LAZY, "--weights", "{file}", "--input", "{images}", "--output", "{out}"],
    ),
    "strip": (strip_checkpoint.main, ["--config-file", LAZY, "--weights", "{file}", "--output", "{out}"]),
    "convert lip": (convert_lip_checkpoint.main, ["--input", "{file}", "--output", "{out}.pth"]),
    "labelenc export": (
        labelenc_weights.main,
        ["export", "--config-file", TINY / "labelenc_step1.py", "--weights", "{file}", "--output", "{out}.pth"],
    ),
    "labelenc merge": (
        labelenc_weights.main,
        ["merge", "--config-file", TINY / "labelenc_step2.py", "--weights", "{file}", "--output", "{out}.pth"],
    ),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_tools(tool, malicious, capsys, tmp_path):
    _, images = make_coco(tmp_path)
    main, argv = TOOLS[tool]
    words = dict(file=malicious, images=images, out=tmp_path / "out")
    assert malicious in refuses(capsys, main, *(str(a).format(**words) for a in argv))


CHECKS = re.compile(r"load_trained|trained_model|make_predictor|WeightsCheckpointer|check_weights_file|train_net\.py")


def test_every_tool_that_takes_weights_checks_them():
    """Through WeightsCheckpointer, which the other functions call, by check_weights_file, or in train_net.py."""
    tools = [file for file in (ROOT / "tools").glob("*.py") if '"--weights"' in file.read_text()]
    assert len(tools) >= 9
    for file in tools:
        assert CHECKS.search(file.read_text()), file


UNSAFE = re.compile(
    r"weights_only=False|pickle\.loads?\(|cloudpickle\.loads?\(|yaml\.(unsafe_|full_)?load\(|joblib|np\.load\(|"
    r"allow_pickle|[^.\w](eval|exec)\(|os\.system|shell=True|torch\.hub|marshal|LazyConfig\.load\("
)
ALLOWED = {  # what our commands may do, with the reason
    "shared/config.py": {"LazyConfig.load("},  # a .py config: code, by name
    "projects/hosts.py": {"LazyConfig.load("},  # the collection's own building blocks
    "tools/pairs.py": {"LazyConfig.load("},  # likewise
    "shared/trust.py": {"yaml.load(", "os.system"},  # with a safe loader; a docstring
    "shared/results_index/entries.py": {"yaml.load("},  # with a safe loader
}


def test_no_unsafe_loading_in_the_source():
    """Of train_net.py, shared/, projects/ and tools/: what unpickles, evaluates or runs a string."""
    files = [
        ROOT / "train_net.py",
        *(f for part in ("shared", "projects", "tools") for f in (ROOT / part).rglob("*.py")),
    ]
    found = {}
    for file in files:
        lines = [line.split("#")[0] for line in file.read_text().splitlines()]
        hits = {m.group() for line in lines for m in UNSAFE.finditer(line)}
        name = str(file.relative_to(ROOT))
        if hits := hits - ALLOWED.get(name, set()):
            found[name] = hits
        assert not re.search(r"torch\.load\((?![^)]*weights_only=True)", "\n".join(lines)), name
    assert not {k: v for k, v in found.items() if "/configs/" not in k}, found


def test_tampered_cifar_is_not_unpickled(tmp_path, monkeypatch):
    """CIFAR-10 is made of pickles: torchvision reads those of the known checksums alone."""
    from shared.classification import register_cifar10
    from tests.reliability.payload import Payload

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps({"data": Payload(tmp_path / "marker")}))
    with pytest.raises(UserError, match="incomplete or damaged"):
        DatasetCatalog.get(register_cifar10("test"))
    assert not (tmp_path / "marker").exists()


def test_pickle_beside_a_saved_config_is_never_read(tmp_path):
    """LazyConfig.save may write config.yaml.pkl."""
    save_config(LAZY, tmp_path / "config.yaml")
    (tmp_path / "config.yaml.pkl").write_bytes(malicious_pkl(tmp_path / "marker"))
    load_config(str(tmp_path / "config.yaml"))
    assert not (tmp_path / "marker").exists()


# ---------------------------------------------------------------- help and paths
def test_help_says_that_a_config_is_code():
    """In a process of its own, as a user sees it."""
    command = [sys.executable, str(ROOT / "train_net.py"), "--help"]
    text = " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "A .py config is code: run only files that you trust." in text and "DETECTION_TRUST" in text


@pytest.mark.parametrize("how", ["absolute", "dots", "link", "linked folder"])
def test_no_set_in_coco_format_leads_out_of_its_folder(how, tmp_path):
    """Also one that Detectron2's own function registered, as the built-in ones are: then when a picture is read."""
    file, root = make_coco(tmp_path / "data")
    content = json.loads(file.read_text())
    secret = tmp_path / "secret.png"
    os.rename(root / "1.png", secret)
    if how == "link":
        (root / "1.png").symlink_to(secret)
    elif how == "linked folder":
        (root / "out").symlink_to(tmp_path)
        content["images"][1]["file_name"] = "out/secret.png"
    else:
        content["images"][1]["file_name"] = str(secret) if how == "absolute" else "../../secret.png"
    file.write_text(json.dumps(content))
    name = f"untrusted_{how}"
    register_coco_instances(name, {}, str(file), str(root))
    try:
        records = DatasetCatalog.get(name)
        mapper = NamedErrors(lambda record: record, [name])
        assert [mapper(r)["image_id"] for r in records if r["image_id"] != 2] == [1, 3, 4]
        with pytest.raises(UserError, match="leads out of the image folder"):
            mapper(records[1])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_image_folder_may_be_a_link(tmp_path):
    """A link to the whole folder is the user's own."""
    file, root = make_coco(tmp_path / "data")
    (tmp_path / "images").symlink_to(root)
    name = register_coco_set(str(file), str(tmp_path / "images"))
    mapper = NamedErrors(lambda record: record, [name])
    assert all(map(mapper, DatasetCatalog.get(name)))


def test_name_of_a_set_is_no_path(tmp_path):
    """The corrected copy of its annotations is a temporary file, whatever the set is called."""
    file, root = make_coco(tmp_path / "data")
    mine = tmp_path / "precious.json"
    mine.write_text("mine")
    name = register_coco_set(str(file), str(root), name=str(mine.with_suffix("")), skip_bad_records=True)
    assert DatasetCatalog.get(name) and mine.read_text() == "mine"


def test_image_folders_of_voc_count_too(tmp_path):
    """One set of COCO's format and one of VOC's: both have a folder, and no other is read."""
    file, root = make_coco(tmp_path / "data")
    coco = register_coco_set(str(file), str(root))
    MetadataCatalog.get("untrusted_voc").set(dirname=str(tmp_path / "voc"))
    try:
        mapper = NamedErrors(lambda record: record, [coco, "untrusted_voc"])
        assert mapper({"file_name": str(tmp_path / "voc/JPEGImages/1.jpg")})
        with pytest.raises(UserError, match="leads out of the image folder .* or .*voc"):
            mapper({"file_name": str(tmp_path / "secret.png")})
    finally:
        MetadataCatalog.remove("untrusted_voc")
