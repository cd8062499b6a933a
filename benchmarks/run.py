"""Run the benchmarks and write a summary: ``python -m benchmarks.run [--threads N] [-k PATTERN]``.

Writes ``benchmarks/results/<machine>-<threads>t.json``, or ``<GPU>.json`` with ``--device cuda``, and prints,
per suite, its figures (mostly the ratio oracle / ours; above 1, ours is faster) with their geometric mean,
worst twentieth and worst case beside the bars they are held to. ``--no-compile`` leaves out torch.compile,
which takes most of the time.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks.summary import print_table, summarize

HERE = Path(__file__).parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--machine", help="name in the result's file name; by default that of the CPU or GPU")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--max-time", type=float, default=0.3, help="seconds of pytest-benchmark per entry")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("-k", dest="pattern", default="", help="run only what matches, as in pytest")
    return parser.parse_args()


def run_suites(options: argparse.Namespace, report: Path) -> int:
    return pytest.main(
        [
            str(HERE), "-k", options.pattern, f"--bench-threads={options.threads}",
            f"--bench-device={options.device}",
            "--benchmark-enable", f"--benchmark-max-time={options.max_time}", f"--benchmark-json={report}",
            "--benchmark-columns=min,median,iqr,rounds", "--benchmark-warmup=on",
            *["--no-compile"] * options.no_compile,
        ]
    )  # fmt: skip


def main() -> int:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        status = run_suites(options, report)
        if status != 0:
            print("benchmarks.run: no summary, because a benchmark failed", file=sys.stderr)
            return status
        summary = summarize(json.loads(report.read_text()))
    machine = options.machine or summary["machine"]["gpu"] or summary["machine"]["cpu"]
    slug = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    target = options.output / (
        f"{slug}-{options.threads}t.json" if options.device == "cpu" else f"{slug}.json"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(summary, indent=1) + "\n")
    print_table(summary)
    print(f"\nwritten to {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
