"""Checkpoints are whole or not there; a damaged one gives way to the one before it."""

import errno
import math
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from shared.checkpoint import WeightsCheckpointer, checkpoint_to_resume
from shared.errors import UserError
from shared.files import INCOMPLETE, DiskError, disk_errors, remove_incomplete, whole_file

from .runs import assert_same_run, make_config, train


class Counter:
    """A checkpointable."""

    def __init__(self):
        self.value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of iterations 4 and 9."""
    model, counter = nn.Linear(300, 300), Counter()
    checkpointer = WeightsCheckpointer(model, str(tmp_path), counter=counter)
    for iteration in (4, 9):
        counter.value = iteration
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    return tmp_path


def names(folder):
    return sorted(os.listdir(folder))


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def flip_bits(file):
    """Within tensors: neither zip's directory nor torch.load look there."""
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    data[largest.header_offset + largest.file_size // 2] ^= 1
    file.write_bytes(data)
    assert torch.load(file, weights_only=True)["iteration"] >= 0


def remove(file):
    file.unlink()


def change(**entries):
    """Another whole file."""

    def damage(file):
        torch.save({**torch.load(file, weights_only=True), **entries}, file)

    return damage


def weights(value):
    return change(model={"weight": torch.tensor([1.0, value]), "history": torch.tensor(math.nan)})


# ---------------------------------------------------------------- which one
def test_the_last_one(folder):
    assert checkpoint_to_resume(str(folder)) == str(folder / "model_0000009.pth")
    assert checkpoint_to_resume(str(folder / "none")) is None
    (folder / "last_checkpoint").write_text("model_0000004.pth")  # killed before it was named
    assert checkpoint_to_resume(str(folder)) == str(folder / "model_0000004.pth")


@pytest.mark.parametrize("damage", [cut, empty, flip_bits, remove])
def test_a_damaged_one_gives_way_with_a_warning(folder, caplog, damage):
    damage(folder / "model_0000009.pth")
    assert checkpoint_to_resume(str(folder)) == str(folder / "model_0000004.pth")
    (message,) = [r.getMessage() for r in caplog.records if r.name == "shared.checkpoint"]
    assert "model_0000009.pth is" in message and "goes on from" in message and "model_0000004.pth" in message


@pytest.mark.parametrize(
    "damage, says",
    [
        (weights(math.nan), "holds weights that are not finite (weight)"),
        (weights(-math.inf), "holds weights that are not finite (weight)"),
        (change(model={}), "holds no weights"),
        (change(model={"weight": "a"}), "holds no weights"),
        (change(iteration="3"), "holds no iteration"),
        (change(iteration=-1), "holds no iteration"),
        (change(run=[1]), "is damaged in its entry 'run'"),
        (change(run={"seed": "3", "processes": [], "metrics": {}}), "is damaged in its entry 'run'"),
        (change(trainer={}), "is damaged in its entry 'trainer'"),
        (change(ema=None), "is damaged in its entry 'ema'"),
    ],
)
def test_one_of_other_content_gives_way(folder, caplog, damage, says):
    """The file itself is whole."""
    damage(folder / "model_0000009.pth")
    assert checkpoint_to_resume(str(folder)) == str(folder / "model_0000004.pth")
    (message,) = [r.getMessage() for r in caplog.records if r.name == "shared.checkpoint"]
    assert f"model_0000009.pth {says}: the run goes on from" in message


def test_buffers_may_hold_nan(folder):
    weights(2.0)(folder / "model_0000009.pth")
    assert checkpoint_to_resume(str(folder)) == str(folder / "model_0000009.pth")


def fill_with_bytes(file):
    file.write_bytes(b"\xff\xfe\0model")


@pytest.mark.parametrize("damage", [empty, remove, fill_with_bytes])
def test_a_damaged_last_checkpoint_file(folder, damage):
    damage(folder / "last_checkpoint")
    torch.save({"model": {}, "iteration": 99}, folder / "model_nonfinite.pth")  # no run goes on from these
    torch.save({"model": {}, "iteration": 99}, folder / "weights.pth")
    assert checkpoint_to_resume(str(folder)) == str(folder / "model_0000009.pth")


def test_all_are_damaged(folder):
    for file in folder.glob("*.pth"):
        cut(file)
    with pytest.raises(UserError, match=r"No checkpoint in .* is whole \(model_0000009.pth is damaged or incomplete;"):
        checkpoint_to_resume(str(folder))


def test_a_run_falls_back(tmp_path):
    """And ends as if nothing had happened, whether iterations are left to do or not."""
    arguments = make_config("retinanet", tmp_path, "train.max_iter=6", "train.checkpointer.period=2")
    arguments += ["train.eval_period=3", "train.checkpointer.max_to_keep=9"]
    train(arguments, tmp_path / "whole")
    damaged = ["model_final.pth", "model_0000005.pth"]
    for number, goes_on in ((1, "model_0000005.pth"), (2, "model_0000003.pth")):
        run = Path(shutil.copytree(tmp_path / "whole", tmp_path / f"damaged_{number}"))
        for name, damage in zip(damaged[:number], (cut, flip_bits)):
            damage(run / name)
        train(arguments, run, "--resume")
        log = (run / "log.txt").read_text()
        assert [f"{name} is damaged" in log for name in damaged] == [True, number == 2]
        assert "the run goes on from" in log and f"{goes_on}, the one before it" in log
        assert_same_run(tmp_path / "whole", run)
        for file in run.glob("*.pth"):
            assert zipfile.ZipFile(file).testzip() is None


# ---------------------------------------------------------------- writing
def test_a_file_is_whole_or_as_before(tmp_path):
    file = tmp_path / "f"
    with whole_file(file, "w") as f:
        f.write("one")
        assert not file.exists()
    with pytest.raises(KeyError), whole_file(file, "w") as f:
        f.write("two")
        raise KeyError
    assert file.read_text() == "one" and names(tmp_path) == ["f"]


def test_a_checkpoint_is_synced_before_it_has_its_name(folder, monkeypatch):
    calls = []
    for name in ("fsync", "replace", "open"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, c=call, **k: (calls.append((n, a)), c(*a, **k))[1])
    WeightsCheckpointer(nn.Linear(1, 1), str(folder)).save("model_0000014", iteration=14)
    steps = [n if n != "replace" else os.path.basename(a[1]) for n, a in calls]
    one = ["fsync", "{}", "open", "fsync"]  # the file, its name, the folder
    expected = [step.format(name) for name in ("model_0000014.pth", "last_checkpoint") for step in one]
    assert steps == expected


def test_leftovers_are_removed(folder):
    (folder / f".model_0000014.pth{INCOMPLETE}").write_bytes(b"half")
    remove_incomplete(str(folder))
    assert names(folder) == ["last_checkpoint", "model_0000004.pth", "model_0000009.pth"]


# ---------------------------------------------------------------- disks
@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mounted)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


