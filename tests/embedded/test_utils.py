"""registry, file_io, env, memory, serialize, logger, testing."""

import functools
import logging
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision

import detectron2
from detectron2.config import CfgNode
from detectron2.layers import ROIAlign
from detectron2.structures import Boxes, Instances
from detectron2.utils import logger as d2_logger
from detectron2.utils.env import TORCH_VERSION, seed_all_rng
from detectron2.utils.file_io import PathHandler, PathManager
from detectron2.utils.logger import create_small_table, log_every_n, log_every_n_seconds, log_first_n, setup_logger
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.registry import Registry, _convert_target_to_string, locate
from detectron2.utils.serialize import PicklableWrapper
from detectron2.utils.testing import assert_instances_allclose, random_boxes
from detectron2.utils.torch_version_utils import min_torch_version


class Outer:
    class Inner:
        @staticmethod
        def make():
            return 1


class TestPackage:
    def test_version_and_opencl(self):
        assert detectron2.__version__ == "0.6"
        assert os.environ["OPENCV_OPENCL_RUNTIME"] == "disabled"

    @pytest.mark.embedded_only
    def test_import_is_cheap(self):
        code = "import sys, detectron2; assert detectron2.EMBEDDED; print('torch' in sys.modules)"
        folder = os.path.dirname(os.path.dirname(detectron2.__file__))
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"


class TestLocate:
    @pytest.mark.parametrize(
        "name, obj",
        [
            ("torch.optim.SGD", torch.optim.SGD),
            ("torch.optim.sgd.SGD", torch.optim.SGD),
            ("torch.optim", torch.optim),
            ("dict", dict),
            ("builtins.dict", dict),
            ("dict.fromkeys", dict.fromkeys),
            ("detectron2.layers.ROIAlign", ROIAlign),
            # a module hidden behind the function of the same name
            ("torchvision.ops.roi_align", torchvision.ops.roi_align),
            (f"{__name__}.Outer.Inner", Outer.Inner),
            (f"{__name__}.Outer.Inner.make", Outer.Inner.make),
        ],
    )
    def test_found(self, name, obj):
        assert locate(name) == obj

    @pytest.mark.embedded_only
    @pytest.mark.parametrize(
        "name, obj",
        [
            ("torchvision.ops.roi_align.roi_align", torchvision.ops.roi_align),
            ("detectron2.layers.roi_align.ROIAlign", ROIAlign),
        ],
    )
    def test_inside_a_hidden_module(self, name, obj):
        assert locate(name) is obj

    @pytest.mark.parametrize("name", ["nope", "nope.x", "torch.NOPE", "torch.optim.SGD.nope"])
    def test_missing(self, name):
        with pytest.raises(ImportError, match=name):
            locate(name)

    def test_imports_what_is_not_yet_imported(self, tmp_path, monkeypatch):
        (tmp_path / "locpkg" / "sub").mkdir(parents=True)
        (tmp_path / "locpkg" / "sub" / "leaf.py").write_text("class A:\n    x = 3\n")
        monkeypatch.syspath_prepend(tmp_path)
        assert locate("locpkg.sub.leaf.A.x") == 3

    @pytest.mark.embedded_only  # upstream: pydoc's ErrorDuringImport
    @pytest.mark.parametrize("text", ["import nope_dependency", "1 / 0"])
    def test_module_that_cannot_be_imported(self, tmp_path, monkeypatch, text):
        name = f"locbad{len(text)}"
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ImportError, match="nope_dependency|ZeroDivisionError") as e:
            locate(f"{name}.A")
        assert name in str(e.value)


@pytest.mark.parametrize(
    "obj, name",
    [
        (torch.nn.Linear, "torch.nn.Linear"),
        (torch.optim.lr_scheduler.StepLR, "torch.optim.lr_scheduler.StepLR"),
        (torchvision.ops.roi_align, "torchvision.ops.roi_align"),
        (ROIAlign, "detectron2.layers.ROIAlign"),
        (ROIAlign.forward, "detectron2.layers.ROIAlign.forward"),
        (CfgNode._open_cfg, "detectron2.config.config.CfgNode._open_cfg"),  # a new bound method each time
        (locate, "detectron2.utils.registry.locate"),
        (dict, "builtins.dict"),
        (os.path.join, "posixpath.join"),
        (Outer.Inner.make, f"{__name__}.Outer.Inner.make"),
    ],
)
def test_convert_target_to_string(obj, name):
    assert _convert_target_to_string(obj) == name
    assert locate(name) == obj


def test_registry_names_what_is_missing():
    registry = Registry("THINGS")
    registry.register(Outer)
    assert registry.get("Outer") is Outer
    with pytest.raises(KeyError, match="'Nope'.*'THINGS'"):
        registry.get("Nope")


