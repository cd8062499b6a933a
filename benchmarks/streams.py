"""How an adapting model follows a stream, over many seeds, beside the dense model on the same batches.

    python -m benchmarks.streams cifar10-cnn --data-dir FOLDER --stream 'sudden:0,1*130>8,9*130>all*130' \\
        --thresholds 0.05 0.1 --thresholds 0.2 0.3 --seeds 20

serves the model of ``results/`` (or of ``--weights``). Per seed and phase the record has, in shares of 1:
``operations`` and ``gain``, accuracy minus that of dense, both over the last 50 batches (settled); ``gain``
over batches 9 to 16 and 17 to 80; ``flips``, of all units, per settled batch; ``changed``, how many answers
differ from dense, over the first 20 batches, and over the worst 100 in a row behind them; ``returned``, the
batches that passed until 90% of the units were active whose score on dense statistics of the phase is above
the reactivation threshold; ``missing_returned``, until 90% of those were that were not when the phase began.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import dynprune
from dynprune.control.criteria import CRITERIA
from dynprune.experiments import checkpoints, serving
from dynprune.experiments.catalogue import DEFAULT_SHAPE, Choices, find_experiment
from dynprune.experiments.data import Data, load
from dynprune.experiments.evaluation import BATCH_SIZE, class_logits, predict_all
from dynprune.experiments.records import machine_record, versions_record
from dynprune.streams import Stream

SETTLED, FIRST, WINDOW = 50, 20, 100
RETURNED = 0.9
SCORED_ROWS = 2048  # of each phase, for the scores by which a return is judged

Row = dict[str, Any]


class Served:
    """A trained model on its test set."""

    def __init__(self, name: str, data_dir: Path, weights: Path) -> None:
        about = find_experiment(name)
        tensors, facts = checkpoints.read(weights)
        vocabulary = facts.get("vocabulary") or None
        self.data: Data = load(about.data_set, data_dir, None, about.reading, vocabulary)
        self.model: nn.Module = about.build(Choices(0, about.init, DEFAULT_SHAPE), self.data).eval()
        checkpoints.load_into(self.model, tensors, weights)

    @cached_property
    def answers(self) -> Tensor:
        """What the dense model answers, int64 [samples of the test set]."""
        return predict_all(self.model, self.data.test).argmax(1)

    def stream(self, text: str, seed: int) -> Stream:
        """The stream ``text``; its phases must not corrupt samples, whose dense answers are not known."""
        about = self.data.data_set
        stream = Stream.parse(text, len(about.classes), about.kind, seed)
        if any(phase.corruptions for phase in stream.phases):
            raise ValueError(f"--stream: expected phases without corruptions, got {text!r}")
        return stream

    def used(self, stream: Stream, config: dynprune.Config, count: int) -> list[dict[str, Tensor]]:
        """Of each phase, the units whose score without pruning is above the reactivation threshold."""
        split, sets = self.data.test, []
        for phase in stream.phases:
            fast = serving.accelerated(self.model, split, config)
            rows = serving.judged_rows(split, phase.traffic, stream.seed)[:count]
            controller = fast._controller
            controller.config = dataclasses.replace(config, evidence=len(rows) + 1)  # nothing is decided
            with torch.inference_mode():
                for some in torch.split(rows, BATCH_SIZE):
                    fast(*split.samples.inputs(some))
            scores = controller.scores()
            sets.append({name: score > config.reactivate_threshold for name, score in scores.items()})
        return sets

    def batches(self, stream: Stream, config: dynprune.Config, scored: int = SCORED_ROWS) -> Iterator[Row]:
        """What happens in each batch of ``stream``; ``scored``: rows by which returns are judged."""
        split = self.data.test
        fast = serving.accelerated(self.model, split, config)
        units = sum(len(mask) for mask in fast.active().values())
        used = self.used(stream, config, scored)
        phase, missing = -1, used[0]
        with torch.inference_mode():
            for arrival in stream.arrivals(split.labels, split.samples.lengths, BATCH_SIZE):
                active = fast.active()
                wanted = used[arrival.phase]
                if arrival.phase != phase:
                    phase, missing = arrival.phase, {n: mask & ~active[n] for n, mask in wanted.items()}
                inputs = split.samples.inputs(arrival.rows)
                with serving.watch(fast) as activity:
                    answers = class_logits(fast(*inputs)).argmax(1)
                dense, labels = self.answers[arrival.rows], split.labels[arrival.rows]
                yield {
                    "phase": phase,
                    "operations": activity.operations_share,
                    "gain": _share(answers == labels) - _share(dense == labels),
                    "changed": _share(answers != dense),
                    "flips": activity.flips / units,
                    "back": _back(wanted, active),
                    "missing_back": _back(missing, active),
                }


def _back(wanted: dict[str, Tensor], active: dict[str, Tensor]) -> bool:
    """Whether enough of the units ``wanted`` are active."""
    there = sum(int((active[name] & mask).sum()) for name, mask in wanted.items())
    return there >= RETURNED * sum(int(mask.sum()) for mask in wanted.values())


def _share(mask: Tensor) -> float:
    return mask.double().mean().item()


def _mean(rows: list[Row], column: str) -> float:
    return round(statistics.fmean(row[column] for row in rows), 6) if rows else float("nan")


def summary(rows: list[Row]) -> Row:
    """One phase of one seed, see the top of this module."""
    settled, later = rows[-SETTLED:], rows[FIRST:]
    windows = [later[first : first + WINDOW] for first in range(max(1, len(later) - WINDOW + 1))]
    return {
        "operations": _mean(settled, "operations"),
        "gain": _mean(settled, "gain"),
        "gain_9_16": _mean(rows[8:16], "gain"),
        "gain_17_80": _mean(rows[16:80], "gain"),
        "flips": _mean(settled, "flips"),
        "changed_first": _mean(rows[:FIRST], "changed"),
        "changed_worst": max(_mean(window, "changed") for window in windows),
        "returned": next((number for number, row in enumerate(rows) if row["back"]), len(rows)),
        "missing_returned": next((n for n, row in enumerate(rows) if row["missing_back"]), len(rows)),
    }


def phase_summaries(rows: list[Row]) -> list[Row]:
    """Of each phase in the order of arrival, its summary."""
    starts = [n for n, row in enumerate(rows) if n == 0 or row["phase"] != rows[n - 1]["phase"]]
    ends = [*starts[1:], len(rows)]
    return [
        {"phase": rows[first]["phase"], **summary(rows[first:last])}
        for first, last in zip(starts, ends, strict=True)
    ]


def show(label: str, stream: Stream, records: list[Row]) -> None:
    """Print means over the seeds, and the worst where a bar is about the worst."""
    seeds = len({record["seed"] for record in records})
    table = Table(
        "phase",
        "operations (most)",
        "gain (least)",
        "9-16",
        "17-80",
        "flips",
        "changed 20 / 100",
        "returned, median / p95",
        "of missing",
        title=f"{label}, {seeds} seeds; percent, gains in points",
    )
    for number, phase in enumerate(stream.phases):
        some = [record for record in records if record["phase"] == number]

        def column(name: str, some: list[Row] = some) -> list[float]:
            return [100 * record[name] for record in some]

        def batches(name: str, some: list[Row] = some) -> str:
            counts = sorted(record[name] for record in some)
            return f"{statistics.median(counts):g} / {counts[min(len(counts) - 1, int(0.95 * len(counts)))]}"

        operations, gain = column("operations"), column("gain")
        settled = statistics.fmean(gain)
        table.add_row(
            phase.name,
            f"{statistics.fmean(operations):.1f} ({max(operations):.1f})",
            f"{settled:+.2f} ({min(gain):+.2f})",
            f"{statistics.fmean(column('gain_9_16')) - settled:+.2f}",
            f"{statistics.fmean(column('gain_17_80')) - settled:+.2f}",
            f"{statistics.fmean(column('flips')):.3f}",
            f"{max(column('changed_first')):.2f} / {max(column('changed_worst')):.2f}",
            batches("returned"),
            batches("missing_returned"),
        )
    Console(width=140).print(table)


def count(text: str) -> int:
    """A whole number of at least 1, for ``argparse``."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return number


