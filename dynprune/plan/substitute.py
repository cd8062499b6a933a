"""What stands in for the pruned units at a read point."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Substitute:
    """Pruned unit p reads as ``constants[p] + sum over active a of mixing[p, a] * x[a]``.

    Attributes:
        constants: ``[units]``; only those of pruned units are used.
        mixing: ``[units, units]``, zero in the rows of active and the columns of pruned units; None:
            all zero.
    """

    constants: Tensor
    mixing: Tensor | None = None

    def without(self) -> Substitute:
        """Zero in place of everything."""
        return Substitute(torch.zeros_like(self.constants))
