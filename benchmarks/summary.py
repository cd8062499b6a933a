"""From pytest-benchmark's report to the summary that is kept, and its table."""

from __future__ import annotations

from dataclasses import asdict
from statistics import geometric_mean, quantiles
from typing import Any

from benchmarks.bars import Bar, bars


def summarize(report: dict[str, Any]) -> dict[str, Any]:
    """The machine, the figures of each suite beside their bars, and every entry's statistics."""
    machine = report["machine_info"]["dynprune"]
    suites: dict[str, Any] = {}
    entries = []
    for entry in report["benchmarks"]:
        stats = {key: entry["stats"][key] for key in ("min", "median", "iqr", "rounds")}
        entries.append({"name": entry["name"], "group": entry["group"], "seconds": stats})
        extra = entry["extra_info"]
        if "figures" in extra:
            cases = suites.setdefault(extra["suite"], {"cases": {}})["cases"]
            cases[extra["case"]] = {
                key: extra[key] for key in ("figures", "medians", "again") if key in extra
            }
    for suite, content in suites.items():
        content["figures"] = {
            name: overall(
                values, bars(machine["threads"], "cuda" if machine.get("gpu") else "cpu").get((suite, name))
            )
            for name, values in by_figure(content["cases"]).items()
        }
    return {"date": report["datetime"], "machine": machine, "suites": suites, "entries": entries}


def by_figure(cases: dict[str, Any]) -> dict[str, list[float]]:
    """Figure -> its values over the cases that have it."""
    values: dict[str, list[float]] = {}
    for row in cases.values():
        for name, value in row["figures"].items():
            values.setdefault(name, []).append(value)
    return values


def overall(values: list[float], bar: Bar | None) -> dict[str, Any]:
    """Mean, worst twentieth and extremes of one figure over its cases."""
    tails = quantiles(values, n=20, method="inclusive") if len(values) > 1 else values
    result: dict[str, Any] = {
        "geometric_mean": geometric_mean(values),
        "percentile_5": tails[0],
        "percentile_95": tails[-1],
        "minimum": min(values),
        "maximum": max(values),
    }
    if bar is not None:
        result["bar"] = asdict(bar)
        result["met"] = (
            bar.allows(result["geometric_mean"], bar.mean)
            and bar.allows(result["percentile_95" if bar.at_most else "percentile_5"], bar.tail)
            and bar.allows(result["maximum" if bar.at_most else "minimum"], bar.worst)
        )
    return result


def print_table(summary: dict[str, Any]) -> None:
    """Per suite the figures of every case, then of all of them beside the bars."""
    machine = summary["machine"]
    print(machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} thread(s)")
    for name, suite in summary["suites"].items():
        figures = list(suite["figures"])
        wide = max(len(case) for case in suite["cases"]) + 4
        print(f"\n{name:<{wide}}{'ours us':>10}  {'  '.join(figures)}  fastest other")
        for case, row in suite["cases"].items():
            print(f"  {case:<{wide - 2}}{_case(row, figures)}")
        for figure, values in suite["figures"].items():
            print(f"  {figure}: {_overall(values)}")


def _case(row: dict[str, Any], figures: list[str]) -> str:
    cells = [
        f"{row['figures'][name]:.3f}".rjust(len(name)) if name in row["figures"] else "-".rjust(len(name))
        for name in figures
    ]
    medians = row["medians"]
    others = [name for name in medians if name != "ours"]
    other = min(others, key=medians.__getitem__) if others else ""
    micros = f"{medians['ours'] * 1e6:.1f}" if "ours" in medians else "-"
    line = f"{micros:>10}  {'  '.join(cells)}  {other}"
    for again in row.get("again", []):
        line += " | again " + " ".join(f"{again[name]:.3f}" for name in figures if name in again)
    return line


def _overall(values: dict[str, Any]) -> str:
    bar = Bar(**values["bar"]) if "bar" in values else None
    at_most = bar is not None and bar.at_most

    def part(key: str, limit: float | None) -> str:
        held = "" if limit is None else f" (bar {'at most' if at_most else 'at least'} {limit:g})"
        return f"{key.replace('_', ' ')} {values[key]:.3f}{held}"

    tail, worst = ("percentile_95", "maximum") if at_most else ("percentile_5", "minimum")
    if bar is None:
        return ", ".join(part(key, None) for key in ("geometric_mean", tail, worst))
    parts = part("geometric_mean", bar.mean), part(tail, bar.tail), part(worst, bar.worst)
    return f"{', '.join(parts)}: {'met' if values['met'] else 'MISSED'}"
