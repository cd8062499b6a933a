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
from typing import Any

import torch

from benchmarks.steps import Step, run_steps

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 9.0
BACKENDS = ("cuda", "triton")
# (suite, contestant, against) -> how many times as fast it has to be, as a geometric mean over the cases.
BARS = {
    ("linear", "ours", "compact"): 0.95,
    ("linear", "ours, graph", "compact, graph"): 0.7,
    ("conv2d", "ours", "compact"): 0.95,
    ("conv2d", "ours, graph", "compact, graph"): 0.6,
    ("lstm", "ours", "compact"): 0.9,
    ("lstm", "ours", "dense"): 1.3,
    ("models", "ours", "dense"): 1.6,
    ("models, batch 1", "ours, graph", "dense, graph"): 1.0,
    ("flips", "flip", "forward"): 1.0,
}


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
        Step("build", install, 150),
        # Triton needs no compiler of ours: with none in sight the package installs without its extension.
        Step("install", install, 60, {"PATH": nothing, "CXX": ""}, only_after_failure_of="build"),
        Step("info", [python, "-c", info], 30),
    ]
    # Triton compiles for every new kind of sizes, a second each: side by side where that is installed.
    parallel = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    for backend in BACKENDS:
        tests = [python, "-m", "pytest", "-q", *parallel, "tests/ops/test_on_cuda.py"]
        steps.append(Step(f"tests {backend}", tests, 60, {"DYNPRUNE_BACKEND": backend}))
        tests = [python, "-m", "pytest", "-q", *parallel, "tests/models/test_on_cuda.py"]
        steps.append(Step(f"models {backend}", tests, 60, {"DYNPRUNE_BACKEND": backend}))
    tests = [python, "-m", "pytest", "-q", *parallel, "tests/triton", "--ignore=tests/triton/test_compile.py"]
    steps.append(Step("tests of triton kernels", tests, 75))
    for suites, seconds in ((("linear",), 40), (("conv2d", "lstm"), 45), (("flips", "models"), 45)):
        for backend in BACKENDS:
            command = [python, "-m", "benchmarks.gpu_cases", *suites]
            steps.append(
                Step(f"{' '.join(suites)} {backend}", command, seconds, {"DYNPRUNE_BACKEND": backend})
            )
    sanitized = [
        "compute-sanitizer",
        "--tool",
        "memcheck",
        "--error-exitcode",
        "9",
        python,
        "-m",
        "pytest",
        "-q",
    ]
    for backend in BACKENDS:
        command = [*sanitized, "-x", "tests/ops/test_on_cuda.py", "-k", "sanitized"]
        steps.append(Step(f"sanitizer {backend}", command, 60, {"DYNPRUNE_BACKEND": backend}))
    return steps


def mean_of(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def ratios(results: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], list[float]]:
    """How many times as fast a contestant was in each case: as :data:`BARS` asks."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for suite, ours, other in BARS:
        for result in results:
            times = result.get("ms", {})
            if result.get("suite") == suite and ours in times and other in times:
                found.setdefault((suite, ours, other), []).append(times[other] / times[ours])
    return found


def table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The steps, then the ratios of each backend beside their bars, as text."""
    lines = [f"{'step':28} {'status':12} {'seconds':>7}"]
    lines += [f"{name:28} {record['status']:12} {record['seconds']:7.1f}" for name, record in records.items()]
    lines += [
        "",
        f"{'backend':8} {'suite':8} {'times as fast':38} {'cases':>5} {'mean':>6} {'worst':>6} {'bar':>5}",
    ]
    for backend in BACKENDS:
        results = [r for name, record in records.items() if name.endswith(backend) for r in record["results"]]
        for (suite, ours, other), values in ratios(results).items():
            bar = BARS[suite, ours, other]
            mark = "" if mean_of(values) >= bar else "  misses"
            lines.append(
                f"{backend:8} {suite:8} {f'{ours} / {other}':38} {len(values):5} {mean_of(values):6.2f} "
                f"{min(values):6.2f} {bar:5.2f}{mark}"
            )
        lines += [f"{backend:8} {r.get('suite', ''):8} {r['error']}" for r in results if "error" in r]
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
    parser.add_argument("--only", default="", help="steps whose name contains this")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the JSON"
    )
    options = parser.parse_args(arguments)
    chosen = [s for s in (all_steps(sys.executable) if steps is None else steps) if options.only in s.name]
    if not chosen:
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
