"""What the user sees at the end: the contents of ``results.json`` as tables and a few sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Record = Mapping[str, Any]

TABLE_WIDTH = 120
COLUMNS = (
    "accuracy\n%",
    "macro\nF1",
    "loss",
    "ms/item\nb 64",
    "ms/item\nb 1",
    "items\n/s",
    "steps\n/s",
    "CPU\n%",
    "CPU s\n/1000",
    "params k\nactive/all",
    "Mops/item\ndone/dense",
    "flips",
)


def make_console() -> Console:
    """A console for the tables: as wide as the terminal, or 120 columns where there is none."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    return console


def show(results: Record, console: Console) -> None:
    """Print the tables and the summary of one experiment."""
    console.print(runs_table(results))
    if any("return" in run for run in results["runs"].values()):
        console.print(return_table(results))
    for sentence in summary(results):
        console.print(sentence)


def runs_table(results: Record) -> Table:
    """One row per run, each kind of traffic led by its dense model."""
    caption = "b: batch size. CPU 100 %: one busy core. Mops: million multiply-adds, canary rows included."
    table = Table(box=box.SIMPLE_HEAD, padding=0, caption=caption, caption_justify="left")
    table.add_column("\nrun", no_wrap=True)
    for header in COLUMNS:
        table.add_column(header if "\n" in header else f"\n{header}", justify="right", no_wrap=True)
    traffic = None
    for run in results["runs"].values():
        if run["traffic"] != traffic:
            if traffic is not None:
                table.add_section()
            traffic = run["traffic"]
            table.add_row(f"dense, {traffic}", *_cells(run["dense"]))
        thresholds = f"{run['prune_threshold']:g}/{run['reactivate_threshold']:g}"
        label = "" if run["compensation"] == "mean" else f" {run['compensation']}"
        table.add_row(f" {run['criterion']} {thresholds}{label}", *_cells(run))
    return table


def return_table(results: Record) -> Table:
    """How each run recovers when all classes return."""
    protocol = results["protocol"]
    title = f"All classes return, batches {protocol['return_skip'] + 1} to {protocol['return_batches']}"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    table.add_column("after traffic", no_wrap=True)
    for header in (
        "thresholds",
        "compensation",
        "accuracy %",
        "dense %",
        "difference",
        "operations %",
        "flips",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    for run in results["runs"].values():
        for returned in run.get("return", {}).values():
            table.add_row(
                run["traffic"],
                f"{returned['prune_threshold']:g}/{returned['reactivate_threshold']:g}",
                returned["compensation"],
                f"{100 * returned['accuracy']:.2f}",
                f"{100 * returned['dense_accuracy']:.2f}",
                f"{100 * returned['accuracy_difference']:+.2f}",
                f"{100 * returned['operations_share']:.1f}",
                str(returned["flips"]),
            )
    return table


def summary(results: Record) -> Iterator[str]:
    """A line per run, and one for the mean over the traffic of a few classes."""
    for name, bar in results.get("bars", {}).items():
        wanted = f"at least {bar['least']:g}" if "least" in bar else f"at most {bar['most']:g}"
        yield f"Dense {name} {bar['got']:.4f}, expected {wanted}: {'met' if bar['met'] else 'NOT met'}."
    yield "Beside the dense eager model in its faster memory format, at batch 64:"
    for name, run in results["runs"].items():
        yield f"  {name} ({run['dense']['memory_format']}): {_against_dense(run)}."
    for compensation, mean in results.get("traffic_mean", {}).items():
        yield (
            f"  mean over the traffic of a few classes, {compensation}: {_against_dense(mean)}; "
            f"the time is {mean['time_share_per_operations_share']:.2f} x the share of the operations."
        )


def _against_dense(record: Record) -> str:
    return (
        f"{100 * record['operations_share']:.1f} % of the operations, "
        f"{100 * record['time_share']:.1f} % of the time, "
        f"accuracy {100 * record['accuracy_difference']:+.2f} points"
    )


def _cells(run: Record) -> list[str]:
    active = run.get("active_parameters", run["parameters"])
    dense_operations = run.get("dense_operations_per_sample", run["operations_per_sample"])
    return [
        f"{100 * run['eval_accuracy']:.2f}",
        f"{run['eval_f1']:.4f}",
        f"{run['eval_loss']:.4f}",
        f"{run['time_per_sample_ms']:.3f}",
        f"{run['time_per_sample_ms_batch1']:.3f}",
        f"{run['eval_samples_per_second']:.0f}",
        f"{run['eval_steps_per_second']:.1f}",
        f"{run['cpu_utilisation_percent']:.0f}",
        f"{run['cpu_seconds_per_1000_samples']:.2f}",
        f"{active / 1e3:.0f}/{run['parameters'] / 1e3:.0f}",
        f"{run['operations_per_sample'] / 1e6:.2f}/{dense_operations / 1e6:.2f}",
        str(run.get("flips", "-")),
    ]
