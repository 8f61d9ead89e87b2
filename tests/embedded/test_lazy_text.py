"""Overrides from the command line, and configs as Python text."""

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig


class TestOverrides:
    @staticmethod
    def apply(*overrides):
        cfg = OmegaConf.create(
            {"num": 1, "z": {"b": {"c": 1}, "a": 2}, "l": [{"a": 1}, 2], "n": None}, flags={"allow_objects": True}
        )
        cfg.call = L(torch.nn.Linear)(in_features=1)
        out = LazyConfig.apply_overrides(cfg, list(overrides))
        assert out is cfg
        return cfg

    def test_values(self):
        cfg = self.apply("num=2", "z.b.c='3'", "z.a=[1,'2',x]", "l.0.a=1e-3", "new=null")
        assert (cfg.num, cfg.z.b.c, cfg.l[0].a, cfg.new) == (2, "3", 1e-3, None)
        assert cfg.z.a == [1, "2", "x"]

    def test_dicts_are_merged(self):
        assert self.apply("z={q:{r:true}}").z == {"b": {"c": 1}, "a": 2, "q": {"r": True}}
        assert self.apply("call={in_features:5}").call == L(torch.nn.Linear)(in_features=5)

    def test_new_keys_at_any_depth(self):
        cfg = self.apply("x.y.z=1", "n.a=2", "+w=3", "ref=${num}")
        assert (cfg.x.y.z, cfg.n.a, cfg.w, cfg.ref) == (1, 2, 3, 1)

    def test_struct_flag_refuses_new_keys(self):
        cfg = OmegaConf.create({"a": {"b": 1}})
        OmegaConf.set_struct(cfg, True)
        with pytest.raises(Exception, match="not in struct"):
            LazyConfig.apply_overrides(cfg, ["a.c=1"])
        assert LazyConfig.apply_overrides(cfg, ["a.b=2"]).a.b == 2

    def test_errors(self):
        with pytest.raises(NotImplementedError, match="delet"):
            self.apply("~num")
        with pytest.raises(KeyError, match="num.x.*num is"):
            self.apply("num.x=1")
        with pytest.raises(KeyError, match="z.b.c.d"):
            self.apply("z.b.c.d=1")


class TestToPy:
    cfg = DictConfig(
        {
            "z": {"b": "${..a}", "a": 2},
            "a": "x",
            "model": L(torch.nn.Linear)(out_features=2, bias=L(torch.nn.ReLU)(), d={"q": 1}, in_features=[1]),
        },
        flags={"allow_objects": True},
    )

    def test_lines(self):
        lines = "".join(LazyConfig.to_py(self.cfg).split()).replace('"', "'")
        call = "torch.nn.Linear(bias=torch.nn.ReLU(),d={'q':1},in_features=[1],out_features=2)"
        assert lines == f"cfg.a='x'cfg.model={call}cfg.z.a=2cfg.z.b='x'"

    def test_prefix_and_black(self):
        cfg = OmegaConf.create({"b": {"c": "it's"}, "a": [1, 2]})
        assert LazyConfig.to_py(cfg, prefix="c.") == 'c.a = [1, 2]\nc.b.c = "it\'s"\n'
        assert LazyConfig.to_py(cfg, prefix="") == 'a = [1, 2]\nb.c = "it\'s"\n'

    @pytest.mark.embedded_only
    def test_string_targets_and_dicts_in_lists(self):
        cfg = OmegaConf.create({"a": {"_target_": "x.f", "k": 1}, "l": [{"b": 2}], "e": {}})
        assert LazyConfig.to_py(cfg) == 'cfg.a = x.f(k=1)\ncfg.e = {}\ncfg.l = [{"b": 2}]\n'

    def test_unformatted_where_black_refuses(self):
        text = LazyConfig.to_py(OmegaConf.create({"odd key": "a", "b": 1}))
        assert text.replace(" = ", "=").splitlines() == ["cfg.b=1", "cfg.odd key='a'"]
