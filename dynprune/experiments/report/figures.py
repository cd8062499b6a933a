"""What a report shows, as plain data: the two renderers, ``svg`` and ``png``, draw the same figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

Record = Mapping[str, Any]
# Single batches of 64 are noisy: curves of accuracy are means over so many.
SMOOTHED_BATCHES = 5
# Points of a trade-off that lose more accuracy would leave no room for those that matter.
LARGEST_LOSS = 0.15


@dataclass(frozen=True)
class Series:
    """One curve; ``reference`` marks the dense model, against which the others stand."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    reference: bool = False


@dataclass(frozen=True)
class Figure:
    """What all figures have: ``text`` says in words what is to be seen; ``marks`` are (x, label)."""

    key: str
    title: str
    x_label: str
    y_label: str
    text: str
    marks: Sequence[tuple[float, str]] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Chart(Figure):
    """Curves; with ``points`` every value has a marker."""

    series: Sequence[Series]
    points: bool = False


@dataclass(frozen=True)
class HeatMap(Figure):
    """``values`` [rows][columns], 0 to 1; ``rows`` are their names."""

    rows: Sequence[str]
    values: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Bars(Figure):
    """Horizontal bars from zero, one per category and series; positive is to the right."""

    categories: Sequence[str]
    series: Sequence[tuple[str, Sequence[float]]]


def figures_of(results: Record) -> Iterator[Figure]:
    """All figures that the contents of one ``results.json`` have."""
    if results["training"]:
        yield _training(results)
    if "trade_off" in results:
        yield from _trade_offs(results["trade_off"])
    if "stream" in results:
        yield from _stream(results["stream"])
    changes = _class_changes(results)
    if changes is not None:
        yield changes


def _training(results: Record) -> Chart:
    epochs = results["training"]
    numbers = list(range(1, len(epochs) + 1))
    series = [Series("training loss", numbers, [epoch["loss"] for epoch in epochs])]
    text = f"Loss falls from {epochs[0]['loss']:.3f} to {epochs[-1]['loss']:.3f} in {len(epochs)} epochs"
    held_out = [epoch.get("validation_loss") for epoch in epochs]
    if held_out[0] is not None:
        series.append(Series("loss on samples held out", numbers, held_out))
        text += f"; on samples held out it is least in epoch {held_out.index(min(held_out)) + 1}"
    return Chart("training", "Training", "epoch", "loss", f"{text}.", series, points=True)


def _trade_offs(record: Record) -> Iterator[Chart]:
    names: dict[str, list[Record]] = {}
    for point in record["points"]:
        stand_in = point["compensation"]
        name = f"{point['method']}, {stand_in}" if stand_in else point["method"]
        names.setdefault(name, []).append(point)
    floor = record["dense_accuracy"] - LARGEST_LOSS
    for axis, words in (("operations_share", "operations"), ("time_share", "time")):
        series = []
        best = []
        for name, points in names.items():
            ordered = sorted((p for p in points if p["accuracy"] >= floor), key=lambda point: point[axis])
            if not ordered:
                continue
            x = [100 * point[axis] for point in ordered]
            series.append(Series(name, x, [100 * point["accuracy"] for point in ordered]))
            free = [p for p in ordered if p["accuracy"] >= record["dense_accuracy"] - 0.01]
            if free:
                best.append(f"{name} {100 * free[0][axis]:.0f}%")
        ends = [min((min(s.x) for s in series), default=0), max([100, *(max(s.x) for s in series)])]
        dense = 100 * record["dense_accuracy"]
        series.insert(0, Series("dense", ends, [dense, dense], reference=True))
        least = ", ".join(best) or "none"
        text = f"Least {words} within one point of the dense accuracy of {dense:.2f}%: {least}."
        below = sum(point["accuracy"] < floor for point in record["points"])
        if below:
            text += f" Not drawn, because lower than {100 * floor:.0f}%: {below}."
        yield Chart(
            f"trade-off-{words}",
            f"Accuracy against {words}",
            f"{words} in % of dense",
            "accuracy %",
            text,
            series,
            points=True,
        )


