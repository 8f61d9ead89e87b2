"""The evaluation loop, and results printed, verified and flattened."""

import logging
from collections import OrderedDict

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.evaluation.testing import flatten_results_dict


class Recorder(DatasetEvaluator):
    def __init__(self, results=None):
        self.results, self.seen = results, ["stale"]

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen.append((inputs, outputs))

    def evaluate(self):
        return self.results


def test_loop_calls_everything_in_order_without_gradients():
    evaluator, calls = Recorder({"a": 1}), []

    def model(x):
        calls.append("model")
        assert not torch.is_grad_enabled()
        return x * 10

    names = ("on_start", "before_inference", "after_inference", "on_end")
    callbacks = {name: lambda name=name: calls.append(name) for name in names}
    assert inference_on_dataset(model, [1, 2], evaluator, callbacks) == {"a": 1}
    assert evaluator.seen == [(1, 10), (2, 20)]  # "stale" is gone: reset came first
    batch = ["before_inference", "model", "after_inference"]
    assert calls == ["on_start", *batch, *batch, "on_end"]
    assert torch.is_grad_enabled()


def test_loop_takes_a_module_in_eval_mode_and_several_evaluators_or_none():
    model = nn.Dropout(0.5)
    ones = torch.ones(64)
    first, second = Recorder({"a": 1}), Recorder({"b": 2})
    assert inference_on_dataset(model, [ones], [first, second]) == {"a": 1, "b": 2}
    for evaluator in (first, second):
        assert torch.equal(evaluator.seen[0][1], ones)  # nothing dropped
    assert model.training
    assert inference_on_dataset(model, [ones], None) == {}
    assert inference_on_dataset(model, [ones], Recorder(None)) == {}


def test_loop_needs_a_length():
    with pytest.raises(TypeError):
        inference_on_dataset(nn.Identity(), iter([1]), None)


def test_merged_results():
    merged = DatasetEvaluators([Recorder({"a": 1}), Recorder(None), Recorder({"b": 2})])
    assert merged.evaluate() == OrderedDict(a=1, b=2)
    with pytest.raises(AssertionError, match="key"):
        DatasetEvaluators([Recorder({"a": 1}), Recorder({"a": 1})]).evaluate()


@pytest.mark.parametrize("training", [True, False])
def test_inference_context_restores_the_mode(training):
    model = nn.Sequential(nn.Dropout()).train(training)
    with inference_context(model):
        assert not model.training and not model[0].training
    assert model.training == model[0].training == training


@pytest.mark.embedded_only  # upstream stays in eval mode
def test_inference_context_restores_the_mode_after_an_error():
    model = nn.Dropout()
    with pytest.raises(ZeroDivisionError), inference_context(model):
        1 / 0  # noqa: B018
    assert model.training


# -------------------------------------------------------------------------------------- results
def test_print_csv_format(caplog):
    caplog.set_level(logging.INFO, "detectron2.evaluation.testing")
    print_csv_format(OrderedDict(bbox={"AP": 1.23456, "AP-cat": 3.0, "AP50": float("nan")}, task=3))
    assert caplog.messages == [
        "copypaste: Task: bbox",
        "copypaste: AP,AP50",  # AP-cat has a "-"
        "copypaste: 1.2346,nan",
        "copypaste: task=3",
    ]
    with pytest.raises(AssertionError):
        print_csv_format([1])


def test_verify_results():
    cfg = get_cfg()
    assert verify_results(cfg, {})
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 38.5, 0.25], ["segm", "AP", 30.0, 1.0]]
    assert verify_results(cfg, {"bbox": {"AP": 38.75}, "segm": {"AP": 29.0}})
    for wrong in (38.76, 38.24, float("nan"), float("inf")):
        with pytest.raises(SystemExit) as error:
            verify_results(cfg, {"bbox": {"AP": wrong}, "segm": {"AP": 30.0}})
        assert error.value.code == 1
    with pytest.raises(SystemExit):
        verify_results(cfg, {"bbox": {"AP": 38.5}, "segm": {}})


@pytest.mark.embedded_only  # upstream raises KeyError
def test_verify_results_without_the_task():
    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 38.5, 0.2]]
    with pytest.raises(SystemExit):
        verify_results(cfg, {})


def test_flatten_results_dict():
    nested = {"bbox": {"AP": 1, "size": {"small": 2}}, "seconds": 3}
    assert flatten_results_dict(nested) == {"bbox/AP": 1, "bbox/size/small": 2, "seconds": 3}
