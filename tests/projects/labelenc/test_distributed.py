"""Two processes with an image each: the losses of each alone, the mean of both gradients."""

import pytest
import torch

from tests.processes import run_forked

from . import ddp_worker
from .ddp_worker import CASES


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Per case and iteration, of image 0 and 1: by one process after the other, and by two together."""
    folder = tmp_path_factory.mktemp("ddp")
    ddp_worker.main(folder)
    run_forked(2, ddp_worker.main, folder, folder)
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in ("1_0", "1_1", "2_0", "2_1")]


@pytest.mark.parametrize("case", list(CASES))
def test_two_processes(results, case):
    one, other, first, second = (r[case] for r in results)
    for i in range(len(CASES[case][1])):
        for alone, together in ((one, first), (other, second)):
            torch.testing.assert_close(together[i]["losses"], alone[i]["losses"])
            assert together[i]["normalizer"] == alone[i]["normalizer"]
        names = one[i]["gradients"].keys()
        assert names == first[i]["gradients"].keys() and len(names) > 40
        for name in names:
            mean = (one[i]["gradients"][name] + other[i]["gradients"][name]) / 2
            # sums of terms that cancel: rounding goes with the largest values of a tensor, not with each value
            tolerance = 1e-5 * mean.abs().max().item() + 1e-8
            torch.testing.assert_close(first[i]["gradients"][name], mean, atol=tolerance, rtol=1e-4)
            assert torch.equal(first[i]["gradients"][name], second[i]["gradients"][name])


def test_adaption_net_has_a_gradient_with_the_distance_alone(results):
    for result in results:
        for case, expected in (("step 1", [False, True]), ("step 2", [True, False])):
            has = [any(name.startswith("label_enc.adapt.") for name in it["gradients"]) for it in result[case]]
            assert has == expected
