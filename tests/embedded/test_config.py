"""get_cfg, merging of YAML files, configurable."""

import hashlib
import json

import pytest
from omegaconf import OmegaConf

from detectron2.config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg

DIGEST = "c43446d8b399e8df0c330b0c670d57d38db4b4495f5bc78b6b292e30cef3de40"


def flat(cfg, prefix=""):
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} = {value!r}"


def test_defaults_are_upstreams():
    """The digest was recorded from upstream: every key, value and type (tuple or list)."""
    lines = sorted(flat(get_cfg()))
    assert len(lines) == 192
    assert "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)" in lines
    assert "MODEL.RPN.CONV_DIMS = [-1]" in lines
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == DIGEST


def test_get_cfg_returns_independent_copies():
    cfg = get_cfg()
    cfg.MODEL.RPN.IN_FEATURES.append("p2")
    cfg.SOLVER.MAX_ITER = 1
    assert get_cfg().MODEL.RPN.IN_FEATURES == ["res4"] and get_cfg().SOLVER.MAX_ITER == 40000
    assert isinstance(cfg.MODEL.RPN, CfgNode)


def test_global_cfg_is_refilled_in_place():
    set_global_cfg(CfgNode({"A": 1, "B": 2}))
    set_global_cfg(CfgNode({"A": 3}))
    assert global_cfg == {"A": 3}


class TestMergeFromFile:
    @staticmethod
    def merge(tmp_path, text, **kwargs):
        file = tmp_path / "config.yaml"
        file.write_text(text)
        cfg = get_cfg()
        cfg.merge_from_file(str(file), **kwargs)
        return cfg

    def test_base_chain_and_types(self, tmp_path):
        (tmp_path / "root.yaml").write_text("VERSION: 2\nSEED: 8\nVIS_PERIOD: 3\n")
        (tmp_path / "base.yaml").write_text("_BASE_: root.yaml\nSEED: 9\n")
        text = "_BASE_: base.yaml\nSOLVER:\n  STEPS: (1, 2)\n  BASE_LR: 0.5\n"
        cfg = self.merge(tmp_path, text)
        assert (cfg.SEED, cfg.VIS_PERIOD) == (9, 3)
        assert cfg.SOLVER.STEPS == (1, 2) and cfg.SOLVER.BASE_LR == 0.5

    def test_own_dump_merges_back(self, tmp_path):
        cfg = get_cfg()
        cfg.SOLVER.STEPS = (7,)
        merged = self.merge(tmp_path, cfg.dump())
        assert merged.SOLVER.STEPS == (7,)
        assert json.dumps(merged) == json.dumps(cfg)  # inner tuples come back as lists

    def test_unsafe_yaml_is_the_default(self, tmp_path):
        text = "OUTPUT_DIR: !!python/object/apply:os.path.join [a, b]\n"
        assert self.merge(tmp_path, text).OUTPUT_DIR == "a/b"
        with pytest.raises(Exception, match="could not determine a constructor"):
            self.merge(tmp_path, text, allow_unsafe=False)

    def test_unknown_key(self, tmp_path):
        with pytest.raises(KeyError, match="Non-existent config key: MODEL.NOPE"):
            self.merge(tmp_path, "MODEL: {NOPE: 1}\n")

    def test_added_section_is_a_known_key(self, tmp_path):
        file = tmp_path / "config.yaml"
        file.write_text("MODEL: {MYHEAD: {DIM: 3}}\n")
        cfg = get_cfg()
        cfg.MODEL.MYHEAD = CfgNode()
        cfg.MODEL.MYHEAD.DIM = 1
        cfg.merge_from_file(str(file))
        assert cfg.MODEL.MYHEAD.DIM == 3

    def test_missing_file(self):
        with pytest.raises(AssertionError, match="'/nope.yaml' does not exist"):
            get_cfg().merge_from_file("/nope.yaml")

    def test_other_version(self, tmp_path):
        with pytest.raises((AssertionError, ValueError), match="3"):
            self.merge(tmp_path, "VERSION: 3\n")

    @pytest.mark.embedded_only
    def test_version_1_is_not_converted(self, tmp_path):
        with pytest.raises(ValueError, match="VERSION 1; only 2 can be read"):
            self.merge(tmp_path, "VERSION: 1\n")


