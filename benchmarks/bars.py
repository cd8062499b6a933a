"""What the figures of the suites are held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """What one figure is held to: its worst case, the worst twentieth and the geometric mean of its cases."""

    worst: float
    tail: float | None = None
    mean: float | None = None
    at_most: bool = False  # a cost, of which less is better; otherwise a ratio, of which more is better

    def allows(self, value: float, limit: float | None) -> bool:
        if limit is None:
            return True
        return value <= limit if self.at_most else value >= limit


def bars(threads: int, device: str = "cpu") -> dict[tuple[str, str], Bar]:
    """(suite, figure) -> its bar."""
    if device != "cpu":
        return {
            ("bf16 linear", "oracle / ours"): Bar(0.0, mean=0.95),
            ("bf16 conv2d", "oracle / ours"): Bar(0.0, mean=0.95),
            ("lstm", "oracle / ours"): Bar(0.0, mean=0.9),
        }
    return {
        ("linear", "oracle / ours"): Bar(0.85, 0.95, 1.20),
        ("conv2d", "oracle / ours"): Bar(0.85, 0.92, 1.15),
        # In bfloat16: on machines with AMX.
        ("bf16 linear", "oracle / ours"): Bar(0.85, mean=1.5),
        ("bf16 conv2d", "oracle / ours"): Bar(0.85, mean=1.2),
        ("bf16 gain", "float32 / ours"): Bar(2.5),
        ("lstm", "oracle / ours"): Bar(1.0, mean=1.3 if threads == 1 else 1.5),
        ("models", "compact compiled / ours"): Bar(0.8, mean=1.0),
        ("models", "ours / dense eager, all active"): Bar(1.02, at_most=True),
        ("gather", "indices / plan entry"): Bar(1.5, at_most=True),
        ("sparse_input", "50%: eager / ours"): Bar(1.3),
        ("sparse_input", "75%: eager / ours"): Bar(2.2),
        ("sparse_input", "90%: eager / ours"): Bar(4.5),
        ("sparse_input", "50%: eager / input-major"): Bar(1.7),
        ("sparse_input", "75%: eager / input-major"): Bar(3.0),
        ("sparse_input", "90%: eager / input-major"): Bar(6.0),
        ("halves", "half / all"): Bar(0.32, at_most=True),
        ("plan", "ms per million weights"): Bar(1.5, at_most=True),
        ("memory", "plan / active weights"): Bar(1.1, at_most=True),
        ("monitoring", "with sums / without"): Bar(1.02, at_most=True),
    }


def fails(suite: str, figures: Mapping[str, float], threads: int, device: str = "cpu") -> bool:
    """Whether one case misses the bar of the worst case in any of its figures."""
    found = bars(threads, device)
    held = [(value, found[suite, name]) for name, value in figures.items() if (suite, name) in found]
    return not all(bar.allows(value, bar.worst) for value, bar in held)
