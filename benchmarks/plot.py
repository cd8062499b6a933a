"""Time against active fraction, from a file of results: ``python -m benchmarks.plot RESULTS.json``.

Writes ``RESULTS-linear.png`` beside it: one panel per batch and width, ours beside the eager compact
oracle. Needs the extra ``reports``.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

CASE = re.compile(r"(?P<shape>\d+x\d+)-(?P<active>\d+)%")


def series(cases: dict[str, Any]) -> dict[str, list[tuple[int, float, float]]]:
    """Shape -> [(active percent, our microseconds, the oracle's)], by active percent."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for name, row in cases.items():
        match = CASE.fullmatch(name)
        if match:
            medians = row["medians"]
            point = (int(match["active"]), medians["ours"] * 1e6, medians[row["oracle"]] * 1e6)
            found.setdefault(match["shape"], []).append(point)
    return {shape: sorted(points) for shape, points in found.items()}


def draw(results: dict[str, Any], target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = series(results["suites"]["linear"]["cases"])
    rows = -(-len(panels) // 2)
    figure, axes = pyplot.subplots(rows, 2, figsize=(8, 2.4 * rows), squeeze=False, layout="constrained")
    for axis, (shape, points) in zip(axes.flat, panels.items(), strict=False):
        active, ours, oracle = zip(*points, strict=True)
        axis.plot(active, ours, marker="o", label="dynprune, with usage sums")
        axis.plot(active, oracle, marker="s", linestyle="--", label="eager compact oracle")
        axis.set(title=f"linear, rows x width {shape}", xlabel="active, %", ylabel="microseconds", ylim=0)
    axes.flat[0].legend()
    machine = results["machine"]
    figure.suptitle(f"{machine['cpu']}, {machine['threads']} thread(s), float32, medians")
    figure.savefig(target, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    options = parser.parse_args()
    target = options.results.with_name(f"{options.results.stem}-linear.png")
    draw(json.loads(options.results.read_text()), target)
    print(f"written to {target}")


if __name__ == "__main__":
    main()
