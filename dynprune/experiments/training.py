"""Training of an image classifier."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from dynprune.experiments.data import Split
from dynprune.experiments.traffic import stream


@dataclass(frozen=True)
class Epoch:
    """Means over the images of one epoch, taken while the weights change."""

    loss: float
    accuracy: float
    seconds: float


def train(
    model: nn.Module,
    split: Split,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    on_batch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> list[Epoch]:
    """Train ``model`` in place with Adam and cross entropy.

    ``on_batch`` is called with the epoch (from 0) and the loss of each batch.
    The model works in channels-last format meanwhile, which is the faster one for convolutions on a
    CPU, and is contiguous and in eval mode afterwards. The result is a function of the arguments
    and the number of threads.
    """
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    history = []
    for epoch in range(epochs):
        started = time.perf_counter()
        loss_sum = torch.zeros((), dtype=torch.float64)
        correct = torch.zeros((), dtype=torch.int64)
        order = stream(torch.arange(len(split)), len(split), seed, epoch)
        for rows in torch.split(order, batch_size):
            images = split.images[rows].contiguous(memory_format=torch.channels_last)
            labels = split.labels[rows]
            logits = model(images)
            loss = nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            loss_sum += loss.detach() * len(rows)
            correct += (logits.detach().argmax(1) == labels).sum()
            on_batch(epoch, loss.item())
        history.append(
            Epoch(
                loss_sum.item() / len(split),
                correct.item() / len(split),
                time.perf_counter() - started,
            )
        )
    model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return history
