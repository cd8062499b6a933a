"""Options of the experiments, checked before any work starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import dynprune
from dynprune.experiments.models import INITS
from dynprune.experiments.traffic import Traffic

# The pair of thresholds of the uniform runs.
PRUNE_THRESHOLD = 0.05
REACTIVATE_THRESHOLD = 0.10
DEFAULT_TRAFFIC = (Traffic((0, 1)), Traffic((4, 9)))


@dataclass(frozen=True)
class Options:
    """What ``dynprune experiment mnist-cnn`` can be told; the command line documents each field.

    Raises:
        ValueError: a value is out of its range.
    """

    epochs: int = 20
    lr: float = 0.001
    batch_size: int = 64
    seed: int = 0
    data_dir: Path | None = None
    traffic: tuple[Traffic, ...] = DEFAULT_TRAFFIC
    traffic_prune_threshold: float = 0.6
    traffic_reactivate_threshold: float = 0.7
    init: str = "he"
    name: str = "mnist-cnn"
    runs_dir: Path = Path("runs")
    threads: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        _expect("--epochs", self.epochs >= 1, "at least 1", self.epochs)
        _expect("--lr", self.lr > 0 and math.isfinite(self.lr), "a number above 0", self.lr)
        _expect("--batch-size", self.batch_size >= 1, "at least 1", self.batch_size)
        _expect("--seed", 0 <= self.seed < 2**63, "0 to 2^63 - 1", self.seed)
        _expect("--threads", self.threads is None or self.threads >= 1, "at least 1", self.threads)
        _expect("--limit", self.limit is None or self.limit >= 1, "at least 1", self.limit)
        plain = self.name == Path(self.name).name and self.name not in ("", ".", "..")
        _expect("--name", plain, "the name of one folder", repr(self.name))
        _expect("--init", self.init in INITS, f"one of {', '.join(INITS)}", self.init)
        names = [traffic.name for traffic in self.traffic]
        _expect("--traffic", len(set(names)) == len(names), "different class lists", names)
        self.traffic_config()

    @property
    def run_dir(self) -> Path:
        """The folder of this run's weights and results."""
        return self.runs_dir / self.name

    def uniform_config(self, criterion: str = "contribution") -> dynprune.Config:
        """The configuration of the runs on uniform traffic."""
        return dynprune.Config(
            prune_threshold=PRUNE_THRESHOLD,
            reactivate_threshold=REACTIVATE_THRESHOLD,
            criterion=criterion,
            seed=self.seed,
        )

    def traffic_config(self, compensation: str = "lstsq") -> dynprune.Config:
        """The configuration of the runs on the traffic of a few classes."""
        return dynprune.Config(
            prune_threshold=self.traffic_prune_threshold,
            reactivate_threshold=self.traffic_reactivate_threshold,
            criterion="contribution",
            compensation=compensation,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Protocol:
    """How much of what is served and measured.

    An adapting model first serves ``warmup_images`` of the training split. Its answers are judged
    on the whole test split of its traffic. Times are taken over ``timed_images`` (batch 64; fewer
    if the traffic has fewer) and ``single_images`` (batch 1), in at least ``repeats`` passes and
    ``timed_calls`` calls. When all classes return, the first ``return_skip`` of ``return_batches``
    batches are not judged.
    """

    warmup_images: int = 2000
    timed_images: int = 1024
    timed_calls: int = 64
    single_images: int = 300
    repeats: int = 5
    return_skip: int = 16
    return_batches: int = 80

    @classmethod
    def for_limit(cls, limit: int | None) -> Protocol:
        """The full protocol, or a short one for data that was cut to fewer than 1,000 images."""
        if limit is None or limit >= 1000:
            return cls()
        return cls(
            warmup_images=limit,
            timed_images=64,
            timed_calls=2,
            single_images=min(limit, 8),
            repeats=2,
            return_skip=1,
            return_batches=3,
        )

    def repeats_for(self, calls: int) -> int:
        """The number of timed passes, if one pass makes ``calls`` calls."""
        return max(self.repeats, -(-self.timed_calls // calls))


def _expect(option: str, holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{option}: expected {expected}, got {got}")
