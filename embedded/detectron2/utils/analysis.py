"""Operations, activations and parameters of a model, by tracing one inference of it."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import fvcore.nn
import torch
from fvcore.nn import ActivationCountAnalysis, parameter_count, parameter_count_table  # noqa: F401
from torch import Tensor, nn

from detectron2.evaluation.evaluator import inference_context
from detectron2.structures import Instances


class _TensorFunction(nn.Module):
    """`model` with tensors in and out, as tracing wants it.

    inputs: the model's arguments, any nesting of lists, tuples and dicts. `tensors` are the
    tensors among them; everything else is constant. Of the output all tensors are kept.
    """

    def __init__(self, model: nn.Module, inputs: tuple):
        super().__init__()
        self.model, self._inputs = model, inputs
        self.tensors = tuple(_flatten(inputs))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(_flatten(self.model(*_refill(self._inputs, iter(tensors)))))


def _flatten(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Instances):
        value = value.get_fields()
    if isinstance(value, Mapping):
        value = list(value.values())
    value = getattr(value, "tensor", value)  # Boxes, BitMasks, ROIMasks, ImageList
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _flatten(item)


def _refill(value: Any, tensors: Iterator[Tensor]) -> Any:
    """`value` with its tensors replaced, in the order of _flatten."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, Mapping):
        return {k: _refill(v, tensors) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_refill(v, tensors) for v in value)
    return value


class FlopCountAnalysis(fvcore.nn.FlopCountAnalysis):
    """fvcore's analysis for models with nested inputs and outputs; a tuple is several arguments.

    Modules are named under "model".
    """

    def __init__(self, model: nn.Module, inputs: Any):
        function = _TensorFunction(model, inputs if isinstance(inputs, tuple) else (inputs,))
        super().__init__(function, function.tensors)


def flop_count_operators(model: nn.Module, inputs: list) -> defaultdict[str, float]:
    """GFLOPs (multiply-adds) by operator of model(inputs) in eval mode."""
    with inference_context(model):
        counts = FlopCountAnalysis(model, (inputs,)).uncalled_modules_warnings(False).by_operator()
    return defaultdict(float, {op: count / 1e9 for op, count in counts.items()})


def activation_count_operators(model: nn.Module, inputs: list) -> defaultdict[str, float]:
    """Millions of output elements of convolutions and matrix products, as above."""
    function = _TensorFunction(model, (inputs,))
    with inference_context(model):
        analysis = ActivationCountAnalysis(function, function.tensors)
        analysis.unsupported_ops_warnings(False)  # it means all but those operators
        counts = analysis.uncalled_modules_warnings(False).by_operator()
    return defaultdict(float, {op: count / 1e6 for op, count in counts.items()})


def find_unused_parameters(model: nn.Module, inputs: Any) -> list[str]:
    """Parameters that get no gradient from a training step on `inputs`; clears all gradients."""
    assert model.training, "find_unused_parameters runs the losses: call model.train() first."
    model.zero_grad(set_to_none=True)
    losses = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    if isinstance(losses, Mapping):
        losses = sum(losses.values())
    losses.backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    model.zero_grad(set_to_none=True)
    return unused
