"""The device on which the Triton kernels are tested."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")


@pytest.fixture(scope="session")
def device() -> str:
    """A GPU where there is one; else the CPU, for the interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"
