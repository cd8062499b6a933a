"""Options of the experiments, checked before any work starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import dynprune
from dynprune.experiments.catalogue import DEFAULT_SHAPE, Choices, Experiment, find_experiment
from dynprune.experiments.models import INITS, MLP_SHAPES
from dynprune.experiments.training import Recipe
from dynprune.streams import Stream, Traffic

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Options:
    """What ``dynprune experiment`` can be told; the command line documents each field.

    Where a field is None or empty the experiment has a choice of its own.

    Raises:
        ValueError: a value is out of its range.
    """

    experiment: str
    epochs: int | None = None
    lr: float = 0.001
    batch_size: int = 64
    seed: int = 0
    augment: bool = False
    weight_decay: float | None = None
    usage_penalty: float = 0.0
    bf16: bool = False
    data_dir: Path | None = None
    prune_threshold: float = 0.05
    reactivate_threshold: float = 0.10
    traffic: tuple[str, ...] = ()
    traffic_prune_threshold: float | None = None
    traffic_reactivate_threshold: float | None = None
    stream: str | None = None
    max_divergence: float | None = None
    init: str | None = None
    shape: str = DEFAULT_SHAPE
    name: str | None = None
    runs_dir: Path = Path("runs")
    resume: bool = False
    pretrained: bool = False
    weights_dir: Path = Path("results")
    trade_off: bool = False
    device: str = "cpu"
    threads: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        find_experiment(self.experiment)
        _expect("--epochs", self.epochs is None or self.epochs >= 1, "at least 1", self.epochs)
        _expect("--lr", self.lr > 0 and math.isfinite(self.lr), "a number above 0", self.lr)
        _expect("--batch-size", self.batch_size >= 1, "at least 1", self.batch_size)
        _expect("--seed", 0 <= self.seed < 2**63, "0 to 2^63 - 1", self.seed)
        decay, penalty = self.weight_decay, self.usage_penalty
        fits = decay is None or (decay >= 0 and math.isfinite(decay))
        _expect("--weight-decay", fits, "a number of at least 0", decay)
        _expect("--usage-penalty", penalty >= 0 and math.isfinite(penalty), "a number of at least 0", penalty)
        _expect("--threads", self.threads is None or self.threads >= 1, "at least 1", self.threads)
        _expect("--limit", self.limit is None or self.limit >= 1, "at least 1", self.limit)
        plain = self.name is None or (self.name == Path(self.name).name and self.name not in ("", ".", ".."))
        _expect("--name", plain, "the name of one folder", repr(self.name))
        _expect("--init", self.init in (None, *INITS), f"one of {', '.join(INITS)}", self.init)
        _expect("--shape", self.shape in MLP_SHAPES, f"one of {', '.join(MLP_SHAPES)}", self.shape)
        _expect("--device", self.device in DEVICES, f"one of {', '.join(DEVICES)}", self.device)
        there = self.device != "cuda" or torch.cuda.is_available()
        _expect("--device", there, "cpu where torch sees no GPU", self.device)
        _expect("--resume", not (self.resume and self.pretrained), "it without --pretrained", "both")
        images = self.about.data_set.kind == "image"
        _expect("--augment", images or not self.augment, "an experiment on images", self.experiment)
        names = [traffic.name for traffic in self.traffics]
        _expect("--traffic", len(set(names)) == len(names), "different lists", names)
        self.uniform_config()
        self.traffic_config()
        self.parsed_stream()

    @property
    def about(self) -> Experiment:
        """The experiment itself."""
        return find_experiment(self.experiment)

    @property
    def run_dir(self) -> Path:
        """The folder of this run's weights and results."""
        return self.runs_dir / (self.name or self.experiment)

    @property
    def pretrained_path(self) -> Path:
        """The weights that come with the project."""
        return self.weights_dir / f"{self.experiment}.safetensors"

    @property
    def checkpoint(self) -> Path:
        """The file from which an interrupted training goes on."""
        return self.run_dir / "checkpoint.safetensors"

    @property
    def choices(self) -> Choices:
        """What the model is made of."""
        return Choices(self.seed, self.init or self.about.init, self.shape)

    @property
    def traffics(self) -> tuple[Traffic, ...]:
        """The kinds of traffic that are served besides all classes."""
        data_set = self.about.data_set
        texts = self.traffic or self.about.traffic
        return tuple(Traffic.parse(text, len(data_set.classes), data_set.kind) for text in texts)

    def parsed_stream(self) -> Stream | None:
        """The stream that is served at the end."""
        if self.stream is None:
            return None
        data_set = self.about.data_set
        return Stream.parse(self.stream, len(data_set.classes), data_set.kind, self.seed)

    def recipe(self, samples: int) -> Recipe:
        """How the model is trained on ``samples`` samples, of which a tenth at most is held out."""
        recipe = self.about.recipe
        return replace(
            recipe,
            epochs=(0 if self.pretrained else recipe.epochs) if self.epochs is None else self.epochs,
            learning_rate=self.lr,
            batch_size=self.batch_size,
            seed=self.seed,
            augment="affine" if self.augment else recipe.augment,
            validation=min(recipe.validation, samples // 10),
            weight_decay=recipe.weight_decay if self.weight_decay is None else self.weight_decay,
            usage_penalty=self.usage_penalty,
            bf16=self.bf16,
        )

    def uniform_config(self, criterion: str = "contribution") -> dynprune.Config:
        """The configuration of the runs on uniform traffic."""
        return dynprune.Config(
            prune_threshold=self.prune_threshold,
            reactivate_threshold=self.reactivate_threshold,
            criterion=criterion,
            max_divergence=self.max_divergence,
            seed=self.seed,
        )

    @property
    def compensations(self) -> tuple[str, str]:
        """Of the runs on the traffic of a few classes; of the first, the return is judged as well."""
        return self.about.compensation, "mean"

    def traffic_config(self, compensation: str | None = None) -> dynprune.Config:
        """The configuration of those runs; without ``compensation``, the first of ``compensations``."""
        prune, reactivate = self.traffic_prune_threshold, self.traffic_reactivate_threshold
        default = self.about.thresholds
        return dynprune.Config(
            prune_threshold=default[0] if prune is None else prune,
            reactivate_threshold=default[1] if reactivate is None else reactivate,
            criterion="contribution",
            compensation=compensation or self.compensations[0],
            max_divergence=self.max_divergence,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Protocol:
    """How much of what is served and measured.

    An adapting model first serves ``warmup_samples`` of the training split. Its answers are judged
    on the whole test split of its traffic. Times are taken over ``timed_samples`` (batch 64; fewer
    if the traffic has fewer) and ``single_samples`` (batch 1), in at least ``repeats`` passes and
    ``timed_calls`` calls. When all classes return, the first ``return_skip`` of ``return_batches``
    batches are not judged. Each point of a trade-off is judged on at most ``swept_samples`` and timed on
    ``swept_batches`` batches of 64.
    """

    warmup_samples: int = 2000
    timed_samples: int = 1024
    timed_calls: int = 64
    single_samples: int = 300
    repeats: int = 5
    return_skip: int = 16
    return_batches: int = 80
    swept_samples: int = 10_000
    swept_batches: int = 4

    @classmethod
    def for_limit(cls, limit: int | None, heavy: bool = False) -> Protocol:
        """The full protocol, fewer samples of a heavy model, or a short one for less than 1,000."""
        if limit is not None and limit < 1000:
            return cls(
                warmup_samples=limit,
                timed_samples=64,
                timed_calls=2,
                single_samples=min(limit, 8),
                repeats=2,
                return_skip=1,
                return_batches=3,
                swept_batches=1,
            )
        if not heavy:
            return cls()
        return cls(
            warmup_samples=1024,
            timed_samples=256,
            timed_calls=20,
            single_samples=50,
            return_batches=40,
            swept_samples=2000,
            swept_batches=1,
        )

    def repeats_for(self, calls: int) -> int:
        """The number of timed passes, if one pass makes ``calls`` calls."""
        return max(self.repeats, -(-self.timed_calls // calls))


def _expect(option: str, holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{option}: expected {expected}, got {got}")
