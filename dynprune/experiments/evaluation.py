"""How good the answers are, and how much a model computes for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from dynprune.experiments.samples import Change, Inputs, Split

BATCH_SIZE = 64

# A model, or what serves like one: from its positional arguments to logits.
Predict = Callable[..., Tensor]


@dataclass(frozen=True)
class Quality:
    """How good a set of answers is.

    ``loss``: mean cross entropy; ``accuracy``: share of right answers; ``f1``, ``precision`` and ``recall``:
    averaged over the classes that occur; ``class_accuracy``: share of right answers of each class (its
    recall), None where it does not occur.
    """

    loss: float
    accuracy: float
    f1: float
    precision: float
    recall: float
    class_accuracy: tuple[float | None, ...]


def class_logits(output: Tensor) -> Tensor:
    """Logits [N, classes]; one logit per row, [N] or [N, 1], becomes those of two classes, 0 and itself.

    Cross entropy of these is binary cross entropy of that.
    """
    if output.dim() == 2 and output.shape[1] > 1:
        return output
    logits = output.reshape(-1)
    return torch.stack([torch.zeros_like(logits), logits], 1)


def predict_all(
    predict: Predict, split: Split, rows: Tensor | None = None, change: Change | None = None
) -> Tensor:
    """Logits float32 [n, classes] for ``rows`` int64 [n] (None: all), in batches of 64."""
    rows = split.rows if rows is None else rows
    with torch.inference_mode():
        batches = (split.samples.inputs(some, change) for some in torch.split(rows, BATCH_SIZE))
        return torch.cat([class_logits(predict(*inputs)) for inputs in batches])


def quality(logits: Tensor, labels: Tensor) -> Quality:
    """Quality of ``logits`` [N, classes] for ``labels`` int64 [N]."""
    classes = logits.shape[1]
    present = labels.bincount(minlength=classes) > 0
    recalls = multiclass_recall(logits, labels, classes, average="none")

    def mean(values: Tensor) -> float:
        # torchmetrics' own macro mean would let a single stray answer halve it on narrow traffic.
        return float(values[present].mean())

    return Quality(
        nn.functional.cross_entropy(logits, labels).item(),
        multiclass_accuracy(logits, labels, classes, average="micro").item(),
        mean(multiclass_f1_score(logits, labels, classes, average="none")),
        mean(multiclass_precision(logits, labels, classes, average="none")),
        mean(recalls),
        tuple(
            float(recall) if there else None for recall, there in zip(recalls, present.tolist(), strict=True)
        ),
    )


def counts_all_operations(model: nn.Module) -> bool:
    """Whether torch's counter knows all layers of ``model``: it does not see into an LSTM."""
    return not any(isinstance(module, nn.RNNBase) for module in model.modules())


def operations_per_sample(model: nn.Module, inputs: Inputs) -> int:
    """Multiply-adds of ``model`` for one sample, ``inputs`` of batch 1, by torch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(*inputs)
    return int(counter.get_total_flops()) // 2


def count_parameters(model: nn.Module) -> int:
    """Number of elements of all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
