"""Operations, activations and parameters of a model, by tracing one inference of it."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import fvcore.nn
import torch
from fvcore.nn import ActivationCountAnalysis, parameter_count, parameter_count_table  # noqa: F401
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from detectron2.evaluation.evaluator import inference_context
from detectron2.structures import Instances


class _TensorFunction(nn.Module):
    """`model` with tensors in and out, as tracing wants it: `tensors` are those in its (nested) arguments `inputs`,
    of which everything else is constant. Of the output all tensors are kept."""

    def __init__(self, model: nn.Module, inputs: tuple):
        super().__init__()
        self.model = model
        self._leaves, self._spec = tree_flatten(inputs)
        self.tensors = tuple(x for x in self._leaves if isinstance(x, Tensor))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        leaves = [next(given) if isinstance(x, Tensor) else x for x in self._leaves]
        with torch.no_grad():
            return tuple(_tensors(self.model(*tree_unflatten(leaves, self._spec))))


def _tensors(value) -> Iterator[Tensor]:
    """All tensors of an output, those of Instances, Boxes and masks included."""
    value = value.get_fields() if isinstance(value, Instances) else getattr(value, "tensor", value)
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


class FlopCountAnalysis(fvcore.nn.FlopCountAnalysis):
    """fvcore's, also for nested inputs (a tuple: several arguments) and outputs; modules are named under "model"."""

    def __init__(self, model: nn.Module, inputs: object):
        function = _TensorFunction(model, inputs if isinstance(inputs, tuple) else (inputs,))
        super().__init__(function, function.tensors)


def _by_operator(analysis, model: nn.Module, unit: float) -> defaultdict[str, float]:
    with inference_context(model):
        counts = analysis.uncalled_modules_warnings(False).by_operator()
    return defaultdict(float, {op: count / unit for op, count in counts.items()})


def flop_count_operators(model: nn.Module, inputs: list) -> defaultdict[str, float]:
    """GFLOPs (multiply-adds) by operator of model(inputs) in eval mode."""
    return _by_operator(FlopCountAnalysis(model, (inputs,)), model, 1e9)


def activation_count_operators(model: nn.Module, inputs: list) -> defaultdict[str, float]:
    """Millions of output elements of convolutions and matrix products (fvcore warns of all others), as above."""
    function = _TensorFunction(model, (inputs,))
    analysis = ActivationCountAnalysis(function, function.tensors).unsupported_ops_warnings(False)
    return _by_operator(analysis, model, 1e6)


def find_unused_parameters(model: nn.Module, inputs: object) -> list[str]:
    """Parameters that get no gradient from a training step on `inputs`; clears all gradients."""
    assert model.training, "find_unused_parameters runs the losses: call model.train() first."
    model.zero_grad()
    losses = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    (sum(losses.values()) if isinstance(losses, Mapping) else losses).backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    model.zero_grad()
    return unused
