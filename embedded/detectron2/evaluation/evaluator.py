"""The evaluation loop: a model over a dataset, its outputs into evaluators."""

import datetime
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from detectron2.utils.comm import is_main_process
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

    def evaluate(self) -> dict:
        merged = {}
        for evaluator in self._evaluators:
            results = evaluator.evaluate()
            if is_main_process() and results is not None:
                shared = sorted(set(results) & set(merged))
                assert not shared, f"Two evaluators return the keys {shared}: rename those of one of them."
                merged.update(results)
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
    model: Callable, data_loader: Iterable, evaluator: DatasetEvaluator | Sequence | None, callbacks: dict | None = None
) -> Mapping:
    """Run the model over the whole loader (which must have a length); what the evaluator returns, {} instead of None.
    callbacks: optional functions "on_start", "before_inference", "after_inference", "on_end"."""
    total = len(data_loader)
    if evaluator is None or isinstance(evaluator, Sequence):
        evaluator = DatasetEvaluators(evaluator or [])
    evaluator.reset()
    call = dict.fromkeys(("on_start", "before_inference", "after_inference", "on_end"), lambda: None)
    call.update(callbacks or {})
    start = time.perf_counter()
    with inference_context(model) if isinstance(model, nn.Module) else nullcontext(), torch.no_grad():
        call["on_start"]()
        for i, inputs in enumerate(data_loader, 1):
            call["before_inference"]()
            outputs = model(inputs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # for callbacks that take the time
            call["after_inference"]()
            evaluator.process(inputs, outputs)
            seconds = (time.perf_counter() - start) / i
            eta = datetime.timedelta(seconds=int(seconds * (total - i)))
            log_every_n_seconds(logging.INFO, f"Inference done {i}/{total}, {seconds:.4f} s/batch, ETA={eta}", n=5)
        call["on_end"]()
    logging.getLogger(__name__).info(f"Inference of {total} batches took {time.perf_counter() - start:.1f} s.")
    results = evaluator.evaluate()
    return {} if results is None else results
