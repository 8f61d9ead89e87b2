"""The evaluation loop: a model over a dataset, its outputs into evaluators."""

import datetime
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from detectron2.utils.comm import get_world_size, is_main_process
from detectron2.utils.logger import log_every_n_seconds


class DatasetEvaluator:
    """Collects outputs batch by batch, then judges all of them."""

    def reset(self) -> None:
        """Forget everything; called before the first batch."""

    def process(self, inputs: list, outputs: list) -> None:
        """One batch: the dataset dicts and the model's outputs for them, in the same order."""

    def evaluate(self) -> Mapping | None:
        """{task: {metric: number}} on the main process; other processes may return None."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one; their results are merged and must not share a key."""

    def __init__(self, evaluators: Iterable[DatasetEvaluator]):
        self._evaluators = list(evaluators)

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: list, outputs: list) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> OrderedDict:
        merged = OrderedDict()
        for evaluator in self._evaluators:
            results = evaluator.evaluate()
            if not is_main_process() or results is None:
                continue
            for key, value in results.items():
                assert key not in merged, f"Two evaluators return the key {key!r}: rename one of them."
                merged[key] = value
        return merged


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, the model's own mode again after."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Iterable,
    evaluator: DatasetEvaluator | Sequence[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], Any]] | None = None,
) -> Mapping:
    """Run the model over the whole loader (which must have a length) and evaluate.

    callbacks: optional functions "on_start", "before_inference", "after_inference", "on_end".
    Returns what the evaluator returns, {} instead of None.
    """
    logger = logging.getLogger(__name__)
    total = len(data_loader)
    logger.info(f"Start inference on {total} batches")
    if evaluator is None:
        evaluator = DatasetEvaluators([])
    elif isinstance(evaluator, Sequence):
        evaluator = DatasetEvaluators(evaluator)
    evaluator.reset()
    call = {k: lambda: None for k in ("on_start", "before_inference", "after_inference", "on_end")}
    call.update(callbacks or {})

    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        call["on_start"]()
        _run_batches(model, data_loader, evaluator, call)
        call["on_end"]()
    results = evaluator.evaluate()
    return {} if results is None else results


def _run_batches(model, data_loader, evaluator: DatasetEvaluator, call: Mapping) -> None:
    """Forward and process every batch, with the mean times of each part in the log."""
    total, spent = len(data_loader), {"data": 0.0, "inference": 0.0, "eval": 0.0}
    start = last = time.perf_counter()

    def lap(part: str) -> None:
        nonlocal last
        now = time.perf_counter()
        spent[part] += now - last
        last = now

    for i, inputs in enumerate(data_loader, 1):
        lap("data")
        call["before_inference"]()
        outputs = model(inputs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # or the kernels' time counts as the evaluator's
        call["after_inference"]()
        lap("inference")
        evaluator.process(inputs, outputs)
        lap("eval")
        parts = " ".join(f"{k}: {v / i:.4f}" for k, v in spent.items())
        eta = datetime.timedelta(seconds=int((last - start) / i * (total - i)))
        log_every_n_seconds(logging.INFO, f"Inference done {i}/{total}. s/batch: {parts} ETA={eta}", n=5)
    elapsed = datetime.timedelta(seconds=int(time.perf_counter() - start))
    logging.getLogger(__name__).info(
        f"Inference took {elapsed}, {spent['inference']:.1f} s of it in the model, on {get_world_size()} process(es)."
    )
