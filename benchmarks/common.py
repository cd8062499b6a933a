"""What the benchmarks share: the machine, alternating timing, and one way to measure against an oracle."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor

import dynprune

THREADS_VARIABLE = "DYNPRUNE_BENCH_THREADS"
TOLERANCE = 1e-4  # relative to the largest value; the tests are stricter, against float64

Run = Callable[[], Tensor]


def set_up(threads: int) -> None:
    """Flush denormals before torch starts its threads: they take the setting over from this one."""
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def machine(threads: int) -> dict[str, Any]:
    """What a measurement depends on."""
    return {
        "cpu": cpu_name(),
        "threads": threads,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        **{key: value for key, value in dynprune.info().items() if key != "threads"},
    }


def check(actual: Tensor, expected: Tensor) -> None:
    """Nothing is timed whose result is wrong."""
    assert actual.shape == expected.shape
    worst, largest = (actual - expected).abs().max().item(), expected.abs().max().item()
    assert worst <= TOLERANCE * largest, f"off by {worst:.3g} where the largest value is {largest:.3g}"


def calls_per_sample(run: Run, seconds: float) -> int:
    """How often to call ``run`` so that it takes about ``seconds``."""
    calls = 1
    while True:
        elapsed = seconds_of(run, calls)
        if elapsed >= seconds / 2 or calls >= 1 << 20:
            return max(1, round(calls * seconds / elapsed))
        calls *= 2


def seconds_of(run: Run, calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - begin


def alternate(runs: Mapping[str, Run], repeats: int = 41, seconds: float = 0.002) -> dict[str, float]:
    """Median seconds per call of each of ``runs``, sampled in turn (A B A B ...).

    What slows the machine down for a while slows all of them down.
    """
    for run in runs.values():
        seconds_of(run, 3)
    calls = {name: calls_per_sample(run, seconds) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            samples[name].append(seconds_of(run, calls[name]) / calls[name])
    return {name: median(values) for name, values in samples.items()}


def measure(benchmark: Any, suite: str, case: str, contestant: str, runs: Mapping[str, Run]) -> None:
    """Check ``runs["ours"]`` against the oracles (the other runs), then time ``contestant``.

    The entry of "ours" carries the ratio fastest oracle / ours, measured in alternation.
    """
    benchmark.group = f"{suite} {case}"
    with torch.inference_mode():
        ours = runs["ours"]()
        for name, run in runs.items():
            if name != "ours":
                check(ours, run())
        if contestant == "ours" and not benchmark.disabled:
            times = alternate(runs)
            oracle = min((name for name in runs if name != "ours"), key=times.__getitem__)
            benchmark.extra_info.update(
                suite=suite, case=case, oracle=oracle, medians=times, ratio=times[oracle] / times["ours"]
            )
        benchmark(runs[contestant])


def contestants(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("contestant", names)
