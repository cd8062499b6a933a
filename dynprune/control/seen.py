"""What one forward reports to the controller."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from dynprune.control.answers import Compared
from dynprune.ops.devices import Download
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

    What a GPU measured is on its way to the host between :meth:`send` and :meth:`receive`.
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
    _download: Download | None = None

    @property
    def _records(self) -> list[Record]:
        records = [record for record, _ in filter(None, (self.live, self.dense))]
        return records if self.repeated is None else [*records, self.repeated]

    def forget(self) -> None:
        """Drop what was measured; what happened is still counted."""
        for record in self._records:
            record.forget()
        self.forgotten = True

    def _measured(self) -> list[Any]:
        compared = self.compared and (self.compared.margin, self.compared.loss, self.compared.changed)
        parts = [self.margins, compared, self.outputs, self.tried]
        return [*parts, *(record.measured for record in self._records)]

    def send(self) -> None:
        """Start the way of what is on a device to the host; the caller goes on at once."""
        tensors = [t for t in pytree.tree_leaves(self._measured()) if isinstance(t, Tensor) and t.is_cuda]
        if tensors:
            self._download = Download(tensors)

    @property
    def here(self) -> bool:
        """Whether everything is on the host by now."""
        download = self._download  # another thread may receive it meanwhile
        return download is None or download.ready

    def receive(self) -> None:
        """Take what was sent, once it is on the host."""
        if self._download is None:
            return
        here, self._download = iter(self._download.tensors()), None
        self.margins, compared, self.outputs, self.tried, *records = pytree.tree_map_only(
            Tensor, lambda t: next(here) if t.is_cuda else t, self._measured()
        )
        self.compared = compared and Compared(*compared)
        for record, measured in zip(self._records, records, strict=True):
            record.adopt(measured)
