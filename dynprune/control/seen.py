"""What one forward reports to the controller."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from dynprune.control.answers import Compared
from dynprune.plan.record import Record


@dataclasses.dataclass(slots=True)
class Seen:
    """What one forward reports.

    Attributes:
        rows: of the batch.
        live: record of the rows that ran on the plan ``serial``, and how many.
        dense: record of the rows that ran dense with means at read points, and how many.
        canary: whether the dense rows were chosen at random out of a batch on a pruned plan.
        margins: of every row's pruned answer (guard only).
        compared: rows that ran both ways (guard only).
        outputs: of rows that ran both ways, dense and pruned (budget only).
        repeated: record of rows that ran once more: dense because their pruned answer was not clear
            (guard), or with the other compensation (trial).
        tried: answers with the compensation that is chosen and with the other (trial only).
        forgotten: whether it only counts.
    """

    rows: int
    serial: int
    live: tuple[Record, int] | None = None
    dense: tuple[Record, int] | None = None
    canary: bool = False
    margins: Tensor | None = None
    compared: Compared | None = None
    outputs: tuple[Tensor, Tensor] | None = None
    repeated: Record | None = None
    tried: tuple[Tensor, Tensor] | None = None
    forgotten: bool = False

    def forget(self) -> None:
        """Drop what was measured; what happened is still counted."""
        records = [record for record, _ in filter(None, (self.live, self.dense))]
        for record in filter(None, [*records, self.repeated]):
            record.forget()
        self.forgotten = True
