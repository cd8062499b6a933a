"""Figures as PNG files, by matplotlib."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from PIL import Image

from dynprune.experiments.report.figures import Bars, Chart, Figure, HeatMap

STYLES = ("-", "--", ":", "-.")
COLORS = 64  # of a file: a third of the bytes


def draw(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path``."""
    size = (6.4, 4.0)
    if isinstance(figure, HeatMap):
        size = (6.4, 1.2 + 0.28 * len(figure.rows))
    canvas, axes = plt.subplots(figsize=size, layout="constrained")
    if isinstance(figure, Chart):
        _chart(figure, axes)
    elif isinstance(figure, HeatMap):
        _heat_map(figure, axes)
    elif isinstance(figure, Bars):
        _bars(figure, axes)
    else:
        raise ValueError(f"png: expected a Chart, a HeatMap or Bars, got {type(figure).__name__}")
    axes.set_title(figure.title, fontsize=10)
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    for x, label in figure.marks:
        axes.axvline(x, color="0.6", linewidth=0.8)
        axes.annotate(label, (x, 0), (2, 3), xycoords=("data", "axes fraction"),
                      textcoords="offset points", fontsize=7, color="0.4")  # fmt: skip
    drawn = io.BytesIO()
    canvas.savefig(drawn, dpi=110)
    plt.close(canvas)
    Image.open(drawn).convert("RGB").quantize(COLORS).save(path, optimize=True)


def _chart(figure: Chart, axes: Axes) -> None:
    for number, series in enumerate(figure.series):
        if series.reference:
            axes.plot(series.x, series.y, color="0.3", linewidth=1.5, label=series.name)
        else:
            style = STYLES[number % len(STYLES)]
            marker = "o" if figure.points else None
            axes.plot(series.x, series.y, style, marker=marker, markersize=3, label=series.name)
    if figure.series:
        axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def _heat_map(figure: HeatMap, axes: Axes) -> None:
    columns = max(map(len, figure.values), default=1)
    extent = (0.5, columns + 0.5, len(figure.rows) - 0.5, -0.5)
    image = axes.imshow(figure.values, aspect="auto", vmin=0, vmax=1, cmap="Blues", extent=extent)
    axes.set_yticks(range(len(figure.rows)), figure.rows, fontsize=7)
    axes.figure.colorbar(image, ax=axes, label="share in use")


def _bars(figure: Bars, axes: Axes) -> None:
    thickness = 0.8 / len(figure.series)
    for number, (name, values) in enumerate(figure.series):
        places = [place + thickness * number for place in range(len(figure.categories))]
        axes.barh(places, values, thickness, label=name)
    axes.set_yticks(range(len(figure.categories)), figure.categories)
    axes.invert_yaxis()
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.legend(fontsize=7)
