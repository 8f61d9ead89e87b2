"""LazyCall, instantiate, LazyConfig."""

import builtins
import functools
import logging
import pickle
from collections import OrderedDict
from dataclasses import dataclass, field

import pytest
import torch
import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.config.instantiate import dump_dataclass
from detectron2.layers import ShapeSpec

CALLS = []


def record(**kwargs):
    CALLS.append(kwargs["name"])
    return kwargs


@dataclass
class Point:
    x: object = 1
    children: list = field(default_factory=list)


class NoYaml:
    """YAML reduces by protocol 2, pickle by newer ones."""

    def __init__(self, pickles=True):
        self.pickles = pickles

    def __reduce_ex__(self, protocol):
        if protocol == 2 or not self.pickles:
            raise TypeError("no reduction")
        return str, ("no yaml",)

    def __deepcopy__(self, memo):
        return self


class TestLazyCall:
    def test_target_is_last_and_objects_are_allowed(self):
        cfg = L(OrderedDict)(b=1, a=object, t=(1, 2))
        assert list(cfg) == ["b", "a", "t", "_target_"]
        assert cfg._target_ is OrderedDict and cfg.a is object and cfg.t == [1, 2]

    def test_dataclass_type_becomes_its_shortest_import_string(self):
        assert L(ShapeSpec)(channels=3)._target_ == "detectron2.layers.ShapeSpec"
        assert instantiate(L(ShapeSpec)(channels=3)) == ShapeSpec(channels=3)

    def test_string_and_config_targets(self):
        assert instantiate(L("collections.OrderedDict")(a=1)) == OrderedDict(a=1)
        assert L({"_target_": "x"})(a=1)._target_ == {"_target_": "x"}

    def test_errors(self):
        with pytest.raises(TypeError, match="3"):
            L(3)
        with pytest.raises(TypeError, match="positional"):
            L(OrderedDict)(1)


class TestInstantiate:
    def test_key_order_is_construction_order(self):
        CALLS.clear()
        inner = L(record)(name="inner")
        cfg = L(record)(z=L(record)(name="z", x=inner), a=[L(record)(name="a")], name="outer")
        instantiate(cfg)
        assert CALLS == ["inner", "z", "a", "outer"]

    def test_containers(self):
        out = instantiate(OmegaConf.create([1, {"_target_": "collections.OrderedDict"}]))
        assert type(out) is ListConfig and out[1] == {}
        assert type(instantiate([L(OrderedDict)(a=1)])[0]) is OrderedDict
        modules = instantiate(L(OrderedDict)(m=[L(torch.nn.ReLU)()]))["m"]
        assert isinstance(modules, ListConfig) and isinstance(modules[0], torch.nn.ReLU)

    def test_plain_mapping(self):
        assert instantiate({"_target_": "builtins.dict", "x": [1]}) == {"x": [1]}

    def test_without_target_the_same_object_unresolved(self):
        cfg = OmegaConf.create({"a": 1, "b": "${nope}"})
        assert instantiate(cfg) is cfg
        plain = {"a": L(OrderedDict)()}
        assert instantiate(plain) is plain
        pair = (L(OrderedDict)(),)
        assert instantiate(pair) is pair and instantiate(None) is None

    def test_interpolations_are_resolved_for_the_call(self):
        cfg = OmegaConf.create({"n": 3, "m": L(OrderedDict)(k="${..n}")})
        assert instantiate(cfg.m) == {"k": 3}

    def test_dataclass_in_a_config_is_the_object(self):
        out = instantiate(L(OrderedDict)(s=ShapeSpec(channels=3), l=[ShapeSpec(channels=4)]))
        assert out["s"] == ShapeSpec(channels=3) and type(out["s"]) is ShapeSpec
        # Trap: the ListConfig around the objects makes configs of them again.
        assert isinstance(out["l"][0], DictConfig) and out["l"][0].channels == 4

    def test_target_that_is_a_lazy_call(self):
        @dataclass
        class Maker:
            base: int

            def __call__(self, x):
                return self.base + x

        cfg = L(L(functools.partial(Maker))(base=3))(x=4)
        assert instantiate(cfg) == 7

    def test_errors(self, caplog):
        with pytest.raises(ImportError, match="torch.nn.NOPE"):
            instantiate({"_target_": "torch.nn.NOPE"})
        with pytest.raises(AssertionError, match="_target_ 3"):
            instantiate({"_target_": 3})
        with pytest.raises(TypeError, match="'zz'"), caplog.at_level(logging.ERROR):
            instantiate(L(torch.nn.ReLU)(zz=1))
        assert "ReLU" in caplog.text


def test_dump_dataclass():
    dumped = dump_dataclass(Point(ShapeSpec(channels=2), (Point(), 5)))
    target = f"{__name__}.Point"
    shape = {"channels": 2, "height": None, "width": None, "stride": None}
    assert dumped == {
        "_target_": target,
        "x": {"_target_": "detectron2.layers.ShapeSpec", **shape},
        "children": [{"_target_": target, "x": 1, "children": []}, 5],
    }
    assert instantiate(dumped["x"]) == ShapeSpec(channels=2)
    with pytest.raises(AssertionError, match="dataclass"):
        dump_dataclass(Point)