def _stream(record: Record) -> Iterator[Figure]:
    runs = record["runs"]
    batches = list(range(1, len(record["phase"]) + 1))
    marks = phase_marks(record)
    named = [("dense", record["dense"]), *runs.items()]

    def curves(column: str, smooth: int, among: Sequence[tuple[str, Record]]) -> list[Series]:
        return [
            Series(name, batches, [100 * v for v in smoothed(run[column], smooth)], name == "dense")
            for name, run in among
        ]

    means = ", ".join(f"{name} {100 * mean(run['accuracy']):.2f}%" for name, run in named)
    yield Chart(
        "stream-accuracy",
        f"Accuracy over the stream {record['spec']}",
        "batch",
        f"accuracy %, mean of {SMOOTHED_BATCHES}",
        f"Mean accuracy over the whole stream: {means}.",
        curves("accuracy", SMOOTHED_BATCHES, named),
        marks=marks,
    )
    for column, title in (("active_fraction", "Active units"), ("operations_share", "Operations")):
        shares = ", ".join(f"{name} {100 * mean(run[column]):.1f}%" for name, run in runs.items())
        yield Chart(
            f"stream-{column.partition('_')[0]}",
            f"{title} over the stream",
            "batch",
            f"{title.lower()} in %",
            f"Mean over the whole stream: {shares}.",
            curves(column, 1, list(runs.items())),
            marks=marks,
        )
    totals = ", ".join(f"{name} {sum(run['flips'])}" for name, run in runs.items())
    yield Chart(
        "stream-flips",
        "Flips, summed over the stream",
        "batch",
        "flips so far",
        f"Units that left or entered the active set: {totals}.",
        [Series(name, batches, list(accumulate(run["flips"]))) for name, run in runs.items()],
        marks=marks,
    )
    for name, run in runs.items():
        if sum(run["flips"]) == 0:
            continue
        shares = run["active_share"]
        least = min(shares, key=lambda group: mean(shares[group]))
        yield HeatMap(
            "usage-" + name.replace(" ", "-").replace("/", "-"),
            f"Units in use per layer, {name}",
            "batch",
            "layer",
            f"The layer that uses the least of its units is {least}, "
            f"{100 * mean(shares[least]):.0f}% on average.",
            list(shares),
            list(shares.values()),
            marks=marks,
        )


def _class_changes(results: Record) -> Bars | None:
    """What pruning changes in each class on uniform traffic, in points."""
    classes = results["data"]["classes"]
    series = []
    for name, run in results["runs"].items():
        dense = run["dense"]["eval_class_accuracy"]
        if run["traffic"] == "all classes" and None not in dense:
            pairs = zip(run["eval_class_accuracy"], dense, strict=True)
            series.append((name, [100 * (pruned - full) for pruned, full in pairs]))
    if not series:
        return None
    name, changes = series[0]
    worst = min(range(len(classes)), key=lambda number: changes[number])
    text = f"Under {name} the class that loses most is {classes[worst]}, {changes[worst]:+.2f} points."
    return Bars("classes", "Accuracy per class, pruned less dense", "points", "class", text, classes, series)


def phase_marks(record: Record) -> list[tuple[float, str]]:
    """The batch each phase begins with, and its name."""
    phases, marks, before = record["phase"], [], None
    for number, phase in enumerate(phases, 1):
        if phase != before:
            marks.append((float(number), record["phases"][phase]["name"]))
        before = phase
    return marks


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Means over up to ``width`` values, each and those before it."""
    return [mean(values[max(0, i + 1 - width) : i + 1]) for i in range(len(values))]


def mean(values: Sequence[float]) -> float:
    """The mean of at least one value."""
    return sum(values) / len(values)
