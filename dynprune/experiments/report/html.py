"""The report as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from dynprune.experiments.report import svg
from dynprune.experiments.report.figures import Bars, Chart, Figure, figures_of
from dynprune.experiments.report.headline import COLUMNS, TEXT_COLUMNS, Record, facts, headline


def page(runs: Sequence[Record], names: Sequence[str]) -> str:
    """The page of all ``results.json``, with the names of their runs."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dynprune.experiments.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [
        {
            "name": name,
            "figures": [_shown(figure, f"r{number}-{figure.key}") for figure in figures_of(results)],
            "facts": facts(results),
        }
        for number, (results, name) in enumerate(zip(runs, names, strict=True))
    ]
    return environment.get_template("template.html").render(
        columns=COLUMNS, text_columns=TEXT_COLUMNS, rows=list(headline(runs, names)), sections=sections
    )


def _shown(figure: Figure, identity: str) -> dict[str, Any]:
    return {
        "svg": Markup(svg.draw(figure, identity)),
        "title": figure.title,
        "text": figure.text,
        "legend": _legend(figure),
    }


def _legend(figure: Figure) -> list[dict[str, str]]:
    """Name, colour class and dashes of each series."""
    if isinstance(figure, Bars):
        return [
            {"name": name, "colour": svg.colour(number)[0], "dashes": ""}
            for number, (name, _) in enumerate(figure.series)
        ]
    if not isinstance(figure, Chart):
        return []
    others = [series.name for series in figure.series if not series.reference]
    legend = [
        {"name": series.name, "colour": "dense", "dashes": ""} for series in figure.series if series.reference
    ]
    for number, name in enumerate(others):
        colour, dashes = svg.colour(number)
        legend.append({"name": name, "colour": colour, "dashes": dashes})
    return legend
