"""Fair timing of several models in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil
import torch

from dynprune.experiments.evaluation import Predict
from dynprune.experiments.samples import Inputs


@dataclass(frozen=True)
class Timing:
    """Time and processor use of one model.

    ``per_sample_ms`` is the median over the passes, so it holds the canary rows and flips that
    occurred in them; ``per_sample_ms_p95`` is the 95th percentile over the calls; ``cpu_percent``
    is 100 for one busy core.
    """

    per_sample_ms: float
    per_sample_ms_p95: float
    cpu_percent: float
    cpu_seconds_per_1000: float


@dataclass
class _Record:
    pass_seconds: list[float] = field(default_factory=list)
    call_ms_per_sample: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0

    def add_pass(self, predict: Predict, batches: Sequence[Inputs]) -> None:
        process = psutil.Process()
        before = process.cpu_times()
        seconds = 0.0
        for inputs in batches:
            started = time.perf_counter()
            predict(*inputs)
            elapsed = time.perf_counter() - started
            seconds += elapsed
            self.call_ms_per_sample.append(1e3 * elapsed / len(inputs[0]))
        after = process.cpu_times()
        self.pass_seconds.append(seconds)
        self.cpu_seconds += after.user + after.system - before.user - before.system

    def timing(self, samples: int) -> Timing:
        total = sum(self.pass_seconds)
        return Timing(
            1e3 * statistics.median(self.pass_seconds) / samples,
            float(np.percentile(self.call_ms_per_sample, 95)),
            100 * self.cpu_seconds / total,
            1e3 * self.cpu_seconds / (samples * len(self.pass_seconds)),
        )


def time_interleaved(
    models: Mapping[str, Predict], batches: Sequence[Inputs], repeats: int
) -> dict[str, Timing]:
    """Time every model on the same batches, one pass of each in turn, ``repeats`` times over.

    A slow spell of the machine then falls on all of them. Each model first makes one pass that is
    not counted.
    """
    records = {name: _Record() for name in models}
    samples = sum(len(inputs[0]) for inputs in batches)
    with torch.inference_mode():
        for predict in models.values():
            for inputs in batches:
                predict(*inputs)
        for _ in range(repeats):
            for name, predict in models.items():
                records[name].add_pass(predict, batches)
    return {name: record.timing(samples) for name, record in records.items()}
