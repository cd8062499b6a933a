"""The report as Markdown, with plots as PNG files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dynprune.experiments.report import png
from dynprune.experiments.report.figures import figures_of
from dynprune.experiments.report.headline import COLUMNS, TEXT_COLUMNS, Record, facts, headline


def write(runs: Sequence[Record], names: Sequence[str], folder: Path) -> Path:
    """Write ``report.md`` and its plots to ``folder``; ``names`` of the runs begin the plots' names."""
    lines = ["# dynprune: what pruning while serving costs and saves", ""]
    lines.append("| " + " | ".join(COLUMNS) + " |")
    numbers = len(COLUMNS) - TEXT_COLUMNS
    lines.append("|" + " --- |" * TEXT_COLUMNS + " ---: |" * numbers)
    lines += ["| " + " | ".join(row.cells) + " |" for row in headline(runs, names)]
    for results, name in zip(runs, names, strict=True):
        lines += ["", f"## {name}", ""]
        for figure in figures_of(results):
            file = f"{name}-{figure.key}.png"
            png.draw(figure, folder / file)
            lines += [f"![{figure.title}. {figure.text}]({file})", "", figure.text, ""]
        lines += [f"* {fact}: {value}" for fact, value in facts(results).items()]
    path = folder / "report.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
