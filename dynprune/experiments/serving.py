"""Serving traffic with a model that adapts to it, and counting what that takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dynprune
from dynprune.experiments.data import Data
from dynprune.experiments.evaluation import BATCH_SIZE, predict_all
from dynprune.experiments.options import Protocol
from dynprune.experiments.samples import Inputs, Split
from dynprune.streams import Traffic, shuffled_rounds

# Second number of the seed of each stream, so that no two streams share their order.
WARMUP_STREAM, JUDGED_STREAM, TIMED_STREAM, RETURN_STREAM = range(1000, 1004)


@dataclass
class Activity:
    """What an adapting model did; operations are multiply-adds, canary rows included."""

    rows: int = 0
    canary_rows: int = 0
    flips: int = 0
    operations: int = 0
    dense_operations: int = 0

    @property
    def operations_share(self) -> float:
        """Operations done, as a share of the operations of the dense model."""
        return self.operations / self.dense_operations


@contextmanager
def watch(model: dynprune.AcceleratedModel) -> Iterator[Activity]:
    """Fill in the yielded ``Activity`` when the block ends."""
    activity = Activity()
    before = model.stats()
    yield activity
    after = model.stats()
    for name in vars(activity):
        setattr(activity, name, after[name] - before[name])


def accelerated(model: nn.Module, split: Split, config: dynprune.Config) -> dynprune.AcceleratedModel:
    """``model`` with nothing pruned yet, traced with the first samples of ``split``."""
    return dynprune.accelerate(model, split.samples.inputs(split.rows[:BATCH_SIZE]), config)


def calibrated(
    model: nn.Module, split: Split, config: dynprune.Config, rows: Tensor
) -> dynprune.AcceleratedModel:
    """``model`` pruned once, by what ``rows`` int64 [n] of ``split`` use, and frozen."""
    fast = accelerated(model, split, config)
    fast.calibrate(split.samples.inputs(some) for some in torch.split(rows, BATCH_SIZE))
    fast.freeze()
    return fast


def traffic_rows(split: Split, traffic: Traffic) -> Tensor:
    """The rows of ``split`` in ``traffic``, int64 [n], in their order."""
    return traffic.rows(split.labels, split.samples.lengths)


def warmup_rows(data: Data, traffic: Traffic, protocol: Protocol, seed: int) -> Tensor:
    """The training samples that an adapting model serves first, int64 [n]."""
    rows = traffic_rows(data.train, traffic)
    return shuffled_rounds(rows, protocol.warmup_samples, seed, WARMUP_STREAM)


def adapt(
    model: nn.Module,
    data: Data,
    traffic: Traffic,
    config: dynprune.Config,
    protocol: Protocol,
    seed: int,
) -> dynprune.AcceleratedModel:
    """A pruned ``model`` that has served warm-up samples of ``traffic`` from the training split."""
    fast = accelerated(model, data.train, config)
    predict_all(fast, data.train, warmup_rows(data, traffic, protocol, seed))
    return fast


def judged_rows(split: Split, traffic: Traffic, seed: int) -> Tensor:
    """All rows of ``split`` in ``traffic``, int64 [n], in the order in which they are judged."""
    rows = traffic_rows(split, traffic)
    return shuffled_rounds(rows, len(rows), seed, JUDGED_STREAM)


def timed_batches(
    split: Split, traffic: Traffic, protocol: Protocol, seed: int
) -> tuple[list[Inputs], list[Inputs]]:
    """Samples of ``traffic`` in batches of 64 and in batches of 1.

    The first are full, and at least one; samples are repeated if there are too few.
    """
    rows = traffic_rows(split, traffic)
    full = min(protocol.timed_samples, len(rows)) // BATCH_SIZE * BATCH_SIZE

    def cut(count: int, size: int) -> list[Inputs]:
        order = shuffled_rounds(rows, count, seed, TIMED_STREAM)
        return [split.samples.inputs(some) for some in torch.split(order, size)]

    return cut(max(full, BATCH_SIZE), BATCH_SIZE), cut(min(protocol.single_samples, len(rows)), 1)


@dataclass(frozen=True)
class Return:
    """Answers after all classes returned, beside those of the dense model on the same samples."""

    accuracy: float
    dense_accuracy: float
    activity: Activity


def return_of_all_classes(
    fast: dynprune.AcceleratedModel,
    split: Split,
    dense_answers: Tensor,
    protocol: Protocol,
    seed: int,
) -> Return:
    """Serve uniform traffic to a model that has adapted to something else.

    ``split``: the samples that return, in shuffled rounds; ``dense_answers``: int64 [N], the dense
    model's answers.
    """
    count = protocol.return_batches * BATCH_SIZE
    rows = shuffled_rounds(split.rows, count, seed, RETURN_STREAM)
    skipped, judged = torch.tensor_split(rows, [protocol.return_skip * BATCH_SIZE])
    predict_all(fast, split, skipped)
    with watch(fast) as activity:
        answers = predict_all(fast, split, judged).argmax(1)
    labels = split.labels[judged]
    return Return(
        (answers == labels).double().mean().item(),
        (dense_answers[judged] == labels).double().mean().item(),
        activity,
    )
