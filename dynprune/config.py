"""What the user decides."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from dynprune.control.criteria import CRITERIA, GroupView

COMPENSATIONS = ("mean", "lstsq", "none", "auto")


@dataclasses.dataclass(frozen=True)
class Config:
    """How an accelerated model observes, prunes and reactivates.

    Args:
        prune_threshold: a unit whose score stays below this is pruned.
        reactivate_threshold: a pruned unit whose score rises above this comes back.
        criterion: ``"contribution"`` (relative to the layer's mean, at any scale), ``"residual"`` (of what
            the other units do not predict, relative as well; with ``compensation="lstsq"``),
            ``"mean_abs"`` (mean |a|, absolute), ``"budget"`` (as much as ``error_budget`` allows, the units
            of all layers in one ranking; the thresholds are not used), or a callable from
            :class:`~dynprune.control.criteria.GroupView` to scores ``[units]``.
        error_budget: with ``criterion="budget"``, how much of the output pruning may change: the mean square
            of the difference, as a share of the output's variance over the rows. Canary rows measure
            it, and the ranking goes further or less far.
        compensation: what stands in for a pruned unit where it is read: ``"mean"``, its mean; ``"lstsq"``,
            its least-squares prediction from the active units, folded into their weights, so that it
            costs nothing while serving (but more at each publication, see docs/design.md); ``"none"``, zero;
            ``"auto"``, the mean or zero, whichever makes the answers surer on the traffic served (a rule
            of thumb for classifiers, see docs/design.md; the mean where a guard or a budget compares rows).
        canary_interval: one in so many batches carries canary rows. None: one in 16 batches of 64 rows or
            more; smaller ones as often as keeps the share of such rows, so that requests of 1 to 8 rows,
            which are canaries as a whole, are one in 128; and of batches that take less than 150 million
            multiply-adds by all units as many fewer as they are smaller, down to one in 1024; beside a plan
            that computes under half of the operations up to four times as rarely, since a canary row takes as
            long as several others (neither of these if a guard or a budget measures with them).
        canary_rows: rows of such a batch that are computed by all units.
        dwell: batches a unit keeps its state after a flip.
        min_active: units of a group that stay active whatever their score (all of a smaller group).
        evidence: rows to be seen before the first decision; a sixteenth of that before each further one.
        window: rows after which an observation counts half.
        max_flips: share of all units that one update may flip (the first decision after a start or a
            drift, and ``calibrate``, have no cap).
        drift_threshold: deviation of live usage from its running band, as a multiple of the usual
            deviation, above which the traffic counts as changed: everything comes back at once and is
            observed anew. ``math.inf`` turns this off.
        drift_interval: how often the drift detector looks at live usage: one in so many batches. None: one in
            4, of batches under 150 million multiply-adds as many fewer as they are smaller, down to
            one in 256: what a look costs is small beside a larger batch only.
        max_divergence: share of canary rows whose answer (the largest output) pruning may change; the
            controller lowers the thresholds while the measured share may be above it. None: no guard.
        dtype: what the model computes in, on a copy of the weights; None: as it is. Float32
            has compiled kernels, and bfloat16 those of linear layers and convolutions; the rest runs on
            PyTorch's own.
        input_threshold: a linear layer that serves 1 to 8 rows leaves out, with their weights, the inputs
            with ``|x| <= input_threshold`` in every row. At 0 that changes nothing; above, it changes
            results. Canary rows and all other rows that statistics come from are computed in full.
        input_major: keep the weights of float32 linear layers with 65,536 or more a second time, each
            input's in one run: up to 8 rows are served about twice as fast where the weights come from
            memory, for twice the memory.
        background: whether statistics are taken in and plans built on a thread of their own. No request
            then waits for either, at the price that a choice comes some requests later, and not always
            at the same one. What a callback or criterion raises there is raised by a later call.
        seed: of the choice of canary batches and rows.

    Raises:
        ValueError: a value is outside its range.
    """

    prune_threshold: float = 0.05
    reactivate_threshold: float = 0.10
    criterion: str | Callable[[GroupView], Tensor] = "contribution"
    error_budget: float = 0.01
    compensation: str = "mean"
    canary_interval: int | None = None
    canary_rows: int = 8
    dwell: int = 16
    min_active: int = 4
    evidence: int = 512
    window: int = 2048
    max_flips: float = 0.05
    drift_threshold: float = 4.0
    drift_interval: int | None = None
    max_divergence: float | None = None
    dtype: torch.dtype | None = None
    input_threshold: float = 0.0
    input_major: bool = False
    background: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        def expect(condition: bool, name: str, expected: str) -> None:
            if not condition:
                raise ValueError(f"Config: expected {name} {expected}, got {getattr(self, name)!r}")

        def number(name: str) -> float:
            """The value, or NaN, which is in no range, if it is no number."""
            value = getattr(self, name)
            return value if isinstance(value, (int, float)) else math.nan

        for name in ("prune_threshold", "reactivate_threshold", "input_threshold"):
            expect(
                math.isfinite(number(name)) and number(name) >= 0,
                name,
                "a finite number of at least 0",
            )
        expect(
            self.prune_threshold <= self.reactivate_threshold,
            "prune_threshold",
            f"at most reactivate_threshold ({self.reactivate_threshold!r})",
        )
        expect(
            callable(self.criterion) or self.criterion in [*CRITERIA, "budget"],
            "criterion",
            f"one of {', '.join(sorted([*CRITERIA, 'budget']))} or a callable",
        )
        expect(
            self.criterion != "residual" or self.compensation == "lstsq",
            "compensation",
            "'lstsq' with criterion='residual'",
        )
        expect(0 < number("error_budget") <= 1, "error_budget", "in (0, 1]")
        expect(self.compensation in COMPENSATIONS, "compensation", f"one of {', '.join(COMPENSATIONS)}")
        for name in (
            "canary_interval", "drift_interval", "canary_rows", "min_active", "evidence", "window",
        ):  # fmt: skip
            value = getattr(self, name)
            absent = value is None and name in ("canary_interval", "drift_interval")
            expect(absent or (isinstance(value, int) and value >= 1), name, "a whole number of at least 1")
        expect(isinstance(self.dwell, int) and self.dwell >= 0, "dwell", "a whole number of batches")
        expect(0 < number("max_flips") <= 1, "max_flips", "in (0, 1]")
        expect(number("drift_threshold") > 1, "drift_threshold", "above 1")
        expect(
            self.max_divergence is None or 0 < number("max_divergence") < 1,
            "max_divergence",
            "None or in (0, 1)",
        )
        expect(
            self.dtype is None or (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point),
            "dtype",
            "None or a floating torch.dtype",
        )
        for name in ("input_major", "background"):
            expect(isinstance(getattr(self, name), bool), name, "True or False")
        expect(isinstance(self.seed, int), "seed", "a whole number")