@pytest.fixture
def tree(tmp_path):
    """A folder with configs that import each other."""
    files = {
        "main.py": """
            import os
            from collections import OrderedDict
            from detectron2.config import LazyCall as L
            from .common.models.net import model, helper
            from .common.train import train
            from .common.train import train as again
            train.max_iter = 5
            plain = dict(a=dict(b=1))
            aslist = [1, 2]
            number = os.path.basename(__file__)
            _hidden = dict(a=1)
            kinds = dict(train=type(train).__name__, again=again.max_iter)
        """,
        "common/train.py": "train = dict(max_iter=1, half='${.max_iter}')\n",
        "common/models/net.py": """
            from torch import nn
            from detectron2.config import LazyCall as L
            from ..train import train
            from ...top import size
            model = L(nn.Linear)(in_features=size["n"], out_features=train.max_iter)
            def helper():
                return 3
        """,
        "top.py": "size = dict(n=7)\n",
    }
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = text.splitlines()
        indent = min((len(x) - len(x.lstrip()) for x in lines if x.strip()), default=0)
        file.write_text("\n".join(x[indent:] for x in lines))
    return tmp_path


class TestLoadPython:
    def test_which_variables_are_kept(self, tree):
        cfg = LazyConfig.load(str(tree / "main.py"))
        assert isinstance(cfg, DictConfig)
        assert set(cfg) == {"model", "train", "again", "plain", "kinds"}

    def test_relative_imports(self, tree):
        cfg = LazyConfig.load(str(tree / "main.py"))
        assert cfg.model == {"in_features": 7, "out_features": 1, "_target_": torch.nn.Linear}
        assert cfg.kinds.train == "DictConfig"

    def test_every_import_is_a_fresh_copy(self, tree):
        cfg = LazyConfig.load(str(tree / "main.py"))
        assert (cfg.train.max_iter, cfg.kinds.again) == (5, 1)
        assert cfg.train.half == 5
        assert LazyConfig.load(str(tree / "common/train.py")).train.max_iter == 1

    def test_keys(self, tree):
        file = str(tree / "main.py")
        assert LazyConfig.load(file, "number") == "main.py"
        plain, aslist = LazyConfig.load(file, ("plain", "aslist"))
        assert isinstance(plain, DictConfig) and plain.a.b == 1 and aslist == [1, 2]
        with pytest.raises(KeyError, match="nope"):
            LazyConfig.load(file, "nope")

    def test_path_is_cleaned_of_dot_folders(self, tree):
        (tree / ".hidden").mkdir()
        (tree / ".hidden" / "file.py").write_text("here = dict(file=__file__)\n")
        cfg = LazyConfig.load(f"{tree}/./.hidden/./file.py")
        assert cfg.here.file == f"{tree}/.hidden/file.py"

    @pytest.mark.embedded_only  # upstream takes the parent of "" for ""
    def test_relative_imports_of_a_file_in_the_current_folder(self, tree, monkeypatch):
        monkeypatch.chdir(tree / "common" / "models")
        assert LazyConfig.load("net.py").model.in_features == 7
        monkeypatch.chdir(tree)
        assert LazyConfig.load("./main.py").model.in_features == 7

    def test_nested_load(self, tree):
        (tree / "outer.py").write_text(
            "from detectron2.config import LazyConfig\n"
            f"inner = LazyConfig.load({str(tree / 'main.py')!r}).train\n"
            "from .top import size\n"
        )
        cfg = LazyConfig.load(str(tree / "outer.py"))
        assert cfg.inner.max_iter == 5 and cfg.size.n == 7

    def test_load_rel(self, tree):
        (tree / "rel.py").write_text(
            "from detectron2.config import LazyConfig\ntrain = LazyConfig.load_rel('common/train.py', 'train')\n"
        )
        assert LazyConfig.load(str(tree / "rel.py")).train.max_iter == 1

    def test_a_file_wins_over_a_folder_of_its_name(self, tree):
        (tree / "common.py").write_text("x = dict(a=1)\n")
        (tree / "two.py").write_text("from .common import x\n")
        assert LazyConfig.load(str(tree / "two.py")).x.a == 1

    @pytest.mark.embedded_only
    def test_star_import(self, tree):
        (tree / "star.py").write_text("from .top import *\nkind = dict(n=type(size).__name__)\n")
        cfg = LazyConfig.load(str(tree / "star.py"))
        assert cfg.size.n == 7 and cfg.kind.n == "DictConfig"

    @pytest.mark.parametrize(
        "line, error",
        [
            ("from . import top", "[Rr]elative import"),
            ("from .common import train", "Cannot import from .*common"),
            ("from .nope import x", "nope.py.*not exist"),
        ],
    )
    def test_import_errors(self, tree, line, error):
        (tree / "bad.py").write_text(line + "\n")
        with pytest.raises(ImportError, match=error):
            LazyConfig.load(str(tree / "bad.py"))

    @pytest.mark.embedded_only
    def test_importing_a_name_that_is_not_there(self, tree):
        (tree / "bad.py").write_text("from .top import nope\n")
        with pytest.raises(ImportError, match="cannot import name 'nope'"):
            LazyConfig.load(str(tree / "bad.py"))

    def test_syntax_error_names_the_file(self, tree):
        (tree / "bad.py").write_text("def f(:\n")
        (tree / "importer.py").write_text("from .bad import f\n")
        for name in ("bad.py", "importer.py"):
            with pytest.raises(SyntaxError, match="bad.py"):
                LazyConfig.load(str(tree / name))

    @pytest.mark.embedded_only
    def test_import_is_put_back_also_after_an_error(self, tree):
        before = builtins.__import__
        (tree / "bad.py").write_text("1 / 0\n")
        with pytest.raises(ZeroDivisionError):
            LazyConfig.load(str(tree / "bad.py"))
        assert builtins.__import__ is before

    def test_absolute_imports_of_packages_with_relative_ones(self, tree):
        (tree / "other.py").write_text("import xml.sax.expatreader as e\nn = dict(a=e.version)\n")
        assert LazyConfig.load(str(tree / "other.py")).n.a

    def test_extension(self, tree):
        with pytest.raises(ValueError, match="main.txt"):
            LazyConfig.load(str(tree / "main.txt"))


