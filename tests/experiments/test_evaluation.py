"""Metrics against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dynprune.experiments.evaluation import (
    class_logits,
    count_parameters,
    operations_per_sample,
    predict_all,
    quality,
)
from dynprune.experiments.models import mnist_cnn
from dynprune.experiments.samples import Images, Split


def _logits(answers: list[int]) -> torch.Tensor:
    return 10 * nn.functional.one_hot(torch.tensor(answers), 10).float()


def test_quality_of_mixed_answers() -> None:
    # Class 0: precision 2/2, recall 2/3, F1 4/5. Class 1: precision 1/2, recall 1/2, F1 1/2.
    # Class 2 was answered once but does not occur, so it counts only through the recall of class 1.
    labels = torch.tensor([0, 0, 0, 1, 1])
    got = quality(_logits([0, 0, 1, 1, 2]), labels)
    right, wrong = math.log(1 + 9 * math.exp(-10)), 10 + math.log(1 + 9 * math.exp(-10))
    assert got.accuracy == pytest.approx(3 / 5)
    assert got.loss == pytest.approx((3 * right + 2 * wrong) / 5, rel=1e-5)
    assert got.f1 == pytest.approx((4 / 5 + 1 / 2) / 2)
    assert got.precision == pytest.approx((1 + 1 / 2) / 2)
    assert got.recall == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert got.class_accuracy == (pytest.approx(2 / 3), pytest.approx(1 / 2), *[None] * 8)


def test_quality_of_right_answers() -> None:
    got = quality(_logits([4, 9, 4]), torch.tensor([4, 9, 4]))
    assert (got.accuracy, got.f1) == (1.0, 1.0)


def test_predict_all_keeps_the_order_over_batches() -> None:
    pixels = torch.arange(130, dtype=torch.uint8).reshape(130, 1, 1, 1).repeat(1, 1, 1, 2)
    split = Split(Images(pixels, (0.0,), (1 / 255,)), torch.zeros(130, dtype=torch.int64))
    sizes = []

    def predict(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        return batch.flatten(1)

    torch.testing.assert_close(predict_all(predict, split), pixels.flatten(1).float())
    assert sizes == [64, 64, 2]
    some = predict_all(predict, split, torch.tensor([5, 3]))
    torch.testing.assert_close(some[:, 0], torch.tensor([5.0, 3.0]))


def test_one_logit_is_two_classes() -> None:
    logits, labels = torch.tensor([-1.0, 2.0, 0.5]), torch.tensor([0, 1, 0])
    got = quality(class_logits(logits), labels)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
    assert got.loss == pytest.approx(loss.item(), rel=1e-5)
    assert got.accuracy == pytest.approx(2 / 3)
    assert torch.equal(class_logits(logits.unsqueeze(1)), class_logits(logits))


def test_size_of_the_cnn() -> None:
    model = mnist_cnn(seed=0)
    convolutions = 784 * 9 * 32 * (1 + 32) + 196 * 9 * 64 * (32 + 64)
    assert operations_per_sample(model, (torch.zeros(1, 1, 28, 28),)) == (
        convolutions + 3136 * 128 + 128 * 10
    )
    weights = 9 * (32 + 32 * 32 + 64 * 32 + 64 * 64) + 3136 * 128 + 128 * 10
    assert count_parameters(model) == weights + 32 + 32 + 64 + 64 + 128 + 10


def test_seed_determines_the_cnn() -> None:
    state = torch.get_rng_state()
    first, same, other = mnist_cnn(3), mnist_cnn(3), mnist_cnn(4)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.conv1.weight, same.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
