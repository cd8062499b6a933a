"""A captured graph of an accelerated model, which goes on as units flip."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dynprune.control.seen import Seen
from dynprune.lowering.trace import describe
from dynprune.plan.captured import CapturedPlan
from dynprune.plan.plan import Plan
from dynprune.plan.record import Record
from dynprune.serving import Call, Server

_WARM_UP = 3  # runs before a capture, in which libraries allocate what they keep

Run = Callable[[Record], Any]


class Graph:
    """A forward that was captured: replaying it launches all of its kernels at once.

    Args:
        run: the forward, on inputs at fixed addresses.
        record: makes one to be filled.
        device: of the forward. On the CPU there are no graphs; a replay runs it again.
    """

    def __init__(self, run: Run, record: Callable[[], Record], device: torch.device) -> None:
        self._run, self._new_record = run, record
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            return
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                run(record())
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        self._record = record()
        # Other threads go on meanwhile; and the default stream of captures may be another device's.
        graph = torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local")
        with torch.cuda.device(device), graph:
            self._output = run(self._record)

    def replay(self) -> tuple[Any, Record]:
        """The output and what was measured; on a GPU both are overwritten by the next replay."""
        if self._graph is None:
            record = self._new_record()
            return self._run(record), record
        self._graph.replay()
        return self._output, self._record


class CapturedModel:
    """Serves inputs of one size on a CUDA graph; made by ``AcceleratedModel.capture``.

    The accelerated model goes on adapting: what it decides is written into the graph's buffers before the
    next replay, in the order of the stream. Nothing is captured again, and the host waits for nothing. Canary
    rows run outside of the graph, and so does everything while the model observes. Calls from several threads
    take turns; they should come from one stream.

    Args:
        server: of the accelerated model.
        follow: adopts weights that were changed in place; returns another number where there were some.
        args: inputs of the size that is to be served.
    """

    def __init__(self, server: Server, follow: Callable[[], int], args: tuple[Any, ...]) -> None:
        self._controller, self._server, self._follow = server.controller, server, follow
        self._check_config()
        plan = self._controller.plan
        self._rows = Call(args, {}).rows
        if not self._rows:
            raise ValueError(f"capture: expected inputs with at least one row, got {describe(args)}")
        self._lock = threading.RLock()  # a callback of an update may call
        off = torch.autocast(server.program.device.type, enabled=False)
        with torch.inference_mode(False), torch.no_grad(), off:
            self._inputs = pytree.tree_map_only(Tensor, torch.clone, args)
            self._plan = CapturedPlan(self._controller.builder, plan)
            self._graphs = {
                usage: Graph(
                    self._forward, partial(self._controller.live_record, usage=usage), server.program.device
                )
                for usage in (False, True)
            }
            # On a CPU nothing has run yet.
            self._forward(Record(usage=False))
        self._serial, self._weights = plan.serial, follow()

    def _check_config(self) -> None:
        config = self._controller.config
        asked = {
            "max_divergence": config.max_divergence is not None,
            'criterion="budget"': config.criterion == "budget",
            'compensation="auto"': config.compensation == "auto",
            "input_threshold": config.input_threshold > 0,
        }
        got = ", ".join(name for name, given in asked.items() if given)
        if got:
            raise ValueError(f"capture: expected a Config without {', '.join(asked)}, got one with {got}")
        if self._controller.program.has_lengths:
            raise ValueError(
                "capture: expected a model whose shapes follow from its inputs', got packed sequences"
            )

    def _forward(self, record: Record) -> Any:
        return self._server.run(self._plan, record, *self._inputs)

    def __call__(self, *args: Any) -> Any:
        """As the accelerated model, for positional arguments of the sizes that were captured.

        Raises:
            ValueError: others came.
        """
        controller, server = self._controller, self._server
        self._expect(args)
        off = torch.autocast(server.program.device.type, enabled=False)  # for the rows outside of the graph
        with self._lock, torch.inference_mode(False), torch.no_grad(), off:
            weights = self._follow()
            plan = controller.plan
            if controller.observing and plan.dense and not controller.frozen:
                return server.serve(args, {})
            if plan.serial != self._serial or weights != self._weights:
                self._plan.load(plan, anew=weights != self._weights)
                self._serial, self._weights = plan.serial, weights
            pytree.tree_map(_copy, self._inputs, args)
            ticket = None if controller.frozen else next(controller.tickets)
            usage = ticket is not None and controller.wants_usage(ticket, self._rows)
            output, measured = self._graphs[usage].replay()
            output = pytree.tree_map_only(Tensor, torch.clone, output)
            seen = Seen(self._rows, plan.serial, live=(self._record(plan, measured), self._rows))
            if ticket is not None and controller.canaries.has(ticket, self._rows):
                output = server.answer_canaries(output, Call(args, {}), ticket, seen)
            controller.report(seen)
            return output

    def _expect(self, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled() and any(
            isinstance(v, Tensor) and v.requires_grad for v in pytree.tree_leaves(args)
        ):
            raise NotImplementedError(
                "captured model: expected inputs that need no gradient, got one that does"
            )
        (wanted, structure), (given, other) = pytree.tree_flatten(self._inputs), pytree.tree_flatten(args)
        fits = structure == other and all(
            (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
            if isinstance(a, Tensor) and isinstance(b, Tensor)
            else type(a) is type(b) and a == b
            for a, b in zip(wanted, given, strict=False)
        )
        if not fits:
            expected, got = describe(self._inputs), describe(args)
            raise ValueError(
                f"captured model: expected {expected} as it was captured, got {got}; "
                "the accelerated model takes others"
            )

    def _record(self, plan: Plan, measured: Record) -> Record:
        """What one replay has done, as a forward on ``plan`` would have noted it."""
        record = Record(usage=measured.want_usage)
        record.usage = self._plan.usage(measured.usage, plan)
        record.operations, record.dense_operations = self._plan.operations(plan)
        return record


def _copy(to: Any, value: Any) -> None:
    if isinstance(to, Tensor):
        to.copy_(value, non_blocking=True)
