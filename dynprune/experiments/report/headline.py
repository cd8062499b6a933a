"""The headline table of a report: every model of every run on every kind of traffic, one row each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]

COLUMNS = (
    "run",
    "traffic",
    "model",
    "accuracy %",
    "macro F1",
    "loss",
    "operations %",
    "time %, batch 64",
    "time %, batch 1",
    "ms/item, batch 64",
    "p95",
    "ms/item, batch 1",
    "p95",
    "CPU s/1000",
    "parameters, thousands",
    "file, MB",
    "flips",
)
TEXT_COLUMNS = 3


@dataclass(frozen=True)
class Row:
    """One row, cell by cell; ``dense`` rows lead those of the models made of them."""

    cells: tuple[str, ...]
    dense: bool


def headline(runs: Sequence[Record], run_names: Sequence[str]) -> Iterator[Row]:
    """The rows of all ``results.json``, with the names of their runs."""
    for results, run_name in zip(runs, run_names, strict=True):
        traffic = None
        for run in results["runs"].values():
            names = (run_name, run["traffic"])
            if run["traffic"] != traffic:
                traffic = run["traffic"]
                yield Row((*names, "dense", *_cells(run["dense"])), dense=True)
            thresholds = f"{run['prune_threshold']:g}/{run['reactivate_threshold']:g}"
            model = f"{run['criterion']} {thresholds}, {run['compensation']}"
            yield Row((*names, model, *_cells(run)), dense=False)


def _cells(run: Record) -> tuple[str, ...]:
    shares = [run.get(name, 1.0) for name in ("operations_share", "time_share", "time_share_batch1")]
    return (
        f"{100 * run['eval_accuracy']:.2f}",
        f"{run['eval_f1']:.4f}",
        f"{run['eval_loss']:.4f}",
        *(f"{100 * share:.1f}" for share in shares),
        f"{run['time_per_sample_ms']:.3f}",
        f"{run['time_per_sample_ms_p95']:.3f}",
        f"{run['time_per_sample_ms_batch1']:.3f}",
        f"{run['time_per_sample_ms_batch1_p95']:.3f}",
        f"{run['cpu_seconds_per_1000_samples']:.2f}",
        f"{run.get('active_parameters', run['parameters']) / 1e3:.0f}",
        f"{run.get('materialized_file_bytes', run.get('file_bytes', 0)) / 1e6:.2f}",
        str(run.get("flips", "")),
    )


def facts(results: Record) -> dict[str, str]:
    """Machine, versions and where the data came from, for one run."""
    data, config = results["data"], results["config"]
    about = {f"machine: {name}": str(value) for name, value in results["machine"].items()}
    about |= {f"version: {name}": str(value) for name, value in results["versions"].items()}
    counts = f"{data['train']} training and {data['test']} test samples"
    about["data"] = f"{data['name']}, {data['source']}, {counts}"
    about["options"] = ", ".join(f"{name} {value}" for name, value in config.items() if value is not None)
    return about
