"""Run the benchmarks and write a summary: ``python -m benchmarks.run [--threads N] [-k PATTERN]``.

Writes ``benchmarks/results/<machine>-<threads>t.json`` and prints, per suite, the ratios oracle / ours
(above 1: ours is faster) with their geometric mean and minimum beside the bars they are held to.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import pytest

from benchmarks import common

HERE = Path(__file__).parent
BARS = {
    "linear": (1.10, 0.9),
    "conv2d": (1.15, 0.85),
    "lstm": (1.3, 1.0),
}  # geometric mean and minimum, on one thread


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--machine", default=common.cpu_name(), help="name in the result's file name")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--max-time", type=float, default=0.3, help="seconds of pytest-benchmark per entry")
    parser.add_argument("-k", dest="pattern", default="", help="run only what matches, as in pytest")
    return parser.parse_args()


def run_suites(options: argparse.Namespace, report: Path) -> int:
    return pytest.main(
        [
            str(HERE), "-k", options.pattern, f"--bench-threads={options.threads}",
            "--benchmark-enable", f"--benchmark-max-time={options.max_time}", f"--benchmark-json={report}",
            "--benchmark-columns=min,median,iqr,rounds", "--benchmark-warmup=on",
        ]
    )  # fmt: skip


def summarize(report: dict[str, Any]) -> dict[str, Any]:
    """The machine, the ratios of each suite with their mean and minimum, and every entry's statistics."""
    suites: dict[str, Any] = {}
    entries = []
    for entry in report["benchmarks"]:
        stats = {key: entry["stats"][key] for key in ("min", "median", "iqr", "rounds")}
        entries.append({"name": entry["name"], "group": entry["group"], "seconds": stats})
        extra = entry["extra_info"]
        if "ratio" in extra:
            suites.setdefault(extra["suite"], {"cases": {}})["cases"][extra["case"]] = {
                key: extra[key] for key in ("ratio", "oracle", "medians")
            }
    for suite in suites.values():
        ratios = [case["ratio"] for case in suite["cases"].values()]
        suite.update(geometric_mean=geometric_mean(ratios), minimum=min(ratios))
    return {
        "date": report["datetime"],
        "machine": report["machine_info"]["dynprune"],
        "suites": suites,
        "entries": entries,
    }


def print_table(summary: dict[str, Any]) -> None:
    print(f"{summary['machine']['cpu']}, {summary['machine']['threads']} threads")
    for name, suite in summary["suites"].items():
        print(f"\n{name:<24}{'ours us':>10}{'oracle us':>11}{'ratio':>8}  fastest oracle")
        for case, row in suite["cases"].items():
            ours, oracle = (row["medians"][key] * 1e6 for key in ("ours", row["oracle"]))
            print(f"  {case:<22}{ours:>10.1f}{oracle:>11.1f}{row['ratio']:>8.2f}  {row['oracle']}")
        print(f"  geometric mean {suite['geometric_mean']:.2f}, minimum {suite['minimum']:.2f}", end="")
        if name in BARS:
            print(" (bars on one thread: {} and {})".format(*BARS[name]), end="")
        print()


def main() -> int:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        status = run_suites(options, report)
        if status != 0:
            print("benchmarks.run: no summary, because a benchmark failed", file=sys.stderr)
            return status
        summary = summarize(json.loads(report.read_text()))
    slug = re.sub(r"[^a-z0-9]+", "-", options.machine.lower()).strip("-")
    target = options.output / f"{slug}-{options.threads}t.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(summary, indent=1) + "\n")
    print_table(summary)
    print(f"\nwritten to {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