class TestSave:
    def save(self, cfg, tmp_path):
        file = tmp_path / "out.yaml"
        LazyConfig.save(cfg, str(file))
        return file

    def test_round_trip(self, tree):
        cfg = LazyConfig.load(str(tree / "main.py"))
        cfg.shape = ShapeSpec(channels=3)
        file = self.save(cfg, tree)
        assert cfg.model._target_ is torch.nn.Linear  # saving changed a copy
        loaded = LazyConfig.load(str(file))
        assert loaded.model._target_ == "torch.nn.Linear"
        assert instantiate(loaded.model).in_features == 7
        assert type(instantiate(loaded.shape)) is ShapeSpec
        assert not (tree / "out.yaml.pkl").exists()
        assert LazyConfig.load(str(file), "train").max_iter == 5

    def test_text(self, tmp_path):
        cfg = OmegaConf.create({"b": {"x": "${..a}", "t": (1, 2)}, "a": "é", "long": "w " * 300})
        cfg.call = L(L(torch.nn.Linear)(n=1))(m=[L(torch.optim.SGD)(lr=0.1)])
        text = self.save(cfg, tmp_path).read_text()
        assert "a: é\n" in text and "x: ${..a}" in text
        assert "_target_: {_target_: torch.nn.Linear, n: 1}" in text
        assert "- {_target_: torch.optim.SGD, lr: 0.1}" in text
        assert max(map(len, text.splitlines())) > 600  # lines are not wrapped
        assert list(yaml.unsafe_load(text)) == ["a", "b", "call", "long"]

    @pytest.mark.embedded_only
    def test_broken_interpolation_survives(self, tmp_path):
        cfg = OmegaConf.create({"a": "${nope}", "b": L(torch.nn.ReLU)(), "c": None})
        loaded = LazyConfig.load(str(self.save(cfg, tmp_path)))
        assert OmegaConf.to_container(loaded) == {"a": "${nope}", "b": {"_target_": "torch.nn.ReLU"}, "c": None}

    @pytest.mark.embedded_only
    def test_missing_value_survives(self, tmp_path):
        cfg = OmegaConf.create({"a": "???", "b": L(torch.nn.ReLU)()})
        loaded = LazyConfig.load(str(self.save(cfg, tmp_path)))
        assert OmegaConf.is_missing(loaded, "a") and loaded.b._target_ == "torch.nn.ReLU"

    def test_lambda_needs_a_pickle(self, tmp_path, caplog):
        cfg = DictConfig({"f": lambda x: x + 1}, flags={"allow_objects": True})
        with caplog.at_level(logging.WARNING):
            file = self.save(cfg, tmp_path)
        assert str(file) in caplog.text
        assert "f:" in file.read_text()
        with open(f"{file}.pkl", "rb") as f:
            assert pickle.load(f).f(1) == 2

    def test_what_yaml_cannot_dump_is_only_pickled(self, tmp_path, caplog):
        cfg = DictConfig({"a": NoYaml(), "b": 1}, flags={"allow_objects": True})
        file = self.save(cfg, tmp_path)
        assert not file.exists()
        with open(f"{file}.pkl", "rb") as f:
            assert pickle.load(f).a == "no yaml"

    def test_what_nothing_can_dump_does_not_stop_the_run(self, tmp_path, caplog):
        cfg = DictConfig({"a": NoYaml(False), "b": 1}, flags={"allow_objects": True})
        assert not self.save(cfg, tmp_path).exists()
        assert "no reduction" in caplog.text
