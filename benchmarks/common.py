"""What the benchmarks share: the machine, alternating timing, and one way to measure against oracles."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor

import dynprune
from benchmarks.bars import fails
from dynprune import ops
from dynprune.ops import native
from dynprune.plan.inputs import for_tensor_cores

THREADS_VARIABLE = "DYNPRUNE_BENCH_THREADS"
# Relative to the largest value; the tests are stricter, against float64.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}

Run = Callable[[], Tensor]
Times = Mapping[str, float]  # contestant -> seconds per call
Figures = Callable[[Times], dict[str, float]]  # what a suite makes of them


_device = torch.device("cpu")


def set_up(threads: int, device: str = "cpu") -> None:
    """Flush denormals before torch starts its threads: they take the setting over from this one.

    Raises:
        ValueError: there is no such device.
    """
    global _device
    if device != "cpu" and not (device == "cuda" and torch.cuda.is_available()):
        raise ValueError(f"benchmarks: expected the device cpu, or cuda where there is a GPU, got {device!r}")
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    _device = torch.device(device)
    if device == "cuda":  # results are compared closely before they are timed
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def device() -> torch.device:
    """What is measured on."""
    return _device


def cpu_only() -> None:
    """Skip what is about the CPU, if that is not measured."""
    if _device.type != "cpu":
        pytest.skip("about the CPU")


def laid_out_linear(weight: Tensor) -> Tensor:
    """``[out, in]`` as plans hold it."""
    return ops.pack_linear(weight) if weight.device.type == "cpu" else for_tensor_cores(weight)


def laid_out_conv2d(weight: Tensor) -> Tensor:
    """``[out, in, kh, kw]`` as plans hold it."""
    return ops.pack_conv2d(weight) if weight.device.type == "cpu" else for_tensor_cores(weight)


def usage_of(units: int) -> Tensor:
    """Room for usage sums."""
    return torch.zeros(4, units, dtype=torch.float64, device=_device)


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def machine(threads: int) -> dict[str, Any]:
    """What a measurement depends on."""
    return {
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if _device.type == "cuda" else None,
        "threads": threads,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "bfloat16_products": native is not None and native.multiplies_bf16(),
        **{key: value for key, value in dynprune.info().items() if key != "threads"},
    }


def check(actual: Tensor, expected: Tensor) -> None:
    """Nothing is timed whose result is wrong."""
    assert actual.shape == expected.shape
    worst, largest = (actual - expected).abs().max().item(), expected.abs().max().item()
    tolerance = max(TOLERANCE[actual.dtype], TOLERANCE[expected.dtype])
    assert worst <= tolerance * largest, f"off by {worst:.3g} where the largest value is {largest:.3g}"


def calls_per_sample(run: Run, seconds: float) -> int:
    """How often to call ``run`` so that it takes about ``seconds``."""
    calls = 1
    while True:
        elapsed = seconds_of(run, calls)
        if elapsed >= seconds / 2 or calls >= 1 << 20:
            return max(1, round(calls * seconds / elapsed))
        calls *= 2


def seconds_of(run: Run, calls: int) -> float:
    wait()
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    wait()
    return time.perf_counter() - begin


def wait() -> None:
    """Until the device has done what it was asked for."""
    if _device.type == "cuda":
        torch.cuda.synchronize()


def alternate(
    runs: Mapping[str, Run], repeats: int = 41, seconds: float = 0.002, budget: float = 4.0
) -> dict[str, float]:
    """Median seconds per call of each of ``runs``, sampled in turn (A B A B ...).

    What slows the machine down for a while slows all of them down. A call that is not timed comes before
    each sample: what the one before left in the caches must not decide (some share their weights, others
    do not). Slow runs get fewer samples: no more after ``budget`` seconds, but five at least.
    """
    calls = {name: calls_per_sample(run, seconds) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    for repeat in range(repeats):
        if repeat >= 5 and time.perf_counter() - begin > budget:
            break
        for name, run in runs.items():
            run()
            samples[name].append(seconds_of(run, calls[name]) / calls[name])
    return {name: median(values) for name, values in samples.items()}


def against_fastest(times: Times) -> dict[str, float]:
    """The figure of most suites: how much faster ours is than the fastest of the others."""
    return {"oracle / ours": min(value for name, value in times.items() if name != "ours") / times["ours"]}


def measure(
    benchmark: Any,
    suite: str,
    case: str,
    contestant: str,
    runs: Mapping[str, Run],
    figures: Figures = against_fastest,
    alike: Sequence[Sequence[str]] | None = None,
) -> None:
    """Check ``contestant`` against the runs it must agree with, then time it.

    The entry of "ours" carries the suite's ``figures``, of times measured in alternation. A case that
    misses its bar is measured three times more, and all four results are kept: the first one counts.

    Args:
        alike: sets of runs with equal results; None: all of them. A run in none of them computes
            something else by design.
    """
    benchmark.group = f"{suite} {case}"
    if contestant not in runs:
        pytest.skip(f"{contestant} does not run here")
    with torch.inference_mode():
        for names in [list(runs)] if alike is None else alike:
            if contestant in names:
                expected = runs[contestant]()
                for name in names:
                    if name != contestant and name in runs:
                        check(runs[name](), expected)
        if contestant == "ours" and not benchmark.disabled:
            record(benchmark, suite, case, runs, figures)
        benchmark(_finished(runs[contestant]))


def _finished(run: Run) -> Run:
    """``run``, until its result is there."""
    if _device.type == "cpu":
        return run

    def finished() -> Tensor:
        y = run()
        wait()
        return y

    return finished


def record(benchmark: Any, suite: str, case: str, runs: Mapping[str, Run], figures: Figures) -> None:
    """Measure ``runs`` in alternation and leave the figures with the benchmark's entry."""
    times = alternate(runs)
    values = figures(times)
    benchmark.extra_info.update(suite=suite, case=case, medians=times, figures=values)
    if fails(suite, values, torch.get_num_threads(), _device.type):
        benchmark.extra_info["again"] = [figures(alternate(runs)) for _ in range(3)]


def contestants(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("contestant", names)
