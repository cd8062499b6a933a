"""Everything that a GPU is needed for, in one command: ``python -m benchmarks.gpu``.

Builds the extension, runs the ops' tests on the device with both backends and under compute-sanitizer, times
the ops and models, and writes JSON with the device's name under ``benchmarks/results/``. It needs no network
and takes at most nine minutes; a step that fails or runs out of time is recorded, and the others go on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.steps import Step, run_steps

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 8.5  # the rest of nine is for an import of torch before the first step
BACKENDS = ("cuda", "triton")


class Bar(NamedTuple):
    """How many times as fast a contestant has to be, as a geometric mean over cases whose name ends so."""

    suite: str
    ours: str
    other: str
    least: float
    end: str = ""


BARS = (
    Bar("linear", "ours", "compact", 0.95),
    Bar("linear", "ours, counted, graph", "compact, graph", 0.7),
    Bar("linear", "ours, counted, graph", "dense, graph", 2.0, " 50%"),
    Bar("conv2d", "ours", "compact", 0.95),
    Bar("conv2d", "ours, counted, graph", "compact, graph", 0.6),
    Bar("lstm", "ours", "compact", 0.9),
    Bar("lstm", "ours", "dense", 1.3),
    Bar("models", "ours", "dense", 1.6, "batch 256"),
    Bar("models", "ours, served graph", "dense, served graph", 1.0, "batch 1"),
    Bar("flips", "flip", "forward", 1.0),
)
# Beside a call that names a part of the steps, these run as well.
FIRST = ("build", "install", "info")


def all_steps(python: str) -> list[Step]:
    """The steps in the order of their worth, for an interpreter."""
    install = [
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "-e",
        ".",
    ]
    nothing = str(Path(python).parent / "no-such-folder")  # a PATH without a compiler
    info = "import json, dynprune; print(json.dumps(dynprune.info()))"
    steps = [
        Step("build", install, 200, {"DYNPRUNE_CUDA_TARGETS": own_target()}),
        # Triton needs no compiler of ours: with none in sight the package installs without its extension.
        Step("install", install, 60, {"PATH": nothing, "CXX": ""}, only_after_failure_of="build"),
        Step("info", [python, "-c", info], 30),
    ]
    for backend in BACKENDS:
        steps += [timed(python, backend, suite, seconds) for suite, seconds in BUDGETS.items()]
        steps += [
            tested(python, f"tests {backend}", "tests/ops/test_on_cuda.py", backend, 75),
            sanitized(python, backend),
            tested(python, f"models {backend}", "tests/models/test_on_cuda.py", backend, 75),
        ]
    return [*steps, tested(python, "kernels of triton", "tests/triton", "triton", 120)]


# Installed without a compiler, the package says so at import, which is no failure here.
QUIETLY = ("-W", "ignore::RuntimeWarning:dynprune.ops")
# Seconds of the suites, compiling included.
BUDGETS = {"linear": 55, "conv2d": 45, "lstm": 30, "models": 90, "flips": 40}


def timed(python: str, backend: str, suite: str, seconds: float) -> Step:
    """A suite, which has a process of its own: an error of the device ends no other."""
    command = [python, "-m", "benchmarks.gpu_cases", suite]
    return Step(f"times of {suite} {backend}", command, seconds, {"DYNPRUNE_BACKEND": backend})


def tested(python: str, name: str, tests: str, backend: str, seconds: float) -> Step:
    """A folder or file of tests, side by side where that is installed: Triton compiles for a second each."""
    options = ["-n", "14"] if importlib.util.find_spec("xdist") else []
    if importlib.util.find_spec("pytest_timeout"):
        options += ["--timeout=40", "--timeout-method=thread"]  # names a test that hangs on the device
    options += [*QUIETLY, "--ignore=tests/triton/test_compile.py"]
    environment = {"DYNPRUNE_BACKEND": backend, "OMP_NUM_THREADS": "2"}
    return Step(name, [python, "-m", "pytest", "-q", *options, tests], seconds, environment)


def sanitized(python: str, backend: str) -> Step:
    """Few tests under compute-sanitizer, each tensor in memory of its own so that it sees its ends."""
    tests = ["-x", "-k", "sanitized", *QUIETLY, "tests/ops/test_on_cuda.py"]
    sanitizer = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"]
    environment = {"DYNPRUNE_BACKEND": backend, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Step(f"sanitizer {backend}", [*sanitizer, python, "-m", "pytest", "-q", *tests], 90, environment)


def own_target() -> str:
    """The compute capability of the GPU here, without the dot; "" without one."""
    try:
        return "".join(map(str, torch.cuda.get_device_capability())) if torch.cuda.is_available() else ""
    except RuntimeError:  # as in device_name
        return ""


def mean_of(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def ratios(bar: Bar, results: Sequence[Mapping[str, Any]]) -> list[float]:
    """How many times as fast the contestant of a bar was, in each case that was timed."""
    return [
        times[bar.other] / times[bar.ours]
        for result in results
        if (times := result.get("ms")) is not None
        and result["suite"] == bar.suite
        and result["case"].endswith(bar.end)
        and {bar.ours, bar.other} <= times.keys()
    ]


def table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The steps, then the ratios of each backend beside their bars, as text."""
    lines = [f"{'step':28} {'status':12} {'seconds':>7}"]
    lines += [f"{name:28} {record['status']:12} {record['seconds']:7.1f}" for name, record in records.items()]
    lines += [
        "",
        f"{'backend':8} {'suite':8} {'times as fast':54} {'cases':>5} {'mean':>6} {'worst':>6} {'bar':>5}",
    ]
    for backend in BACKENDS:
        records_of = [record for name, record in records.items() if name.endswith(backend)]
        results = [result for record in records_of for result in record["results"]]
        for bar in BARS:
            if not (values := ratios(bar, results)):
                continue
            mark = "" if mean_of(values) >= bar.least else "  misses"
            named = f"{bar.ours} / {bar.other}{bar.end and f' ({bar.end.strip()})'}"
            lines.append(
                f"{backend:8} {bar.suite:8} {named:54} {len(values):5} {mean_of(values):6.2f} "
                f"{min(values):6.2f} {bar.least:5.2f}{mark}"
            )
        lines += [
            f"{backend:8} {r['suite']:8} {r.get('case', '')}: {r['error']}" for r in results if "error" in r
        ]
    return "\n".join(lines)


