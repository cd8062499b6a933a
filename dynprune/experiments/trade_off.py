"""Accuracy against operations and time: thresholds swept, beside static pruning of the same dense model.

Every point is calibrated on the same training samples, frozen, and judged on the same test samples;
nothing is trained again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

import dynprune
from dynprune.experiments import static
from dynprune.experiments.data import Data
from dynprune.experiments.evaluation import Predict, predict_all, quality
from dynprune.experiments.measuring import dense_in_each_format
from dynprune.experiments.options import Protocol
from dynprune.experiments.serving import calibrated, judged_rows, timed_batches, warmup_rows, watch
from dynprune.experiments.timing import time_interleaved
from dynprune.streams import Traffic

THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4)
SWEPT = (
    *((c, k) for c in ("contribution", "mean_abs") for k in ("none", "mean", "lstsq")),
    ("residual", "lstsq"),
)
# Static pruning is compared where these leave about the same share of the operations.
COMPARED = ("residual", "lstsq")
CALIBRATION_SAMPLES = 1024
TIMED_PASSES = 5


@dataclass(frozen=True)
class Point:
    """One model: ``method``, how far it went, and what became of it beside the dense one.

    ``operations_share`` and ``time_share`` are of the dense model's; ``time_ms`` per sample at batch 64.
    """

    method: str
    compensation: str | None
    threshold: float | None
    operations_share: float
    accuracy: float
    loss: float
    time_ms: float
    time_share: float


class _Judge:
    """The samples every point is calibrated, judged and timed on."""

    def __init__(
        self, model: nn.Module, memory_format: str, data: Data, protocol: Protocol, seed: int
    ) -> None:
        self.model, self.data, self.memory_format = model, data, memory_format
        self.dense = self.placed(model)
        self.calibration = warmup_rows(data, Traffic(), protocol, seed)[:CALIBRATION_SAMPLES]
        self.rows: Tensor = judged_rows(data.test, Traffic(), seed)[: protocol.swept_samples]
        self.batches = timed_batches(data.test, Traffic(), protocol, seed)[0][: protocol.swept_batches]

    def placed(self, model: nn.Module) -> Predict:
        """A dense model in the memory format that was the faster one."""
        return dense_in_each_format(model)[self.memory_format]

    def swept(self, criterion: str, compensation: str, threshold: float) -> Point:
        config = dynprune.Config(threshold, threshold, criterion=criterion, compensation=compensation)
        fast = calibrated(self.model, self.data.train, config, self.calibration)
        with watch(fast) as activity:
            logits = predict_all(fast, self.data.test, self.rows)
        return self._point(criterion, compensation, threshold, activity.operations_share, logits, fast)

    def rival(self, pruned: static.Pruned) -> Point:
        predict = self.placed(pruned.model)
        logits = predict_all(predict, self.data.test, self.rows)
        return self._point(pruned.method, None, None, pruned.operations_share, logits, predict)

    def _point(
        self,
        method: str,
        compensation: str | None,
        threshold: float | None,
        operations_share: float,
        logits: Tensor,
        predict: Predict,
    ) -> Point:
        judged = quality(logits, self.data.test.labels[self.rows])
        times = time_interleaved({"dense": self.dense, "this": predict}, self.batches, TIMED_PASSES)
        this, dense = times["this"].per_sample_ms, times["dense"].per_sample_ms
        return Point(
            method,
            compensation,
            threshold,
            operations_share,
            judged.accuracy,
            judged.loss,
            this,
            this / dense,
        )


def trade_off(
    model: nn.Module,
    memory_format: str,
    data: Data,
    protocol: Protocol,
    seed: int,
    on_point: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """All points as plain data, with the dense model's accuracy and what could not be compared, and why.

    ``memory_format``: in which dense models are timed, by name; ``on_point`` is told how many points of how
    many are done.
    """
    judge = _Judge(model, memory_format, data, protocol, seed)
    total = len(SWEPT) * len(THRESHOLDS) + len(THRESHOLDS) * len(static.METHODS)
    points: list[Point] = []

    def sweep() -> Iterator[Point]:
        for criterion, compensation in SWEPT:
            for threshold in THRESHOLDS:
                yield judge.swept(criterion, compensation, threshold)

    for point in sweep():
        points.append(point)
        on_point(len(points), total)
    shares = [p.operations_share for p in points if (p.method, p.compensation) == COMPARED]
    missing = {}
    example = data.test.samples.inputs(data.test.rows[:1])
    for method, prune in static.METHODS.items():
        for share in shares:
            try:
                points.append(judge.rival(prune(model, example, share)))
            except NotImplementedError as error:
                missing[method] = str(error)
                break
            on_point(len(points), total)
    judged = quality(predict_all(judge.dense, data.test, judge.rows), data.test.labels[judge.rows])
    return {
        "samples": len(judge.rows),
        "calibration_samples": len(judge.calibration),
        "dense_accuracy": judged.accuracy,
        "dense_loss": judged.loss,
        "points": [asdict(point) for point in points],
        "not_compared": missing,
    }
