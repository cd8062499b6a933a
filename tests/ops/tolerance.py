"""How far a result may be from the reference in float64: one table for all ops and backends."""

from __future__ import annotations

import torch
from torch import Tensor

# Relative to the largest value of the reference.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """``actual`` has the shape of ``expected`` (float64), and its values within the table."""
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return
    allowed = TOLERANCE[actual.dtype] * expected.abs().max().item()
    worst = (actual.double() - expected).abs().max().item()
    assert worst <= allowed, f"off by {worst:.3g}, allowed {allowed:.3g}"


def assert_usage_close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE[torch.float32]) -> None:
    """Usage sums of activations; the counts are exact.

    The plain sum may cancel, so it is held to the size of the sum of absolute values.
    """
    assert actual.shape == expected.shape
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual[3], expected[3], rtol=0, atol=0)
    if expected.numel() == 0:
        return
    for row, scale in ((0, 0), (1, 0), (2, 2)):
        allowed = tolerance * expected[scale].max().item()
        worst = (actual[row] - expected[row]).abs().max().item()
        assert worst <= allowed, f"usage row {row} off by {worst:.3g}, allowed {allowed:.3g}"
