"""A stream of traffic served by adapting models, with the dense model beside them, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import dynprune
from dynprune.experiments.evaluation import BATCH_SIZE, Predict, class_logits
from dynprune.experiments.samples import Inputs, Split
from dynprune.experiments.serving import Activity, watch
from dynprune.streams import Arrival, Stream

Record = dict[str, Any]
Columns = dict[str, list[Any]]


def serve_stream(
    dense: Predict,
    served: Mapping[str, dynprune.AcceleratedModel],
    split: Split,
    stream: Stream,
    on_batch: Callable[[], None] = lambda: None,
) -> Record:
    """What happens in each batch, as plain data.

    ``dense``: the model as it is timed; ``served``: the models made of it; ``split``: the samples that
    arrive. Every model serves every batch; which of them is first changes from batch to batch. The result has
    ``phase`` and ``phase_share`` (of the samples that belong to it) per batch, and for ``dense`` and each of
    ``runs`` columns with one value per batch: ``accuracy``, ``time_ms`` per sample, and of the latter also
    ``active_fraction``, ``operations_share``, ``flips``, ``canary_rows``, ``observing``, ``active_share`` per
    group, and with a guard ``divergence`` (estimate and the ends of the interval).
    """
    columns: dict[str, Columns] = {name: {} for name in ("dense", *served)}
    phases, shares = [], []
    names = list(columns)
    with torch.inference_mode():
        dense(*split.samples.inputs(split.rows[:BATCH_SIZE]))
        for arrival in stream.arrivals(split.labels, split.samples.lengths, BATCH_SIZE):
            inputs = split.samples.inputs(arrival.rows, _corruption(stream, arrival))
            labels = split.labels[arrival.rows]
            phases.append(arrival.phase)
            shares.append(round((arrival.phases == arrival.phase).double().mean().item(), 4))
            first = arrival.number % len(names)
            for name in names[first:] + names[:first]:
                if name == "dense":
                    _add(columns[name], _answered(dense, inputs, labels))
                else:
                    _add(columns[name], _adapted(served[name], inputs, labels))
            on_batch()
    return {
        "kind": stream.kind,
        "rounds": stream.rounds,
        "batch_size": BATCH_SIZE,
        "phases": [{"name": phase.name, "batches": phase.batches} for phase in stream.phases],
        "phase": phases,
        "phase_share": shares,
        "dense": columns["dense"],
        "runs": {
            name: {
                "criterion": fast.config.criterion,
                "compensation": fast.config.compensation,
                "prune_threshold": fast.config.prune_threshold,
                "reactivate_threshold": fast.config.reactivate_threshold,
                "max_divergence": fast.config.max_divergence,
                **columns[name],
            }
            for name, fast in served.items()
        },
    }


def _corruption(stream: Stream, arrival: Arrival) -> Callable[[Inputs], Inputs]:
    return lambda samples: stream.corrupt(samples, arrival)


def _answered(predict: Predict, inputs: Inputs, labels: Tensor) -> Record:
    started = time.perf_counter()
    output = predict(*inputs)
    seconds = time.perf_counter() - started
    right = (class_logits(output).argmax(1) == labels).double().mean().item()
    return {"accuracy": round(right, 4), "time_ms": round(1e3 * seconds / len(labels), 5)}


def _adapted(fast: dynprune.AcceleratedModel, inputs: Inputs, labels: Tensor) -> Record:
    with watch(fast) as activity:
        record = _answered(fast, inputs, labels)
    return {**record, **_state(fast, activity)}


def _state(fast: dynprune.AcceleratedModel, activity: Activity) -> Record:
    stats = fast.stats()
    state = {
        "active_fraction": round(stats["active_fraction"], 4),
        "operations_share": round(activity.operations_share, 4),
        "flips": activity.flips,
        "canary_rows": activity.canary_rows,
        "observing": stats["observing"],
        "active_share": {name: round(mask.double().mean().item(), 4) for name, mask in fast.active().items()},
    }
    if "divergence" in stats:
        ends = ("estimate", "low", "high")
        state["divergence"] = {end: round(stats["divergence"][end], 5) for end in ends}
    return state


def _add(columns: Columns, record: Record) -> None:
    """One more row; values that are records themselves become columns of their own, one below."""
    for name, value in record.items():
        if isinstance(value, dict):
            below: Any = columns.setdefault(name, {})  # type: ignore[arg-type]
            _add(below, value)
        else:
            columns.setdefault(name, []).append(value)
