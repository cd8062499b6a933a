"""A network of which the right answer is known: each half of its units hears one half of its inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

UNITS, INPUTS, CLASSES = 64, 16, 3
LOW = torch.arange(UNITS) < UNITS // 2  # the units that hear the first half
EVERYTHING = torch.ones(UNITS, dtype=torch.bool)


def two_halves(seed: int = 0) -> nn.Sequential:
    """Linear, ReLU, Linear; the units of a half contribute about the same."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(INPUTS, UNITS), nn.ReLU(), nn.Linear(UNITS, CLASSES)).eval()
    first, last = model[0], model[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    hears = torch.zeros(UNITS, INPUTS)
    hears[LOW, : INPUTS // 2] = 1
    hears[~LOW, INPUTS // 2 :] = 1
    with torch.no_grad():
        first.weight.copy_(hears * torch.randn(UNITS, INPUTS).sign())
        first.bias.fill_(0.25)
        last.weight.copy_(torch.randn(CLASSES, UNITS).sign())
    return model


class Traffic:
    """Batches in which one half of the inputs varies and the other is zero."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def low(self, rows: int) -> Tensor:
        x = torch.randn(rows, INPUTS, generator=self.generator)
        x[:, INPUTS // 2 :] = 0
        return x

    def high(self, rows: int) -> Tensor:
        return self.low(rows).flip(1)

    def both(self, rows: int) -> Tensor:
        return torch.randn(rows, INPUTS, generator=self.generator)
