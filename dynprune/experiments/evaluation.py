"""How good the answers are, and how much a model computes for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from dynprune.experiments.data import CLASSES

BATCH_SIZE = 64

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Quality:
    """How good a set of answers is.

    ``loss``: mean cross entropy; ``accuracy``: share of right answers; ``f1``: F1, averaged over
    the classes that occur.
    """

    loss: float
    accuracy: float
    f1: float


def predict_all(predict: Predict, images: Tensor) -> Tensor:
    """Logits float32 [N, 10] for ``images`` [N, 1, 28, 28], in batches of 64."""
    with torch.inference_mode():
        return torch.cat([predict(batch) for batch in torch.split(images, BATCH_SIZE)])


def quality(logits: Tensor, labels: Tensor) -> Quality:
    """Quality of ``logits`` [N, 10] for ``labels`` int64 [N]."""
    f1 = multiclass_f1_score(logits, labels, CLASSES, average="none")
    return Quality(
        nn.functional.cross_entropy(logits, labels).item(),
        multiclass_accuracy(logits, labels, CLASSES, average="micro").item(),
        # torchmetrics' own macro mean would let a single stray answer halve it on narrow traffic.
        f1[labels.bincount(minlength=CLASSES) > 0].mean().item(),
    )


def operations_per_sample(model: nn.Module, image: Tensor) -> int:
    """Multiply-adds of ``model`` for one image [1, 28, 28], by torch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(image.unsqueeze(0))
    return int(counter.get_total_flops()) // 2


def count_parameters(model: nn.Module) -> int:
    """Number of elements of all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
