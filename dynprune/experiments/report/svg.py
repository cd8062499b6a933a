"""Figures as SVG inside a page: colours are the page's, so they follow its light and dark theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby

from dynprune.experiments.report.figures import Bars, Chart, Figure, HeatMap

# Narrow on purpose: on a phone the text is then still large enough to read.
WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 30, 36
COLOURS = 8  # of the page's --series-N
DASHES = ("", "6 3", "2 2", "8 3 2 3")
HEAT_ROW = 18
BAR = 9
# Widths of a character, about: of a mark's label, and of other labels.
MARK_CHARACTER, LABEL_CHARACTER = 5, 7.5

Scale = Callable[[float], float]


def draw(figure: Figure, identity: str) -> str:
    """``figure`` as one ``<svg>``; ``identity`` makes the names in it unique on the page."""
    if isinstance(figure, Chart):
        height, body = HEIGHT, _chart(figure)
    elif isinstance(figure, HeatMap):
        height, body = _heat_map(figure)
    elif isinstance(figure, Bars):
        height, body = _bars(figure)
    else:
        raise ValueError(f"svg: expected a Chart, a HeatMap or Bars, got {type(figure).__name__}")
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{identity}-t {identity}-d">'
        f'<title id="{identity}-t">{escape(figure.title)}</title>'
        f'<desc id="{identity}-d">{escape(figure.text)}</desc>{body}</svg>'
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def colour(number: int) -> tuple[str, str]:
    """The class of a series' colour, and its dashes, which tell it apart without colour."""
    return f"s{number % COLOURS + 1}", DASHES[number % len(DASHES)]


def _chart(figure: Chart) -> str:
    xs = [x for series in figure.series for x in series.x]
    ys = [y for series in figure.series for y in series.y]
    low, high = (min(ys), max(ys)) if ys else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.5
    across = _scale(min(xs, default=0.0), max(xs, default=1.0), LEFT, WIDTH - RIGHT)
    down = _scale(low - margin, high + margin, HEIGHT - BOTTOM, TOP)
    parts = [_axes(figure, xs, (low - margin, high + margin), across, down), _marks(figure, across, HEIGHT)]
    number = 0
    for series in figure.series:
        name, dashes = ("dense", "") if series.reference else colour(number)
        number += not series.reference
        places = [(across(x), down(y)) for x, y in zip(series.x, series.y, strict=True)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in _thinned(places))
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        parts.append(f'<polyline class="line {name}" points="{line}"{dash}/>')
        if figure.points and not series.reference:
            parts += [f'<circle class="dot {name}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places]
    return "".join(parts)


def _heat_map(figure: HeatMap) -> tuple[int, str]:
    height = TOP + HEAT_ROW * len(figure.rows) + BOTTOM
    left = _label_width(figure.rows)
    columns = max(map(len, figure.values), default=1)
    across = _scale(1, columns + 1, left, WIDTH - RIGHT)
    parts = []
    for row, (name, values) in enumerate(zip(figure.rows, figure.values, strict=True)):
        top = TOP + HEAT_ROW * row
        parts.append(_text(left - 4, top + 12, name, "end"))
        number = 1
        for value, same in groupby(values):
            count = len(list(same))
            x, end = across(number), across(number + count)
            parts.append(
                f'<rect class="heat" x="{x:.1f}" y="{top}" width="{end - x:.1f}" height="{HEAT_ROW - 2}" '
                f'fill-opacity="{value:.3f}"><title>{escape(name)}: {100 * value:.0f}%</title></rect>'
            )
            number += count
    whole = [tick for tick in ticks(1, columns) if tick == int(tick)]
    parts += [_text(across(tick), height - BOTTOM + 14, f"{tick:g}", "middle") for tick in whole]
    parts.append(_text((left + WIDTH) / 2, height - 4, figure.x_label, "middle"))
    return height, "".join(parts) + _marks(figure, across, height)


def _bars(figure: Bars) -> tuple[int, str]:
    row = BAR * len(figure.series) + 6
    height = TOP + row * len(figure.categories) + BOTTOM
    left = _label_width(figure.categories)
    values = [value for _, series in figure.series for value in series]
    across = _scale(min(0.0, *values), max(0.0, *values), left, WIDTH - RIGHT)
    bottom = height - BOTTOM
    parts = []
    for tick in ticks(min(0.0, *values), max(0.0, *values)):
        x = across(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 14, f"{tick:g}", "middle"))
    for place, category in enumerate(figure.categories):
        top = TOP + row * place
        parts.append(_text(left - 4, top + row / 2 + 2, category, "end"))
        for number, (name, series) in enumerate(figure.series):
            x, end = sorted((across(0), across(series[place])))
            parts.append(
                f'<rect class="bar {colour(number)[0]}" x="{x:.1f}" y="{top + 2 + BAR * number}" '
                f'width="{max(end - x, 0.5):.1f}" height="{BAR - 1}">'
                f"<title>{escape(f'{category}, {name}: {series[place]:+.2f}')}</title></rect>"
            )
    parts.append(_text((left + WIDTH) / 2, height - 4, figure.x_label, "middle"))
    return height, "".join(parts)


def _label_width(labels: Sequence[str]) -> float:
    return 10 + LABEL_CHARACTER * max(map(len, labels), default=0)


def _axes(
    figure: Chart, xs: Sequence[float], y_range: tuple[float, float], across: Scale, down: Scale
) -> str:
    parts = []
    for tick in ticks(*y_range):
        y = down(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 4, y + 4, f"{tick:g}", "end"))
    below = ticks(min(xs, default=0.0), max(xs, default=1.0))
    parts += [_text(across(tick), HEIGHT - BOTTOM + 14, f"{tick:g}", "middle") for tick in below]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, figure.x_label, "middle"))
    parts.append(_text(2, 10, figure.y_label, "start"))
    return "".join(parts)


def _marks(figure: Figure, across: Scale, height: int) -> str:
    """Vertical lines, with their labels above where there is room for them."""
    parts = []
    free = 0.0
    for x, label in figure.marks:
        place = across(x)
        parts.append(
            f'<line class="mark" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP - 12}" y2="{height - BOTTOM}"/>'
        )
        if place >= free:
            parts.append(f'<text class="mark" x="{place + 2:.1f}" y="{TOP - 5}">{escape(label)}</text>')
            free = place + MARK_CHARACTER * len(label)
    return "".join(parts)


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _thinned(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without the places in the middle of a level stretch."""
    return [
        place
        for i, place in enumerate(places)
        if i in (0, len(places) - 1) or not places[i - 1][1] == place[1] == places[i + 1][1]
    ]
