"""Serving traffic with a model that adapts to it, and counting what that takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dynprune
from dynprune.experiments.data import Mnist, Split
from dynprune.experiments.evaluation import BATCH_SIZE, predict_all
from dynprune.experiments.options import Protocol
from dynprune.experiments.traffic import Traffic, stream

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


def adapt(
    model: nn.Module,
    data: Mnist,
    traffic: Traffic,
    config: dynprune.Config,
    protocol: Protocol,
    seed: int,
) -> dynprune.AcceleratedModel:
    """A pruned ``model`` that has served warm-up images of ``traffic`` from the training split."""
    fast = dynprune.accelerate(model, data.train.images[:BATCH_SIZE], config)
    rows = stream(traffic.rows(data.train.labels), protocol.warmup_images, seed, WARMUP_STREAM)
    predict_all(fast, data.train.images[rows])
    return fast


def judged_rows(split: Split, traffic: Traffic, seed: int) -> Tensor:
    """All rows of ``split`` in ``traffic``, int64 [n], in the order in which they are judged."""
    rows = traffic.rows(split.labels)
    return stream(rows, len(rows), seed, JUDGED_STREAM)


def timed_batches(
    split: Split, traffic: Traffic, protocol: Protocol, seed: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Images of ``traffic`` in batches of 64 and in batches of 1.

    The first are full, and at least one; images are repeated if there are too few.
    """
    rows = traffic.rows(split.labels)
    full = min(protocol.timed_images, len(rows)) // BATCH_SIZE * BATCH_SIZE
    batches = split.images[stream(rows, max(full, BATCH_SIZE), seed, TIMED_STREAM)]
    singles = split.images[stream(rows, min(protocol.single_images, len(rows)), seed, TIMED_STREAM)]
    return list(torch.split(batches, BATCH_SIZE)), list(torch.split(singles, 1))


@dataclass(frozen=True)
class Return:
    """Answers after all classes returned, beside those of the dense model on the same images."""

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

    ``split``: the images that return, in shuffled rounds; ``dense_answers``: int64 [N], the dense
    model's answers.
    """
    count = protocol.return_batches * BATCH_SIZE
    rows = stream(torch.arange(len(split)), count, seed, RETURN_STREAM)
    skipped, judged = torch.tensor_split(rows, [protocol.return_skip * BATCH_SIZE])
    predict_all(fast, split.images[skipped])
    with watch(fast) as activity:
        answers = predict_all(fast, split.images[judged]).argmax(1)
    labels = split.labels[judged]
    return Return(
        (answers == labels).double().mean().item(),
        (dense_answers[judged] == labels).double().mean().item(),
        activity,
    )
