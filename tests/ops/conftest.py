"""Every test of an op runs on poisoned outputs: what ``at::empty`` returns is full of NaN."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# Without it cuBLAS refuses to be deterministic, which is what poisons outputs.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True, scope="module")
def _poisoned_outputs() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills uninitialized memory with NaN
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(1000).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
