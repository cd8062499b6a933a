"""``compensation="auto"``: whether means stand in for pruned units, or nothing does."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST_ROWS = 256  # that ran both ways before a choice is made
_WINDOW = 1024  # rows after which a comparison counts half
# On the traffic of a few classes a pruned model without means is surer of itself, and more often right: means
# speak for classes that are not there. On uniform traffic it is about as sure, and less often right.
_SURER = 0.07  # lower entropy of the answers, relative, from which on nothing stands in
_NO_SURER = 0.05  # under which means do again


class Trial:
    """Compares the answers of a plan with means to those of the same plan without.

    No label is needed: what is compared is the entropy of the answers, in the mean over rows. It is a rule of
    thumb, with the evidence in docs/design.md.
    """

    def __init__(self) -> None:
        self.choice = "mean"
        self.restart()

    def restart(self) -> None:
        """Other units are active: what was compared says nothing about them. The choice stays meanwhile."""
        self._entropy = torch.zeros(2, dtype=torch.float64)  # with means, without
        self._rows = 0.0

    @property
    def other(self) -> str:
        """What is not chosen."""
        return "none" if self.choice == "mean" else "mean"

    @property
    def undecided(self) -> bool:
        """Whether too few rows ran both ways."""
        return self._rows < _LEAST_ROWS

    def add(self, chosen: Tensor, other: Tensor) -> bool:
        """Add scores ``[rows, ..., classes]`` of the choice and of the other; True: the choice changed."""
        pair = torch.stack([_entropy(chosen), _entropy(other)])
        rows = chosen.shape[0]
        if not bool(pair.isfinite().all()) or rows == 0:
            return False
        keep = 0.5 ** (rows / _WINDOW)
        self._entropy = keep * self._entropy + rows * (pair if self.choice == "mean" else pair.flip(0))
        self._rows = keep * self._rows + rows
        if self.undecided:
            return False
        surer = 1 - float(self._entropy[1] / self._entropy[0].clamp(min=1e-12))
        before = self.choice
        if surer > _SURER:
            self.choice = "none"
        elif surer < _NO_SURER:
            self.choice = "mean"
        return self.choice != before


def _entropy(scores: Tensor) -> Tensor:
    """Mean entropy of the answers; of a single score, those of its sign."""
    full = scores.double()
    if full.dim() < 2 or full.shape[-1] == 1:
        full = torch.stack([full, torch.zeros_like(full)], -1).flatten(0, -2)
    logs = full.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1).mean()
