"""Weights: no code runs, nothing half matches in silence."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from shared.checkpoint import WeightsCheckpointer, check_weights_file
from shared.errors import UserError


class Evil:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (open, (self.target, "w"))


class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.a = nn.Linear(2, width)
        self.b = nn.Linear(width, 1)


def test_pickle_of_arrays_is_accepted(tmp_path):
    content = {"model": OrderedDict(w=np.ones((2, 3), np.float32)), "__author__": "x"}
    for protocol in (2, 4, 5):
        (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        check_weights_file(str(tmp_path / "w.pkl"))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickle_with_code_is_refused_and_not_run(tmp_path, protocol):
    target = tmp_path / "made"
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": Evil(target)}, protocol=protocol))
    with pytest.raises(UserError, match=r"w.pkl' would run \w+\.open when loaded: refused"):
        check_weights_file(str(tmp_path / "w.pkl"))
    assert not target.exists()


def test_pth_with_code_is_refused_and_not_run(tmp_path):
    target = tmp_path / "made"
    torch.save({"model": Evil(target)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="is not a checkpoint of tensors and plain values"):
        WeightsCheckpointer(Net()).load(str(tmp_path / "w.pth"))
    assert not target.exists()


def test_missing_broken_and_foreign_files(tmp_path):
    with pytest.raises(UserError, match="no.pth' does not exist"):
        check_weights_file(str(tmp_path / "no.pth"))
    for name in ("a.pth", "a.pkl"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(UserError, match=f"{name}' is not"):
            check_weights_file(str(tmp_path / name))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no state dict but list"):
        check_weights_file(str(tmp_path / "list.pth"))


def load(tmp_path, saved: nn.Module, model: nn.Module) -> WeightsCheckpointer:
    torch.save({"model": saved.state_dict()}, tmp_path / "w.pth")
    checkpointer = WeightsCheckpointer(model)
    checkpointer.load(str(tmp_path / "w.pth"))
    return checkpointer


def test_full_match(tmp_path):
    checkpointer = load(tmp_path, Net(), Net())
    assert checkpointer.report == (4, [], [], [])
    checkpointer.require("w", every=True)
    assert checkpointer.describe() == "4 of the model's 4 entries matched"


def test_partial_match_names_keys(tmp_path):
    saved = Net(5)
    saved.c = nn.Linear(1, 1, bias=False)
    checkpointer = load(tmp_path, saved, Net(3))
    text = checkpointer.describe()
    # b.bias alone has the same shape for both widths
    assert text.startswith("1 of the model's 4 entries matched; 3 of another shape (a.weight, a.bias")
    assert "1 in the file only (c.weight)" in text
    checkpointer.require("w.pth", every=False)
    with pytest.raises(UserError, match="'w.pth' are of another architecture.*1 of the model's 4"):
        checkpointer.require("w.pth", every=True)


def test_no_match_is_refused(tmp_path):
    checkpointer = load(tmp_path, nn.Sequential(nn.Linear(7, 7)), Net())
    with pytest.raises(UserError, match="0 of the model's 4 entries matched; 4 not in the file"):
        checkpointer.require("w.pth", every=False)
