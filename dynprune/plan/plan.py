"""The plan itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping

from torch import Tensor

from dynprune.ops.devices import Ready
from dynprune.plan.entries import Entry
from dynprune.plan.substitute import Substitute

# What an entry's weights were built from, and what its bias was beyond that.
Key = tuple[tuple[Hashable, ...], tuple[Hashable, ...]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """One choice of active units with everything a forward needs to run it; immutable.

    Attributes:
        entries: one per call site of the program.
        active: group -> BoolTensor ``[units]``.
        substitutes: read point -> what stands in for pruned units there.
        keys: of each entry; one is shared with the next plan where it agrees.
        serial: counts publications.
        ready: on a GPU, to be joined by each stream that reads the entries.
    """

    entries: tuple[Entry, ...]
    active: Mapping[str, Tensor]
    substitutes: Mapping[str, Substitute]
    keys: tuple[Key, ...]
    serial: int = 0
    ready: Ready | None = None

    @property
    def dense(self) -> bool:
        """Whether every unit is active."""
        return all(bool(mask.all()) for mask in self.active.values())
