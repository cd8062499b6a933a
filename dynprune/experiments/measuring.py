"""One measured comparison: the dense model and adapting models on the same traffic."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dynprune
from dynprune.experiments.data import Data
from dynprune.experiments.evaluation import Predict, Quality, predict_all, quality
from dynprune.experiments.options import Protocol
from dynprune.experiments.resources import Memory, Size, memory_of, size_of
from dynprune.experiments.samples import Split
from dynprune.experiments.serving import Activity, adapt, judged_rows, timed_batches, watch
from dynprune.experiments.timing import Timing, time_interleaved
from dynprune.streams import Traffic

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Times:
    """Times at batch 64 and at batch 1, and the memory of one pass at batch 64."""

    batch: Timing
    single: Timing
    memory: Memory


@dataclass(frozen=True)
class DenseRow:
    """The dense eager model on one kind of traffic, timed in each memory format."""

    traffic: Traffic
    samples: int
    quality: Quality
    size: Size
    times: Mapping[str, Times]

    @property
    def batch_format(self) -> str:
        """The faster memory format at batch 64."""
        return min(self.times, key=lambda name: self.times[name].batch.per_sample_ms)

    @property
    def single_format(self) -> str:
        """The faster memory format at batch 1."""
        return min(self.times, key=lambda name: self.times[name].single.per_sample_ms)


@dataclass(frozen=True)
class Judged:
    """What an adapting model did with the whole test split of its traffic.

    ``activity`` covers the judged samples; ``flips`` counts from the start of the warm-up on. At the
    end of the judged samples ``units`` holds the active and all units of each group, ``active`` is the size
    of a dense model with the active ones only, and ``materialized`` that of a plain module that answers as
    the pruned model does.
    """

    quality: Quality
    activity: Activity
    flips: int
    units: Mapping[str, tuple[int, int]]
    active: Size
    materialized: Size


@dataclass(frozen=True)
class PrunedRow:
    """An adapting model, on the same samples as its dense row."""

    config: dynprune.Config
    dense: DenseRow
    judged: Judged
    times: Times

    @property
    def batch_time_share(self) -> float:
        """Time at batch 64, as a share of the dense model's in its faster memory format."""
        dense = self.dense.times[self.dense.batch_format]
        return self.times.batch.per_sample_ms / dense.batch.per_sample_ms

    @property
    def single_time_share(self) -> float:
        """The same at batch 1."""
        dense = self.dense.times[self.dense.single_format]
        return self.times.single.per_sample_ms / dense.single.per_sample_ms

    @property
    def accuracy_difference(self) -> float:
        """Accuracy less that of the dense model, from -1 to 1."""
        return self.judged.quality.accuracy - self.dense.quality.accuracy


def compare(
    model: nn.Module,
    data: Data,
    traffic: Traffic,
    configs: Mapping[str, dynprune.Config],
    protocol: Protocol,
    seed: int,
) -> dict[str, PrunedRow]:
    """Adapt ``model`` to ``traffic`` under each of ``configs``, judge it, and time it.

    The models go on adapting while they are judged and timed, side by side with the dense one.
    """
    rows = judged_rows(data.test, traffic, seed)
    adapted = {name: adapt(model, data, traffic, config, protocol, seed) for name, config in configs.items()}
    judged = {name: judge(fast, data.test, rows) for name, fast in adapted.items()}
    formats = dense_in_each_format(model)
    times = _time_all({**formats, **adapted}, data, traffic, protocol, seed)
    dense = DenseRow(
        traffic,
        len(rows),
        quality(predict_all(model, data.test, rows), data.test.labels[rows]),
        size_of(model),
        {name: times[name] for name in formats},
    )
    return {name: PrunedRow(config, dense, judged[name], times[name]) for name, config in configs.items()}


def judge(fast: dynprune.AcceleratedModel, split: Split, rows: Tensor) -> Judged:
    """Serve ``rows`` int64 [n] of ``split`` in their order."""
    with watch(fast) as activity:
        logits = predict_all(fast, split, rows)
    return Judged(
        quality(logits, split.labels[rows]),
        activity,
        fast.stats()["flips"],
        {name: (int(active.sum()), len(active)) for name, active in fast.active().items()},
        size_of(fast.materialize(compensate=False)),
        size_of(fast.materialize()),
    )


def dense_in_each_format(model: nn.Module) -> dict[str, Predict]:
    """The dense model in every memory format that makes a difference to it."""

    def predictor(memory_format: torch.memory_format) -> Predict:
        dense = copy.deepcopy(model).to(memory_format=memory_format)  # type: ignore[call-overload]
        return lambda images: dense(images.contiguous(memory_format=memory_format))

    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return {"contiguous": model}
    return {name: predictor(memory_format) for name, memory_format in FORMATS.items()}


def _time_all(
    models: Mapping[str, Predict], data: Data, traffic: Traffic, protocol: Protocol, seed: int
) -> dict[str, Times]:
    batches, singles = timed_batches(data.test, traffic, protocol, seed)
    by_batch = time_interleaved(models, batches, protocol.repeats_for(len(batches)))
    by_single = time_interleaved(models, singles, protocol.repeats_for(len(singles)))

    def memory(predict: Predict) -> Memory:
        with torch.inference_mode():
            return memory_of(lambda: [predict(*inputs) for inputs in batches])

    return {name: Times(by_batch[name], by_single[name], memory(predict)) for name, predict in models.items()}
