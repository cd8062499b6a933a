"""One measured comparison: the dense model and adapting models on the same traffic."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dynprune
from dynprune.experiments.data import Mnist
from dynprune.experiments.evaluation import Predict, Quality, count_parameters, predict_all, quality
from dynprune.experiments.options import Protocol
from dynprune.experiments.serving import Activity, adapt, judged_rows, timed_batches, watch
from dynprune.experiments.timing import Timing, time_interleaved
from dynprune.experiments.traffic import Traffic

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Times:
    """Times at batch 64 and at batch 1."""

    batch: Timing
    single: Timing


@dataclass(frozen=True)
class DenseRow:
    """The dense eager model on one kind of traffic, timed in each memory format."""

    traffic: Traffic
    samples: int
    quality: Quality
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

    ``activity`` covers the judged images; ``flips`` counts from the start of the warm-up on. At the
    end of the judged images ``units`` holds the active and all units of each group, and
    ``active_parameters`` the number of parameters of a dense model of that size.
    """

    quality: Quality
    activity: Activity
    flips: int
    units: Mapping[str, tuple[int, int]]
    active_parameters: int


@dataclass(frozen=True)
class PrunedRow:
    """An adapting model, on the same images as its dense row."""

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
    data: Mnist,
    traffic: Traffic,
    configs: Mapping[str, dynprune.Config],
    protocol: Protocol,
    seed: int,
) -> dict[str, PrunedRow]:
    """Adapt ``model`` to ``traffic`` under each of ``configs``, judge it, and time it.

    The models go on adapting while they are judged and timed, side by side with the dense one.
    """
    rows = judged_rows(data.test, traffic, seed)
    images, labels = data.test.images[rows], data.test.labels[rows]
    adapted = {name: adapt(model, data, traffic, config, protocol, seed) for name, config in configs.items()}
    judged = {name: judge(fast, images, labels) for name, fast in adapted.items()}
    times = _time_all({**_dense_in_each_format(model), **adapted}, data, traffic, protocol, seed)
    dense = DenseRow(
        traffic,
        len(rows),
        quality(predict_all(model, images), labels),
        {name: times[name] for name in FORMATS},
    )
    return {name: PrunedRow(config, dense, judged[name], times[name]) for name, config in configs.items()}


def judge(fast: dynprune.AcceleratedModel, images: Tensor, labels: Tensor) -> Judged:
    """Serve ``images`` [N, 1, 28, 28] with ``labels`` int64 [N] in their order."""
    with watch(fast) as activity:
        logits = predict_all(fast, images)
    return Judged(
        quality(logits, labels),
        activity,
        fast.stats()["flips"],
        {name: (int(active.sum()), len(active)) for name, active in fast.active().items()},
        count_parameters(fast.materialize(compensate=False)),
    )


def _dense_in_each_format(model: nn.Module) -> dict[str, Predict]:
    def predictor(memory_format: torch.memory_format) -> Predict:
        dense = copy.deepcopy(model).to(memory_format=memory_format)  # type: ignore[call-overload]
        return lambda images: dense(images.contiguous(memory_format=memory_format))

    return {name: predictor(memory_format) for name, memory_format in FORMATS.items()}


def _time_all(
    models: Mapping[str, Predict], data: Mnist, traffic: Traffic, protocol: Protocol, seed: int
) -> dict[str, Times]:
    batches, singles = timed_batches(data.test, traffic, protocol, seed)
    by_batch = time_interleaved(models, batches, protocol.repeats_for(len(batches)))
    by_single = time_interleaved(models, singles, protocol.repeats_for(len(singles)))
    return {name: Times(by_batch[name], by_single[name]) for name in models}
