"""Time against active fraction, from a file of results: ``python -m benchmarks.plot RESULTS.json``.

Writes ``RESULTS-SUITE.png`` beside it for every suite with cases named ``...-NN%``: one panel per shape or
model, ours beside the oracles. Needs the extra ``reports``.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

CASE = re.compile(r"(?P<shape>.+)-(?P<active>\d+)%")
SUITES = ("linear", "conv2d", "models")
LINES = {  # label -> contestants, of which the fastest is drawn
    "dynprune": ("ours",),
    "eager compact oracle": ("eager", "eager-channels-last", "compact-eager", "compact-eager-channels-last"),
    "compiled compact oracle": ("compact-compiled",),
    "dense eager": ("dense-eager", "dense-eager-channels-last"),
}
COLUMNS = 3

Panel = dict[str, list[tuple[int, float]]]  # label -> [(active percent, microseconds)]


def panels(cases: dict[str, Any]) -> dict[str, Panel]:
    """Shape -> its lines, by active percent."""
    found: dict[str, Panel] = {}
    for name, row in cases.items():
        match = CASE.fullmatch(name)
        if match is None:
            continue
        panel = found.setdefault(match["shape"], {})
        for label, contestants in LINES.items():
            times = [row["medians"][c] for c in contestants if c in row["medians"]]
            if times:
                panel.setdefault(label, []).append((int(match["active"]), min(times) * 1e6))
    return found


def draw(suite: str, shapes: dict[str, Panel], machine: dict[str, Any], target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = -(-len(shapes) // COLUMNS)
    figure, axes = pyplot.subplots(
        rows, COLUMNS, figsize=(4 * COLUMNS, 2.4 * rows + 0.6), squeeze=False, layout="constrained"
    )
    for axis, (shape, panel) in zip(axes.flat, shapes.items(), strict=False):
        for label, points in panel.items():
            style = "o-" if label == "dynprune" else "s--"
            axis.plot(*zip(*sorted(points), strict=True), style, label=label)
        axis.set(title=f"{suite} {shape}", xlabel="active, %", ylabel="microseconds", ylim=0)
    for axis in list(axes.flat)[len(shapes) :]:
        axis.remove()
    axes.flat[0].legend(fontsize="small")
    figure.suptitle(f"{machine['cpu']}, {machine['threads']} thread(s), float32, medians")
    figure.savefig(target, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    for suite in SUITES:
        shapes = panels(results["suites"].get(suite, {"cases": {}})["cases"])
        if shapes:
            target = options.results.with_name(f"{options.results.stem}-{suite}.png")
            draw(suite, shapes, results["machine"], target)
            print(f"written to {target}")


if __name__ == "__main__":
    main()
