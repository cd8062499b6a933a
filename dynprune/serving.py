"""Answering a batch: which rows run on which plan, and what the controller learns from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dynprune.config import Config
from dynprune.control.answers import answers_of, compare, margins
from dynprune.control.controller import Controller
from dynprune.control.seen import Seen
from dynprune.lowering.ir import LSTMSite, Program
from dynprune.ops.devices import fetch, upload
from dynprune.plan.plan import Plan
from dynprune.plan.record import Record
from dynprune.rows import alike, batch_size, close, leaves_of, merge, put_rows, slice_rows, take_rows

_ROW_TOLERANCE = 1e-4
# Images larger than this between two layers of a slice fall out of the cache before they are read.
_SLICE_BYTES = 3 * 2**20
_SHAPES = 32  # of inputs whose operations are remembered


class Call:
    """The arguments of one call, and its rows."""

    __slots__ = ("args", "kwargs", "rows")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        self.rows = batch_size(leaves_of(args, kwargs)) or 0

    def take(self, index: Tensor) -> Call:
        """The rows ``index``."""
        return Call(*take_rows((self.args, self.kwargs), index, self.rows))


class Server:
    """Runs a program on the plans of its controller.

    Attributes:
        row_wise: whether the rows of a batch are independent, so that some may run on their own.
        slice_rows: rows that run at once; 0: all of them.
    """

    def __init__(self, program: Program, controller: Controller, config: Config) -> None:
        self.program = program
        self.controller = controller
        self.config = config
        self.run: Callable[..., Any] = program.module.forward  # (plan, record, *inputs)
        self.row_wise = False
        self.slice_rows = 0
        # What takes as many operations whenever its input has the same shape is counted once per plan.
        counts_by_shape = not any(isinstance(site, LSTMSite) for site in program.sites)
        self._counts_by_shape = counts_by_shape and config.input_threshold == 0
        self._counted: tuple[Plan | None, dict[torch.Size | None, Record]] = (None, {})

    def serve(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The answer to one call."""
        controller = self.controller
        call = Call(args, kwargs)
        plan = controller.plan
        if controller.frozen:
            if controller.guard is not None and not plan.dense and call.rows > 0:
                return self._serve_compared(plan, call, None)
            return self._serve_live(plan, call, usage=False)
        ticket = next(controller.tickets)
        if call.rows == 0:
            return self._serve_live(plan, call, usage=False)
        if controller.observing and plan.dense:
            return self._serve_dense(plan, call, Seen(call.rows, plan.serial))
        if controller.compares and not plan.dense:
            return self._serve_compared(plan, call, ticket)
        if controller.canaries.has(ticket, call.rows):
            return self._serve_canary(plan, call, ticket)
        return self._serve_live(
            plan,
            call,
            usage=controller.wants_usage(ticket, call.rows),
            rival=controller.tries(plan, ticket, call.rows),
        )

    def run_rows(self, plan: Plan, record: Record | None, call: Call) -> Any:
        """The program on a call, in slices whose images stay in the cache."""
        rows = call.rows
        if plan.ready is not None:
            plan.ready.join()
        slices = round(rows / self.slice_rows) if self.slice_rows else 1
        if slices < 2:
            return self.run(plan, record, *call.args, **call.kwargs)
        parts = []
        for i in range(slices):
            first, last = i * rows // slices, (i + 1) * rows // slices
            args, kwargs = slice_rows((call.args, call.kwargs), first, last, rows)
            parts.append(self.run(plan, record, *args, **kwargs))
        return merge(parts, torch.cat)

    def _serve_live(self, plan: Plan, call: Call, *, usage: bool, rival: Plan | None = None) -> Any:
        known = None if usage else self._known(plan, call)
        record = self.controller.live_record(usage=usage) if known is None else known
        output = self.run_rows(plan, record if known is None else None, call)
        if known is None and not usage:
            self._remember(plan, call, record)
        seen = Seen(call.rows, plan.serial, live=(record, call.rows))
        if rival is not None:
            seen.repeated = self.controller.live_record(usage=False)
            pair = answers_of(output), answers_of(self.run_rows(rival, seen.repeated, call))
            if pair[0] is not None and pair[1] is not None:
                seen.tried = pair[0], pair[1]
        self.controller.report(seen)
        return output

    def _known(self, plan: Plan, call: Call) -> Record | None:
        """The record, without usage, of a call like this one on the same plan; None: there was none yet."""
        counted, records = self._counted
        if counted is not plan or len(call.args) != 1 or call.kwargs:
            return None
        return records.get(getattr(call.args[0], "shape", None))

    def _remember(self, plan: Plan, call: Call, record: Record) -> None:
        alone = len(call.args) == 1 and isinstance(call.args[0], Tensor) and not call.kwargs
        if not (self._counts_by_shape and self.row_wise and alone):
            return
        counted, records = self._counted
        if counted is not plan or len(records) >= _SHAPES:
            records = {}
        self._counted = plan, {**records, call.args[0].shape: record}

    def _serve_dense(self, plan: Plan, call: Call, seen: Seen) -> Any:
        record = self.controller.dense_record()
        output = self.run_rows(plan, record, call)
        seen.dense = (record, call.rows)
        self.controller.report(seen)
        return output

    def _serve_canary(self, plan: Plan, call: Call, ticket: int) -> Any:
        """Some rows by all units, the others on the plan."""
        controller, rows = self.controller, call.rows
        seen = Seen(rows, plan.serial, canary=True)
        if not self.row_wise or rows <= self.config.canary_rows:
            return self._serve_dense(controller.dense_plan, call, seen)
        chosen = controller.canaries.choose(ticket, rows)
        rest = torch.ones(rows, dtype=torch.bool)
        rest[chosen] = False
        others = rest.nonzero().flatten()
        dense_record = controller.dense_record()
        live_record = controller.live_record(usage=controller.wants_usage(ticket, rows))
        dense = self.run_rows(controller.dense_plan, dense_record, call.take(chosen))
        live = self.run_rows(plan, live_record, call.take(others))
        seen.dense, seen.live = (dense_record, len(chosen)), (live_record, len(others))
        controller.report(seen)
        if not alike(live, dense):  # sizes that depend on the rows, such as the longest sequence
            self.row_wise = False
            return self.run_rows(plan, None, call)
        return put_rows([(live, others), (dense, chosen)], rows)

    def answer_canaries(self, output: Any, call: Call, ticket: int, seen: Seen) -> Any:
        """An output of the plan with its canary rows answered by all units as well; ``seen`` takes note."""
        controller, rows = self.controller, call.rows
        whole = not self.row_wise or rows <= self.config.canary_rows
        chosen = torch.arange(rows) if whole else controller.canaries.choose(ticket, rows)
        record = controller.dense_record()
        dense = self.run_rows(controller.dense_plan, record, call if whole else call.take(chosen))
        record.dense_operations = 0  # a dense model would have run these rows once
        seen.canary, seen.dense = True, (record, len(chosen))
        if whole:
            return dense
        if not alike(output, dense):
            self.row_wise = False
            return output
        return put_rows([(output, torch.arange(rows)), (dense, chosen)], rows)

    def _serve_compared(self, plan: Plan, call: Call, ticket: int | None) -> Any:
        """All rows on the plan, and canary rows by all units as well; with a guard also those whose answer is
        not clear.

        If the units are used in a way that the plan was not made for, or too little is known about it yet,
        all units answer everything a guard watches over. ``ticket`` None: the model is frozen.
        """
        controller, rows = self.controller, call.rows
        guard = controller.guard
        watched = ticket is not None and (guard is not None or controller.wants_usage(ticket, rows))
        record = controller.live_record(usage=watched)
        live = self.run_rows(plan, record, call)
        seen = Seen(rows, plan.serial, live=(record, rows))
        scores = answers_of(live)
        if scores is None or scores.shape[0] != rows:  # nothing that could be compared
            controller.report(seen)
            return live
        unclear = torch.zeros(rows, dtype=torch.bool)
        if guard is not None:
            # Which answers may be given has to be known now: on a GPU this waits for them.
            seen.send()
            seen.receive()
            scores = fetch(scores)
            seen.margins = margins(scores)
            unclear = guard.defers(seen.margins)
            if ticket is not None and controller.drift.stands_out(record.usage, rows):
                unclear[:] = True
        canary = torch.zeros_like(unclear)
        if ticket is not None:
            if controller.verifying:
                canary[:] = True
            elif controller.canaries.has(ticket, rows):
                canary[controller.canaries.choose(ticket, rows)] = True
        if not self.row_wise:  # all rows or none
            canary[:] = bool(canary.any())
            unclear[:] = bool(unclear.any())
        output = live
        # Rows that were chosen for their answers say nothing about the others: their usage is not counted.
        for mask, dense_record, random in (
            (unclear & ~canary, Record(usage=False), False),
            (canary, controller.dense_record(), True),
        ):
            chosen = mask.nonzero().flatten()
            if len(chosen) == 0:
                continue
            whole = len(chosen) == rows
            dense = self.run_rows(controller.dense_plan, dense_record, call if whole else call.take(chosen))
            if random:
                full = answers_of(dense)
                assert full is not None
                seen.canary, seen.dense = True, (dense_record, len(chosen))
                seen.outputs = full.to(scores.device), scores.index_select(0, upload(chosen, scores.device))
                if guard is not None:
                    seen.compared = compare(*seen.outputs)
            else:
                seen.repeated = dense_record
            if whole:
                output = dense
            elif alike(output, dense):
                output = put_rows([(output, torch.arange(rows)), (dense, chosen)], rows)
            else:
                self.row_wise = False
                output = self.run_rows(controller.dense_plan, None, call)
        controller.report(seen)
        return output

    def check(self, args: tuple[Any, ...], expected: Any, *, tolerance: float, row_tolerance: float) -> None:
        """Compare with the model on the example, and find out whether rows may be split.

        Raises:
            ValueError: the outputs differ by more than ``tolerance``.
        """
        plan = self.controller.plan
        got = self.run(plan, None, *args)
        if not close(got, expected, tolerance):
            raise ValueError(
                "accelerate: expected the lowered model to agree with the model on example_inputs, "
                "got other outputs; a forward that is random in eval mode cannot be accelerated"
            )
        rows = batch_size(leaves_of(args, {}))
        leaves = pytree.tree_leaves(expected)
        if not rows or batch_size(leaves) != rows:
            return
        # Twice the rows, the new ones different also for an example of equal rows, and all in reverse: if
        # the old ones' outputs stay, rows do not look at each other, neither at those before nor at those
        # behind, and canary rows may run on their own.
        if not all(isinstance(v, Tensor) and v.dim() > 0 and v.shape[0] == rows for v in leaves):
            return

        def double(t: Tensor) -> Tensor:
            if t.dim() == 0 or t.shape[0] != rows:
                return t
            if not t.is_floating_point():
                return torch.cat([t, t.roll(1, 0)]).flip(0)
            noise = torch.rand(t.shape, generator=torch.Generator().manual_seed(0), dtype=t.dtype)
            return torch.cat([t, t * 0.5 + noise.to(t.device)]).flip(0)

        try:
            twice = self.run(plan, None, *pytree.tree_map_only(Tensor, double, args))
        except Exception:
            return  # a forward with a fixed batch size
        if batch_size(pytree.tree_leaves(twice)) != 2 * rows:
            return
        old = take_rows(twice, torch.arange(2 * rows).flip(0)[:rows], 2 * rows)
        self.row_wise = close(old, got, max(row_tolerance, _ROW_TOLERANCE))
        if self.row_wise and self.program.device.type == "cpu":
            images = [n.meta.get("shape") for n in self.program.traced.graph.nodes]
            sizes = [4 * math.prod(s[1:]) for s in images if s is not None and len(s) == 4]
            self.slice_rows = max(8, _SLICE_BYTES // max(sizes)) if sizes else 0
