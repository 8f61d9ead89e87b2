"""Two processes: the same buffer, loss and gradients as one process with the whole batch."""

import pytest
import torch

from tests.processes import run_forked

from . import ddp_worker
from .ddp_worker import CASES, ITERATIONS

STEPS = range(len(ITERATIONS))
EXACT = [case for case in CASES if case != "SyncBN"]  # its running variance is the biased one


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Per case and iteration: what one process, and each of two, saw. One image has no large RoI in iterations 0, 2
    and 4; a hang ends in the timeout."""
    folder = tmp_path_factory.mktemp("ddp")
    ddp_worker.main(folder)
    run_forked(2, ddp_worker.main, folder, folder)
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in ("1_0", "2_0", "2_1")]


@pytest.mark.parametrize("case", EXACT)
def test_buffers_are_those_of_one_process_on_all_ranks(results, case):
    one, first, second = (r[case] for r in results)
    for i in STEPS:
        assert torch.equal(first[i]["mean"], second[i]["mean"]) and torch.equal(first[i]["count"], second[i]["count"])
        torch.testing.assert_close(first[i]["count"], one[i]["count"])
        torch.testing.assert_close(first[i]["mean"], one[i]["mean"], atol=1e-6, rtol=1e-5)
    assert one[-1]["count"].sum() > 0


@pytest.mark.parametrize("case", EXACT)
def test_losses_average_to_that_of_one_process(results, case):
    one, first, second = (r[case] for r in results)
    for i in STEPS:
        torch.testing.assert_close((first[i]["loss"] + second[i]["loss"]) / 2, one[i]["loss"], atol=1e-6, rtol=1e-5)
    assert one[0]["loss"] > 0 and (one[3]["loss"] == 0) == (case != "transport")


@pytest.mark.parametrize("case", EXACT)
def test_gradients_are_those_of_one_process(results, case):
    one, first, second = (r[case] for r in results)
    for i in STEPS:
        assert first[i]["gradients"].keys() == one[i]["gradients"].keys()
        for name, wanted in one[i]["gradients"].items():
            torch.testing.assert_close(first[i]["gradients"][name], wanted, atol=1e-6, rtol=1e-4)
            assert torch.equal(first[i]["gradients"][name], second[i]["gradients"][name])
    assert one[0]["gradients"]["critic.layers.0.weight"].abs().max() > 1e-4


def test_synced_norms_bear_a_process_without_rois(results):
    """Iterations 2 and 4 have none in one image, 3 in both: no hang, the same finite gradients."""
    _, first, second = (r["SyncBN"] for r in results)
    for i in STEPS:
        assert torch.equal(first[i]["mean"], second[i]["mean"])
        for name, gradient in first[i]["gradients"].items():
            assert gradient.isfinite().all() and torch.equal(gradient, second[i]["gradients"][name])
    assert first[4]["gradients"]["critic.layers.0.norm.weight"].any()