def test_detectron2_paths_are_cached_by_url(tmp_path, monkeypatch):
    """With the file in the cache, nothing is downloaded."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    cached = tmp_path / "detectron2" / "a" / "b.pkl"
    cached.parent.mkdir(parents=True)
    cached.write_text("weights")
    assert PathManager.get_local_path("detectron2://a/b.pkl") == str(cached)
    with PathManager.open("detectron2://a/b.pkl") as f:
        assert f.read() == "weights"
    url = "https://dl.fbaipublicfiles.com/detectron2/a/b.pkl"
    assert PathManager.get_local_path(url) == str(cached)


def test_path_manager_takes_handlers(tmp_path):
    class Handler(PathHandler):
        def _get_supported_prefixes(self):
            return ["testscheme://"]

        def _get_local_path(self, path, **kwargs):
            return str(tmp_path / path.removeprefix("testscheme://"))

    PathManager.register_handler(Handler(), allow_override=True)
    assert PathManager.get_local_path("testscheme://x") == str(tmp_path / "x")


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


class TestEnv:
    def test_seed_all_rng(self):
        seed_all_rng(7)
        expected = draw()
        draw()
        seed_all_rng(7)
        assert draw() == expected and os.environ["PYTHONHASHSEED"] == "7"
        torch.manual_seed(7)
        assert expected == (random.Random(7).random(), np.random.RandomState(7).rand(), torch.rand(1))

    def test_without_a_seed_it_is_random(self, caplog):
        with caplog.at_level(logging.INFO):
            seed_all_rng()
            first = draw()
            seed_all_rng(None)
        assert draw() != first and os.environ["PYTHONHASHSEED"] in caplog.text

    def test_versions(self):
        major, minor = torch.__version__.split(".")[:2]
        assert TORCH_VERSION == (int(major), int(minor))
        assert min_torch_version("2.9") and min_torch_version(torch.__version__.split("+")[0])
        assert not min_torch_version(f"{major}.{int(minor) + 1}")


class TestRetry:
    @staticmethod
    def failing(n, message="CUDA out of memory. Tried to allocate 1 GiB"):
        calls = []

        @retry_if_cuda_oom
        def f(x, *, y=1):
            "f's doc"
            calls.append((x, y))
            if len(calls) <= n:
                raise RuntimeError(message)
            return x + y

        return f, calls

    @pytest.mark.parametrize("n", [0, 1, 2])
    def test_third_time_pays_for_all(self, n):
        f, calls = self.failing(n)
        assert f(torch.tensor(2), y=3) == 5 and len(calls) == n + 1
        assert f.__doc__ == "f's doc"

    def test_out_of_memory_for_good(self):
        f, calls = self.failing(9)
        with pytest.raises(RuntimeError, match="out of memory"):
            f(1)
        assert len(calls) == 3

    def test_other_errors_pass_at_once(self):
        f, calls = self.failing(9, "shape mismatch")
        with pytest.raises(RuntimeError, match="shape mismatch"):
            f(1)
        assert len(calls) == 1

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_last_try_is_on_the_cpu(self):
        f, calls = self.failing(2)
        assert f(torch.tensor(2, device="cuda"), y=torch.tensor(1, device="cuda")) == 3
        devices = [(x.device.type, y.device.type) for x, y in calls]
        assert devices == [("cuda", "cuda"), ("cuda", "cuda"), ("cpu", "cpu")]


def test_picklable_wrapper():
    n = 3
    wrapped = PicklableWrapper(PicklableWrapper(lambda x: x + n))
    assert wrapped(1) == 4 and not isinstance(wrapped._obj, PicklableWrapper)
    assert pickle.loads(pickle.dumps(wrapped))(1) == 4
    assert PicklableWrapper(Outer).Inner is Outer.Inner
    with pytest.raises(AttributeError, match="nope"):
        PicklableWrapper(Outer).nope()


@pytest.fixture
def screen(capsys):
    """A function: what has been printed since the last call."""
    yield lambda: capsys.readouterr().out
    for name in ("detectron2", "otherlib"):
        logging.getLogger(name).handlers.clear()
    setup_logger.cache_clear()


class TestSetupLogger:
    def test_screen(self, screen, monkeypatch):
        monkeypatch.setenv("NO_COLOR", "1")
        logger = setup_logger()
        assert logger.name == "detectron2" and not logger.propagate
        logging.getLogger("detectron2.data.build").debug("hello")
        logging.getLogger("detectron2.data.build").warning("careful")
        first, second = screen().splitlines()
        assert first.endswith("d2.data.build]: hello") and "detectron2" not in first
        assert "WARNING" in second and second.endswith("careful")

    def test_equal_arguments_add_no_second_handler(self, screen):
        assert setup_logger(name="otherlib", color=False) is setup_logger(name="otherlib", color=False)
        logging.getLogger("otherlib").info("once")
        (line,) = screen().splitlines()
        assert line.endswith("] otherlib INFO: once")

    @pytest.mark.embedded_only  # upstream's screen handler abbreviates the name in the file, too
    def test_file_has_the_full_name(self, screen, tmp_path):
        setup_logger(str(tmp_path / "run"))
        logging.getLogger("detectron2.data").info("hello")
        line = (tmp_path / "run" / "log.txt").read_text()
        assert line.endswith("] detectron2.data INFO: hello\n")

    def test_two_loggers_share_a_file(self, screen, tmp_path):
        for name in ("detectron2", "otherlib"):
            setup_logger(str(tmp_path / "all.log"), name=name, configure_stdout=False)
            logging.getLogger(name).info("hi")
        assert screen() == ""
        lines = (tmp_path / "all.log").read_text().splitlines()
        assert [x.split("] ")[1] for x in lines] == ["detectron2 INFO: hi", "otherlib INFO: hi"]

    @pytest.mark.parametrize("output, file", [("x.txt", "x.txt.rank2"), ("run", "run/log.txt.rank2")])
    def test_other_ranks_write_their_own_file_only(self, screen, tmp_path, output, file):
        setup_logger(str(tmp_path / output), distributed_rank=2).info("hi")
        assert screen() == ""
        assert (tmp_path / file).read_text().endswith("] detectron2 INFO: hi\n")


class TestRateLimits:
    def test_counted_per_calling_line(self, caplog):
        caplog.set_level(logging.DEBUG)
        for i in range(4):
            log_first_n(logging.INFO, f"first{i}", 2)
            log_first_n(logging.INFO, f"other{i}")
            log_every_n(logging.INFO, f"all{i}")
            log_every_n_seconds(logging.INFO, f"sec{i}", 1000)
        texts = [r.getMessage() for r in caplog.records]
        assert sorted(texts) == sorted(["first0", "first1", "other0", "all0", "all1", "all2", "all3", "sec0"])
        assert {r.name for r in caplog.records} == {__name__}

    def test_every_n(self, caplog):
        caplog.set_level(logging.DEBUG)
        for i in range(7):
            log_every_n(logging.WARNING, f"{i}", 3, name="cap")
        assert [(r.name, r.getMessage()) for r in caplog.records] == [("cap", "0"), ("cap", "3"), ("cap", "6")]

    def test_every_n_seconds(self, caplog, monkeypatch):
        caplog.set_level(logging.DEBUG)
        now = 1000.0
        monkeypatch.setattr(d2_logger.time, "time", lambda: now)
        for i in range(6):
            log_every_n_seconds(logging.INFO, f"{i}", 2)
            now += 1
        assert [r.getMessage() for r in caplog.records] == ["0", "2", "4"]

    def test_keys(self, caplog):
        caplog.set_level(logging.DEBUG)
        both = functools.partial(log_first_n, logging.INFO, key=("caller", "message"), name="cap")
        for i in range(4):
            log_first_n(logging.INFO, f"m{i % 2}", key="message", name="cap")
            both(f"b{i % 2}")
        log_first_n(logging.INFO, "m0", key="message", name="cap")  # the same message elsewhere
        both("b0")  # another caller
        assert [r.getMessage() for r in caplog.records] == ["m0", "b0", "m1", "b1", "b0"]

    @pytest.mark.embedded_only
    def test_wrong_key(self):
        with pytest.raises(AssertionError, match="key='line'"):
            log_first_n(logging.INFO, "x", key="line")


def test_create_small_table():
    head, _, row = create_small_table({"AP": 1.23456, "n": 3}).splitlines()
    assert head.replace(" ", "") == "|AP|n|" and row.replace(" ", "") == "|1.235|3|"


class TestTesting:
    def test_random_boxes(self):
        torch.manual_seed(0)
        expected = (torch.rand(50, 4) * 5).clamp(min=1)
        torch.manual_seed(0)
        boxes = random_boxes(50, max_coord=10)
        torch.testing.assert_close(boxes[:, :2], expected[:, :2])
        torch.testing.assert_close(boxes[:, 2:], expected[:, :2] + expected[:, 2:])

    def make(self, shift=0.0, cls=1, size=(3, 4)):
        boxes = Boxes([[0.0, 0, 100 + shift, 50]])
        return Instances(size, pred_boxes=boxes, pred_classes=torch.tensor([cls]))

    def test_instances_allclose(self):
        assert_instances_allclose(self.make(), self.make(1e-4))  # 100 * 1e-5 is the limit
        assert_instances_allclose(self.make(1.0), self.make(), rtol=0.02)
        size = torch.tensor([3, 4])
        assert_instances_allclose(self.make(), self.make(size=size), size_as_tensor=True)

    @pytest.mark.parametrize("other", [{"shift": 0.1}, {"cls": 2}, {"size": (4, 3)}])
    def test_instances_that_differ(self, other):
        with pytest.raises(AssertionError):
            assert_instances_allclose(self.make(), self.make(**other))
        with pytest.raises(AssertionError):
            assert_instances_allclose(self.make(), Instances((3, 4)))

    def test_field_without_a_tensor(self):
        a = Instances((3, 4), names=["x"])
        with pytest.raises(ValueError, match="names|list"):
            assert_instances_allclose(a, a)