@contextmanager
def clear_errors(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Turn the errors that a user can cause into one line and exit status 2."""
    try:
        yield
    except (OSError, ValueError) as error:
        parser.error(str(error))


def configs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the options say, one dictionary of ``Config``'s arguments per run."""
    runs = [
        {"prune_threshold": prune, "reactivate_threshold": reactivate, "compensation": compensation}
        for prune, reactivate in options.thresholds or [(0.05, 0.10)]
        for compensation in options.compensation
    ]
    fixed = {"max_divergence": options.max_divergence, "criterion": options.criterion}
    return [run | fixed for run in runs]


def main() -> None:
    """Serve, write the record as JSON, print tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="default: results/EXPERIMENT.safetensors")
    parser.add_argument("--stream", required=True)
    parser.add_argument("--thresholds", type=float, nargs=2, action="append", metavar=("PRUNE", "REACTIVATE"))
    parser.add_argument("--compensation", nargs="+", default=["mean"])
    parser.add_argument("--criterion", default="contribution", choices=[*sorted(CRITERIA), "budget"])
    parser.add_argument("--max-divergence", type=float)
    parser.add_argument("--seeds", type=count, default=3, help="seeds 0 to N - 1")
    parser.add_argument("--scored-rows", type=count, default=SCORED_ROWS, help="by which returns are judged")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    weights = options.weights or Path("results") / f"{options.experiment}.safetensors"
    with clear_errors(parser):
        runs = configs(options)
        for arguments in runs:
            dynprune.Config(**arguments)
        served = Served(options.experiment, options.data_dir, weights)
        served.stream(options.stream, 0)
    about: Row = {
        "experiment": options.experiment,
        "stream": options.stream,
        "batch_size": BATCH_SIZE,
        "dense_accuracy": _share(served.answers == served.data.test.labels),
        "machine": machine_record(),
        "versions": versions_record(),
        "results": [],
    }
    for arguments in runs:
        records: list[Row] = []
        about["results"].append({"config": arguments, "phases": records})
        for seed in range(options.seeds):
            stream = served.stream(options.stream, seed)
            config = dynprune.Config(seed=seed, **arguments)
            rows = list(served.batches(stream, config, options.scored_rows))
            records += [{"seed": seed, **each} for each in phase_summaries(rows)]
            options.out.write_text(json.dumps(about, indent=1) + "\n")
        show(", ".join(f"{k} {v}" for k, v in arguments.items() if v is not None), stream, records)


if __name__ == "__main__":
    main()
