"""The controller: takes in what forwards saw, decides, and publishes plans."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dynprune.config import Config
from dynprune.control import policy
from dynprune.control.budget import PRUNE, REACTIVATE, Budget, budget_scores, unit_costs
from dynprune.control.canaries import Canaries, Looks
from dynprune.control.criteria import CRITERIA, GroupView
from dynprune.control.drift import DriftDetector
from dynprune.control.guard import Guard
from dynprune.control.inbox import Inbox
from dynprune.control.seen import Seen
from dynprune.control.statistics import Statistics
from dynprune.control.trial import Trial
from dynprune.control.usage import UsageStats
from dynprune.control.watched import watched_usage
from dynprune.control.work import multiply_adds, share_of_work
from dynprune.lowering.ir import LayerSite, LSTMSite, Program
from dynprune.plan.build import PlanBuilder, squared_columns
from dynprune.plan.plan import Plan
from dynprune.plan.record import Record
from dynprune.plan.shared import share_weights
from dynprune.plan.substitute import Substitute

_log = logging.getLogger("dynprune")
# A decision waits for so much of the evidence anew: it takes longer than the statistics of a canary.
_FRESH = 1 / 16
# A guard needs to know more than the policy: it takes so many times the canary rows.
_GUARD_RATE = 4
# Another plan is another model to the guard and the drift detector if it differs in more of its units.
_SAME_PLAN = 0.03
# Means are refreshed when they have moved by so much of their size, taken together.
_MOVED = 0.1
_COUNTS = (
    "batches", "rows", "canary_rows", "bad_batches", "unread_batches", "flips", "operations",
    "dense_operations",
)  # fmt: skip
# A model of fewer weights keeps its dense plan packed beside a pruned one, for faster canaries.
_SMALL_MODEL = 1_000_000


class Controller:
    """State behind an accelerated model.

    Forwards read ``plan`` without a lock and report through :meth:`report`, which never waits: if
    another thread is deciding, that thread takes the report over.
    """

    def __init__(self, program: Program, config: Config) -> None:
        self.program = program
        self.config = config
        self.builder = PlanBuilder(
            program, products=config.compensation == "lstsq", input_major=config.input_major
        )
        self.lock = threading.RLock()
        on_gpu = program.device.type == "cuda"
        self.inbox = Inbox(self._take, self.lock, background=config.background, on_gpu=on_gpu)
        self.tickets = itertools.count()
        rate = 1 if config.max_divergence is None else _GUARD_RATE
        # A guard and a budget measure with every canary what they promise: no request is too small for that.
        self.measures = config.max_divergence is not None or config.criterion == "budget"
        self.work = multiply_adds(program)
        work = math.inf if self.measures else sum(self.work.values())
        self.canaries = Canaries(config.seed, config.canary_interval, config.canary_rows, rate, work)
        self.looks = Looks(config.seed, config.drift_interval, work)
        self.callbacks: list[Callable[[dict[str, Tensor]], None]] = []
        self.frozen = False
        self.observing = True
        self.batch = 0
        self.forced: dict[str, Tensor] = {}
        self.counts = dict.fromkeys(_COUNTS, 0)
        self.usage_reads = program.usage_reads
        self.watched = watched_usage(program)
        self.statistics = Statistics(program, config.window)
        self.states = self._all_active()
        self.drift = DriftDetector(config.drift_threshold)
        self.guard = None if config.max_divergence is None else Guard(config.max_divergence)
        self.budget = Budget(config.error_budget) if config.criterion == "budget" else None
        self.costs = unit_costs(program)
        self.trial = Trial() if config.compensation == "auto" else None
        self.rival: Plan | None = None  # the published choice with the other compensation, while on trial
        self._fresh_rows = 0  # dense rows since the last decision
        self._owed = False  # the guard asks for a decision
        self._last_seen = self.statistics  # before they were last emptied
        self._keep_packed_dense = self._weights() < _SMALL_MODEL
        self.load_weights()
        assert self._packed_dense is not None
        self.plan = self._packed_dense

    def _all_active(self) -> dict[str, policy.GroupState]:
        return {
            name: policy.GroupState.all_active(group.units) for name, group in self.program.groups.items()
        }

    def _weights(self) -> int:
        """Weights of the lowered layers."""
        total = 0
        for site in self.program.sites:
            if isinstance(site, LayerSite):
                total += site.module.weight.numel()
            elif isinstance(site, LSTMSite):
                total += sum(p.numel() for p in site.layer.lstm.parameters())
        return total

    def load_weights(self) -> None:
        """Pack everything anew from the dense weights."""
        with self.lock, torch.inference_mode(False), torch.no_grad():
            self.reader_norms = {name: self._reader_norms(name) for name in self.program.groups}
            packed = self._build_dense(None)
            self._packed_dense: Plan | None = packed
            self._shared_dense = share_weights(self.program, packed)

    def _build_dense(self, previous: Plan | None) -> Plan:
        masks = {n: torch.ones(g.units, dtype=torch.bool) for n, g in self.program.groups.items()}
        return self.builder.build(masks, self.substitutes(masks), previous)

    @property
    def dense_plan(self) -> Plan:
        """What canary rows run on: every unit active, on the model's own weights where a packed copy of
        them beside a pruned plan would cost much memory."""
        return self._packed_dense or self._shared_dense

    def reload_weights(self) -> None:
        """The dense weights were changed in place: pack them anew, and observe anew unless frozen."""
        with self.lock, torch.inference_mode(False), torch.no_grad():
            self.load_weights()
            if not self.frozen:
                self.reactivate_all()
            self.publish(previous=self._packed_dense)

    def _reader_norms(self, name: str) -> list[Tensor]:
        """``||W[:, j]||^2`` at each read point of a group ``[units]``; ones where no layer reads."""
        norms = []
        for index in self.program.groups[name].reads:
            groups = self.program.reads[index].layout.groups
            sizes = [self.program.groups[g].units for g in groups]
            square = squared_columns(self.program, index)
            if square is None:
                square = torch.ones(sum(sizes), dtype=torch.float64)
            per_unit = square.view(sum(sizes), -1).sum(1)
            parts = zip(groups, torch.split(per_unit, sizes), strict=True)
            norms += [part for group, part in parts if group == name]
        return norms

    # What forwards ask ----------------------------------------------------------------------------

    def tries(self, plan: Plan, ticket: int, rows: int) -> Plan | None:
        """The plan that this batch should run on as well, to compare compensations; mostly None."""
        rival = self.rival
        if rival is None or self.trial is None or rival.serial != plan.serial:
            return None
        again = ticket % self.canaries.interval_of(rows) == 0
        return rival if self.trial.undecided or again else None

    @property
    def compares(self) -> bool:
        """Whether canary rows run on the plan as well."""
        return self.guard is not None or self.budget is not None

    @property
    def verifying(self) -> bool:
        """Whether the guard knows too little about the present plan to give any of its answers."""
        if self.guard is None:
            return False
        return self.guard.verifying or not (self.drift.warm or self.config.drift_threshold == math.inf)

    def wants_usage(self, ticket: int, rows: int) -> bool:
        """Whether the live usage of this batch feeds the drift detector."""
        if self.observing or self.config.drift_threshold == math.inf:
            return False
        if not self.drift.warm:
            return True
        return self.looks.has(ticket, rows)

    def dense_record(self) -> Record:
        """An empty record for rows that run by all units."""
        return Record(usage=True, reads=True, usage_reads=self.usage_reads, products=self.builder.products)

    def live_record(self, *, usage: bool) -> Record:
        """An empty record for rows that run on the published plan."""
        return Record(usage=usage, watched=self.watched, input_threshold=self.config.input_threshold)

    def report(self, seen: Seen) -> None:
        """Take in what a forward saw; may publish a plan. This never waits, see :class:`Inbox`."""
        self.inbox.put(seen)

    def wait(self) -> None:
        """Until everything that was reported is taken in."""
        self.inbox.drain()

    # Decisions ------------------------------------------------------------------------------------

    def _take(self, seen: Seen) -> None:
        counts = self.counts
        counts["batches"] += 1
        counts["rows"] += seen.rows
        if seen.live is not None:
            counts["operations"] += seen.live[0].operations
            counts["dense_operations"] += seen.live[0].dense_operations
        if seen.dense is not None:
            counts["operations"] += seen.dense[0].operations
            # Rows that run twice, to be compared, would have run once in a dense model.
            if seen.compared is None and seen.outputs is None:
                counts["dense_operations"] += seen.dense[0].dense_operations
        if seen.repeated is not None:
            counts["operations"] += seen.repeated.operations
        if seen.canary and seen.dense is not None:
            counts["canary_rows"] += seen.dense[1]
        counts["unread_batches"] += seen.forgotten
        if self.frozen:
            return
        self.batch += 1
        if seen.forgotten:
            return
        # Most batches are only counted, without the microseconds that these contexts take.
        if (
            seen.dense is not None
            or seen.margins is not None
            or seen.tried is not None
            or (seen.live is not None and seen.live[0].usage)
        ):
            with torch.inference_mode(False), torch.no_grad():
                self._learn(seen)

    def _learn(self, seen: Seen) -> None:
        """Take in what a forward measured; may publish a plan."""
        current = seen.serial == self.plan.serial
        if seen.margins is not None and self.guard is not None and current:
            verdict = self.guard.add(seen.margins, seen.compared)
            if verdict.trouble:
                self.reactivate_all()
                return
            self._owed = self._owed or verdict.decide
        if seen.outputs is not None and self.budget is not None and current:
            self._owed = self.budget.add(*seen.outputs) or self._owed
        if seen.tried is not None and self.trial is not None and current:
            if self.trial.add(*seen.tried):
                self.publish()
        if seen.dense is not None:
            self._report_bad(seen.dense[0])
            self.statistics = self.statistics.with_record(*seen.dense)
            self._fresh_rows += seen.dense[1]
            enough = self.statistics.rows >= self.config.evidence
            if self.observing or not self.verifying:
                if enough and (self._owed or self._fresh_rows >= _FRESH * self.config.evidence):
                    settle, self._fresh_rows, self._owed = self.observing or self._owed, 0, False
                    self._decide(settle)
        if seen.live is not None and not self.observing and seen.serial == self.plan.serial:
            if self.drift.add(seen.live[0].usage, seen.live[1]):
                self.reactivate_all()

    def _report_bad(self, record: Record) -> None:
        """Count a batch with activations that are NaN or infinite; the first one is logged."""
        if not record.bad:
            return
        self.counts["bad_batches"] += 1
        if self.counts["bad_batches"] == 1:
            groups = [n for n, usage in record.usage.items() if bool((usage[3] < record.expected[n]).any())]
            _log.warning(
                "activations of %s hold NaN or infinity; they are left out of the statistics "
                "(stats()['bad_batches'] counts such batches)",
                ", ".join(groups),
            )

    def scores(self) -> dict[str, Tensor]:
        """Group -> score ``[units]`` under the criterion."""
        criterion, statistics = self.config.criterion, self.statistics
        residuals: Mapping[str, list[Tensor]] = {}
        if self.builder.products and (criterion == "residual" or callable(criterion)):
            residuals = statistics.reader_residuals()
        views = {
            name: GroupView(
                name, statistics.stats(name), norms, statistics.reader_vars(name), residuals.get(name, [])
            )
            for name, norms in self.reader_norms.items()
        }
        if self.budget is not None:
            scores = budget_scores(views, self.costs, self.budget.allowed)
        else:
            function = CRITERIA[criterion] if isinstance(criterion, str) else criterion
            scores = {name: function(view) for name, view in views.items()}
        for name, score in scores.items():
            units = self.program.groups[name].units
            if not isinstance(score, Tensor) or score.shape != (units,):
                got = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
                raise ValueError(f"criterion: expected scores [{units}] of {name}, got {got}")
            scores[name] = torch.where(views[name].usage.count > 0, score.double(), float("nan"))
        return scores

    def _rules(self, settle: bool) -> policy.Rules:
        config = self.config
        scale = 1.0 if self.guard is None else self.guard.scale
        units = sum(group.units for group in self.program.groups.values())
        prune, reactivate = config.prune_threshold, config.reactivate_threshold
        if self.budget is not None:
            prune, reactivate = PRUNE, REACTIVATE
        return policy.Rules(
            prune=prune * scale,
            reactivate=reactivate * scale,
            min_active=config.min_active,
            dwell=0 if settle else config.dwell,
            max_flips=None if settle else max(1, int(config.max_flips * units)),
        )

    def _decide(self, settle: bool) -> None:
        scores = self.scores()
        free = {name: score for name, score in scores.items() if name not in self.forced}
        states = policy.decide(free, self.states, self._rules(settle), self.batch)
        self.observing = False
        if not self._move(states) and self._means_moved():
            self.publish()

    def _means_moved(self) -> bool:
        """Whether the means that stand in for pruned units are no longer those of the plan.

        Predictions are made anew with each flip only: they change the weights, not just biases.
        """
        compensation = self.config.compensation if self.trial is None else self.trial.choice
        if compensation != "mean" or self.plan.dense:
            return False
        fresh = self.substitutes(self.plan.active)
        moved = total = 0.0
        for read in self.program.reads:
            pruned = ~read.layout.join(self.plan.active)
            now, then = fresh[read.name].constants[pruned], self.plan.substitutes[read.name].constants[pruned]
            moved += float((now - then).square().sum())
            total += float(now.square().sum())
        return moved > _MOVED * _MOVED * total

    def _move(self, states: dict[str, policy.GroupState]) -> bool:
        """Adopt new policy states, count their flips and publish what changed; False: nothing did."""
        flips = sum(int((states[name].active != self.states[name].active).sum()) for name in states)
        if flips == 0:
            return False
        before = self.states
        self.states = states
        try:
            self.publish()
        except BaseException:
            self.states = before
            raise
        self.counts["flips"] += flips
        return True

    def reactivate_all(self) -> None:
        """Publish the dense plan and start observing anew."""
        if self.statistics.rows:
            self._last_seen = self.statistics
        self.statistics = Statistics(self.program, self.config.window)
        self.observing = True
        self._move(self._all_active())
        self.drift.reset()

    def calibrated(self, statistics: Statistics) -> None:
        """Replace the statistics and apply the policy once, from everything active, without limits."""
        with self.lock, torch.inference_mode(False), torch.no_grad():
            before = self.statistics, self.observing
            self.statistics = statistics
            try:
                scores = self.scores()
                fresh = self._all_active()
                free = {name: score for name, score in scores.items() if name not in self.forced}
                states = policy.decide(free, fresh, self._rules(settle=True), self.batch)
                self.observing = False
                # Publishing is owed even without a flip: the constants are new.
                self._move(states)
                self.publish()
            except BaseException:
                self.statistics, self.observing = before
                raise

    # Publishing -----------------------------------------------------------------------------------

    def active(self) -> dict[str, Tensor]:
        """Group -> units to compute: the forced set, or the policy's."""
        return {name: self.forced.get(name, state.active) for name, state in self.states.items()}

    def substitutes(
        self, active: Mapping[str, Tensor], compensation: str | None = None
    ) -> dict[str, Substitute]:
        """Read point -> what is to stand in for the units that are not ``active``, by default as
        configured."""
        # Nothing seen since the last reactivation: forced sets live on what was seen before.
        statistics = self.statistics if self.statistics.rows else self._last_seen
        if compensation is None:
            compensation = self.config.compensation if self.trial is None else self.trial.choice
        return statistics.substitutes(compensation, active)

    def publish(
        self, substitutes: dict[str, Substitute] | None = None, *, previous: Plan | None = None
    ) -> None:
        """Build the plan of the current choice and put it in place by one assignment.

        Entries are shared with ``previous``, the published plan if None; ``substitutes`` None: what the
        statistics give.
        """
        active = self.active()
        if substitutes is None:
            substitutes = self.substitutes(active)
        dense: Plan | None
        if all(bool(mask.all()) for mask in active.values()):
            dense = self._packed_dense or self._build_dense(self.plan)
            plan = dataclasses.replace(dense, substitutes=substitutes)
        else:
            dense = self._packed_dense if self._keep_packed_dense else None
            plan = self.builder.build(active, substitutes, previous or self.plan)
        plan = dataclasses.replace(plan, serial=self.plan.serial + 1)
        before = self.plan, self._packed_dense, self.canaries
        self.plan, self._packed_dense, self.rival = plan, dense, None
        if not self.measures:
            self.canaries = self.canaries.beside(share_of_work(plan, self.work))
        self._follow_plan(before[0])
        try:
            for callback in list(self.callbacks):
                callback({name: mask.clone() for name, mask in plan.active.items()})
        except BaseException:
            # A failed call leaves the model as it was; the serial is used up.
            self.plan = dataclasses.replace(before[0], serial=plan.serial + 1)
            self._packed_dense, self.canaries = before[1:]
            self.drift.reset()
            raise
        if self.trial is not None and not plan.dense and not self.compares:
            other = self.builder.build(active, self.substitutes(active, self.trial.other), plan)
            self.rival = dataclasses.replace(other, serial=plan.serial)

    def _follow_plan(self, before: Plan) -> None:
        """What was learned about the plan ``before`` holds for one that is nearly the same."""
        was, now = before.active, self.plan.active
        units = sum(int(mask.sum()) for mask in was.values())
        changed = sum(int((was[name] != now[name]).sum()) for name in now)
        if changed <= _SAME_PLAN * units:
            self.drift.carry(*({n: m for n, m in each.items() if n in self.watched} for each in (was, now)))
            return
        self.drift.reset()
        for judge in (self.guard, self.budget, self.trial):
            if judge is not None:
                judge.restart()

    def force(self, name: str, mask: Tensor | None) -> None:
        """Force a group's set, or (None) give it back to the policy; publishes."""
        with self.lock, torch.inference_mode(False), torch.no_grad():
            before = dict(self.forced)
            if mask is None:
                self.forced.pop(name, None)
            else:
                self.forced[name] = mask.detach().clone()
            try:
                if mask is None and not self.frozen:
                    self._settle(name)
                self.publish()
            except BaseException:
                self.forced = before
                raise

    def _settle(self, name: str) -> None:
        """Decide on a group that was forced while the others were decided on, as they were: without cap."""
        if self.observing or self.statistics.rows < self.config.evidence:
            return
        scores = self.scores()
        states = policy.decide({name: scores[name]}, self.states, self._rules(settle=True), self.batch)
        self._move(states)

    def usage(self) -> dict[str, UsageStats]:
        """Group -> usage statistics."""
        with self.lock:
            return {name: self.statistics.stats(name) for name in self.program.groups}

    def summary(self) -> dict[str, Any]:
        """Plain data for ``stats()``."""
        with self.lock:
            masks = self.plan.active.values()
            units = sum(len(mask) for mask in masks)
            active = sum(int(mask.sum()) for mask in masks)
            result: dict[str, Any] = dict(self.counts)
            result["active_fraction"] = active / units if units else 1.0
            result["observing"] = self.observing
            if self.guard is not None:
                result["divergence"] = self.guard.summary()
            if self.trial is not None:
                result["compensation"] = self.trial.choice
            if self.budget is not None:
                result["output_error"] = self.budget.summary()
            return result