def device_name() -> str:
    """The GPU's name, or "no-gpu"."""
    try:
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "no-gpu"
    except RuntimeError:  # the driver, or what ran before, left it unusable
        return "gpu-without-a-name"


def file_name(device: str) -> str:
    """``gpu-<device>.json``, in small letters."""
    return f"gpu-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


def main(arguments: Sequence[str] | None = None, steps: Sequence[Step] | None = None) -> int:
    """Run, write and print; ``steps`` None: all of them.

    Returns:
        0 if every step has ended well, else 1.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of all steps together")
    parser.add_argument(
        "--only",
        default="",
        help=f"steps whose name contains this, such as triton, beside {', '.join(FIRST)}",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the JSON"
    )
    options = parser.parse_args(arguments)
    steps = all_steps(sys.executable) if steps is None else steps
    chosen = [s for s in steps if s.name in FIRST or options.only in s.name]
    if all(options.only not in step.name for step in chosen):
        parser.error(f"expected a part of a step's name, got {options.only!r}")

    device = device_name()
    records: dict[str, dict[str, Any]] = {}
    found = {
        "device": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nvcc": shutil.which("nvcc"),
        "steps": records,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / file_name(device)

    def report(name: str, record: dict[str, Any]) -> None:
        print(f"{name}: {record['status']} after {record['seconds']} s", flush=True)
        if record["status"] != "ok":
            print(record["output"][-1500:], flush=True)
        # After every step: a machine may be taken away in the middle.
        records[name] = record
        path.write_text(json.dumps(found, indent=1) + "\n")

    run_steps(chosen, 60 * options.minutes, ROOT, report)
    print(f"\n{device}\n{table(records)}\n\n{path}")
    return 0 if all(record["status"] == "ok" for record in records.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