def test_full_disk_keeps_the_checkpoint_before(small_disk):
    model = nn.Linear(300, 500)  # 0.6 MB: one has room, two have not
    checkpointer = WeightsCheckpointer(model, str(small_disk))
    checkpointer.save("model_0000004", iteration=4)
    with pytest.raises(DiskError, match=r"cannot be written \(No space left on device\): the disk is full: free some"):
        checkpointer.save("model_0000009", iteration=9)
    assert names(small_disk) == ["last_checkpoint", "model_0000004.pth"]
    assert checkpoint_to_resume(str(small_disk)) == str(small_disk / "model_0000004.pth")


def test_read_only_folder(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(DiskError, match="Read-only file system.: it is read-only: make it writable"):
        WeightsCheckpointer(nn.Linear(1, 1), str(small_disk)).save("model_0000004", iteration=4)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_errors_of_the_run_folder_alone_are_named(tmp_path, number):
    inside, outside = (OSError(number, os.strerror(number), str(f)) for f in (tmp_path / "run/f", tmp_path / "data/f"))
    with pytest.raises(DiskError, match="run/f cannot be written"), disk_errors(str(tmp_path / "run")):
        raise inside
    expected = DiskError if number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) else OSError
    with pytest.raises(expected), disk_errors(str(tmp_path / "run")):
        raise outside
    with pytest.raises(RuntimeError, match="^a bug$"), disk_errors(str(tmp_path / "run")):
        raise RuntimeError("a bug")
