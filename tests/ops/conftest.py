"""Memory from at::empty arrives as NaN here, so that a kernel that leaves a cell unwritten fails."""

import pytest
import torch

from shared.ops import library


@pytest.fixture(autouse=True)
def deterministic():
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(autouse=True)
def built():
    if not library.available:
        pytest.skip("the native ops are not built (make setup)")