class Configured:
    @configurable
    def __init__(self, a, b=2, *, c=3):
        """doc"""
        self.values = (a, b, c)

    @classmethod
    def from_config(cls, cfg, b=20):
        return {"a": cfg.SEED, "b": b}


class TestConfigurable:
    def test_explicit_arguments(self):
        assert Configured(1, c=5).values == (1, 2, 5)
        assert Configured(a={}, b=4).values == ({}, 4, 3)  # a dict is no cfg

    def test_cfg(self):
        cfg = get_cfg()
        assert Configured(cfg).values == (-1, 20, 3)
        assert Configured(cfg=cfg).values == (-1, 20, 3)
        assert Configured(OmegaConf.create({"SEED": 6})).values == (6, 20, 3)

    def test_named_arguments_go_to_from_config_and_the_others_override_its_result(self):
        assert Configured(get_cfg(), 21, c=8).values == (-1, 21, 8)
        assert Configured(get_cfg(), b=22).values == (-1, 22, 3)
        assert Configured(get_cfg(), a=5).values == (5, 20, 3)

    def test_variadic_from_config_gets_everything(self):
        class Variadic(Configured):
            @classmethod
            def from_config(cls, cfg, *args, **kwargs):
                return {"a": args, "b": kwargs}

        assert Variadic(get_cfg(), 1, 2, c=8).values == ((1, 2), {"c": 8}, 3)

    def test_subclass_from_config_wins(self):
        class Sub(Configured):
            @classmethod
            def from_config(cls, cfg):
                return {**super().from_config(cfg), "c": cls.__name__}

        assert Sub(get_cfg()).values == (-1, 20, "Sub")

    def test_keeps_doc_and_annotations(self):
        assert Configured.__init__.__doc__ == "doc"

        @configurable(from_config=lambda cfg: {})
        def f(a: int):
            "f's doc"

        assert f.__doc__ == "f's doc" and f.__annotations__ == {"a": int}

    def test_function(self):
        def from_config(cfg, n):
            return {"a": cfg.SEED + n}

        @configurable(from_config=from_config)
        def f(a, b=3):
            return a, b

        assert f(1) == (1, 3) and f(get_cfg(), 4) == (3, 3)
        assert f(cfg=get_cfg(), n=4, b=8) == (3, 8)
        assert f.from_config is from_config

    def test_empty_parentheses(self):
        class A:
            @configurable()
            def __init__(self, a):
                self.a = a

            @classmethod
            def from_config(cls, cfg):
                return {"a": cfg.SEED}

        assert A(get_cfg()).a == -1

    def test_from_config_is_checked_at_every_call(self):
        class A:
            @configurable
            def __init__(self, a):
                pass

        with pytest.raises(AttributeError, match="from_config"):
            A(1)
        A.from_config = staticmethod(lambda cfg: {"a": 1})
        with pytest.raises(TypeError, match="classmethod"):
            A(1)
        A.from_config = classmethod(lambda cls, config: {"a": 1})
        with pytest.raises(TypeError, match="'cfg'"):
            A(get_cfg())

    def test_arguments_that_from_config_cannot_take(self):
        with pytest.raises(TypeError, match="positional arguments"):
            Configured(get_cfg(), 1, 2)
        with pytest.raises(TypeError, match="unexpected keyword argument 'zz'"):
            Configured(get_cfg(), zz=1)

    def test_wrong_use(self):
        with pytest.raises(AssertionError, match="configurable"):
            configurable(lambda a: a)
        with pytest.raises(AssertionError, match="has to be a function|must be a function"):
            configurable(from_config=3)(lambda a: a)
