"""The accelerated model, and ``accelerate`` which makes it."""

from __future__ import annotations

import copy
import itertools
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune import explain as explaining
from dynprune import materialize as materializing
from dynprune.config import Config
from dynprune.control.controller import Controller, Seen, Statistics
from dynprune.control.guard import changed_answers
from dynprune.control.usage import UsageStats
from dynprune.lowering.analyse import analyse
from dynprune.lowering.emit import emit
from dynprune.lowering.ir import Group, Program
from dynprune.lowering.recurrent import split_lstms
from dynprune.lowering.trace import annotate_shapes, describe, share_copy, trace
from dynprune.plan.plan import Plan
from dynprune.plan.record import Record

_version = operator.attrgetter("_version")
_ROW_TOLERANCE = 1e-4
# Images larger than this between two layers of a slice fall out of the cache before they are read.
_SLICE_BYTES = 3 * 2**20


def accelerate(model: nn.Module, example_inputs: Any, config: Config | None = None) -> AcceleratedModel:
    """Make a model that stops computing the units its traffic does not use.

    Args:
        model: a model on the CPU; it is never changed, and its parameters are shared.
        example_inputs: a tensor, or a tuple of the model's positional arguments; any batch size.
        config: thresholds and limits; the defaults of :class:`Config` if None.

    Returns:
        A module with the same signature and outputs, which observes, prunes and reactivates as it
        serves.

    Raises:
        TraceError: torch.fx cannot trace the model (a ValueError).
        ValueError: an argument is not as above.
    """
    config = Config() if config is None else config
    if not isinstance(config, Config):
        raise ValueError(f"accelerate: expected a dynprune.Config, got {type(config).__name__}")
    if isinstance(model, AcceleratedModel):
        raise ValueError("accelerate: expected a model that is not accelerated yet, got one that is")
    if not isinstance(model, nn.Module):
        raise ValueError(f"accelerate: expected a torch.nn.Module, got {type(model).__name__}")
    args = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    named = [*tensors, *((f"example_inputs[{i}]", a) for i, a in enumerate(args))]
    for name, tensor in named:
        if isinstance(tensor, Tensor) and tensor.device.type != "cpu":
            raise ValueError(
                f"accelerate: expected a model and inputs on the CPU, got {name} on {tensor.device}"
            )
    if config.dtype is None:
        dense = share_copy(model)
    else:
        dense, args = copy.deepcopy(model).eval().to(config.dtype), _cast(args, config.dtype)
    traced = trace(dense, args)
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        annotate_shapes(traced, args)
        if split_lstms(traced):
            annotate_shapes(traced, args)
        expected = dense(*args)
        program = emit(analyse(traced))
        accelerated = AcceleratedModel(model, program, config)
        accelerated._check(args, expected)
    return accelerated


def _cast(values: Any, dtype: torch.dtype) -> Any:
    """Floating tensors of a structure in another dtype."""
    return pytree.tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, values)


def _leaves(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What a call was given, leaf by leaf; a lone tensor, as most calls have, needs no walk."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return [args[0]]
    return pytree.tree_leaves((args, kwargs))


def _batch_size(leaves: Iterable[Any]) -> int | None:
    """Size of dimension 0 of the first tensor among them; None if there is none."""
    for value in leaves:
        if isinstance(value, Tensor) and value.dim() > 0:
            return int(value.shape[0])
    return None


def _take_rows(values: Any, index: Tensor, rows: int) -> Any:
    """The rows ``index`` of every tensor whose dimension 0 is the batch."""

    def take(t: Tensor) -> Tensor:
        return t.index_select(0, index) if t.dim() > 0 and t.shape[0] == rows else t

    return pytree.tree_map_only(Tensor, take, values)


def _slice_rows(values: Any, first: int, last: int, rows: int) -> Any:
    """The rows [first, last) of every tensor whose dimension 0 is the batch, without a copy."""

    def cut(t: Tensor) -> Tensor:
        return t[first:last] if t.dim() > 0 and t.shape[0] == rows else t

    return pytree.tree_map_only(Tensor, cut, values)


def _merge(parts: list[Any], join: Callable[[tuple[Tensor, ...]], Tensor]) -> Any:
    """One structure from several alike, whose leaves are tensors, leaf by leaf."""
    leaves = [pytree.tree_flatten(part) for part in parts]
    merged = [join(column) for column in zip(*(flat for flat, _ in leaves), strict=True)]
    return pytree.tree_unflatten(merged, leaves[0][1])


def _alike(left: Any, right: Any) -> bool:
    """Whether two structures hold rows of the same sizes."""
    pairs = zip(pytree.tree_leaves(left), pytree.tree_leaves(right), strict=True)
    return all(a.shape[1:] == b.shape[1:] for a, b in pairs)


def _put_rows(parts: list[tuple[Any, Tensor]], rows: int) -> Any:
    """One structure of ``rows`` rows from parts with the indices of their rows."""

    def join(column: tuple[Tensor, ...]) -> Tensor:
        out = column[0].new_empty((rows, *column[0].shape[1:]))
        for value, (_, index) in zip(column, parts, strict=True):
            out.index_copy_(0, index, value)
        return out

    return _merge([part for part, _ in parts], join)


class AcceleratedModel(nn.Module):
    """A model that serves on compact layers; made by :func:`accelerate`.

    It has the signature and outputs of the original. Calls run without gradients, in eval mode, from
    any number of threads: each call takes the published plan once, at its start.
    """

    _run: Callable[..., Any]  # the program's forward: (plan, record, *inputs)

    def __init__(self, original: nn.Module, program: Program, config: Config) -> None:
        super().__init__()
        self.config = config
        self.training = False
        self._program = program
        self._controller = Controller(program, config)
        # Not a submodule: the accelerated model's own members are the eval-mode copy's.
        self.__dict__["_original"] = original
        self.dense = program.traced
        self._row_wise = False
        self._slice_rows = 0  # rows that run at once; 0: all of them
        tensors = itertools.chain(program.traced.parameters(), program.traced.buffers())
        dtypes = (p.dtype for p in program.traced.parameters() if p.is_floating_point())
        self._dtype = next(dtypes, config.dtype)  # what it computes in; None: as its inputs are
        self._rounds = self._dtype in (torch.bfloat16, torch.float16)
        self._tracked = [t for t in tensors if not t.is_inference()]
        self._versions = self._read_versions()
        self.__dict__["_run"] = program.module.forward

    # Serving ------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Same arguments and outputs as the original model.

        Under ``torch.autocast`` it computes, and answers, in its own dtype all the same: ``Config.dtype``
        or that of its parameters.

        Raises:
            NotImplementedError: an input requires a gradient.
        """
        if torch.is_autocast_enabled("cpu"):
            if self._dtype is not None:
                args, kwargs = _cast(args, self._dtype), _cast(kwargs, self._dtype)
            with torch.autocast("cpu", enabled=False):
                return self(*args, **kwargs)
        if not torch.is_grad_enabled():
            return self._answer(args, kwargs)
        for value in _leaves(args, kwargs):
            if isinstance(value, Tensor) and value.requires_grad:
                raise NotImplementedError(
                    "forward: expected inputs that need no gradient, got one that requires it; "
                    "use restore() to differentiate"
                )
        with torch.no_grad():
            return self._answer(args, kwargs)

    def _answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Serve in the dtype of the configuration, and answer in that of the arguments."""
        dtype = self.config.dtype
        if dtype is None:
            return self._serve(args, kwargs)
        floats = (v for v in _leaves(args, kwargs) if isinstance(v, Tensor) and v.is_floating_point())
        given = next((v.dtype for v in floats), dtype)
        output = self._serve(_cast(args, dtype), _cast(kwargs, dtype))
        return _cast(output, given)

    def _serve(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        controller = self._controller
        self._follow_weights()
        plan = controller.plan
        rows = _batch_size(_leaves(args, kwargs)) or 0
        if controller.frozen:
            record = controller.live_record(usage=False)
            output = self._run_rows(plan, record, args, kwargs, rows)
            controller.report(Seen(rows, plan.serial, live=(record, rows)))
            return output
        ticket = next(controller.tickets)
        if rows > 0 and (controller.observing and plan.dense):
            return self._serve_dense(plan, args, kwargs, Seen(rows, plan.serial))
        if rows == 0 or not controller.is_canary(ticket):
            record = controller.live_record(usage=controller.wants_usage(ticket))
            output = self._run_rows(plan, record, args, kwargs, rows)
            controller.report(Seen(rows, plan.serial, live=(record, rows)))
            return output
        return self._serve_canary(plan, ticket, args, kwargs, rows)

    def _run_rows(self, plan: Plan, record: Record, args: Any, kwargs: Any, rows: int) -> Any:
        """The program on a batch of ``rows``, in slices whose images stay in the cache."""
        slices = round(rows / self._slice_rows) if self._slice_rows else 1
        if slices < 2:
            return self._run(plan, record, *args, **kwargs)
        parts = []
        for i in range(slices):
            first, last = i * rows // slices, (i + 1) * rows // slices
            some = _slice_rows((args, kwargs), first, last, rows)
            parts.append(self._run(plan, record, *some[0], **some[1]))
        return _merge(parts, torch.cat)

    def _serve_dense(self, plan: Plan, args: Any, kwargs: Any, seen: Seen) -> Any:
        record = self._controller.dense_record()
        output = self._run_rows(plan, record, args, kwargs, seen.rows)
        seen.dense = (record, seen.rows)
        self._controller.report(seen)
        return output

    def _serve_canary(self, plan: Plan, ticket: int, args: Any, kwargs: Any, rows: int) -> Any:
        """Some rows by all units, the others on the plan; with a guard, all rows on the plan too."""
        controller = self._controller
        seen = Seen(rows, plan.serial, canary=True)
        guarded = controller.guard is not None and not plan.dense
        split = self._row_wise and rows > self.config.canary_rows
        if not split and not guarded:
            return self._serve_dense(controller.dense_plan, args, kwargs, seen)
        chosen = controller.canary_rows(ticket, rows) if split else torch.arange(rows)
        rest = torch.ones(rows, dtype=torch.bool)
        rest[chosen] = False
        others = torch.arange(rows) if guarded else rest.nonzero().flatten()
        dense_record, live_record = controller.dense_record(), controller.live_record(usage=True)
        dense_args = _take_rows((args, kwargs), chosen, rows) if split else (args, kwargs)
        dense = self._run(controller.dense_plan, dense_record, *dense_args[0], **dense_args[1])
        live_args = (args, kwargs) if guarded else _take_rows((args, kwargs), others, rows)
        live = self._run_rows(plan, live_record, live_args[0], live_args[1], len(others))
        seen.dense, seen.live = (dense_record, len(chosen)), (live_record, len(others))
        if guarded:
            pruned = _take_rows(live, chosen, rows) if split else live
            seen.changed = _changed(dense, pruned)
            seen.compared = len(chosen)
        controller.report(seen)
        if not split:
            return dense
        if not _alike(live, dense):  # sizes that depend on the rows, such as the longest sequence
            self._row_wise = False
            return live if guarded else self._run(plan, None, *args, **kwargs)
        return _put_rows([(live, others), (dense, chosen)], rows)

    def _check(self, args: tuple[Any, ...], expected: Any) -> None:
        """Compare with the model on the example, and find out whether rows may be split."""
        plan = self._controller.plan
        got = self._run(plan, None, *args)
        close = _close(got, expected, 1e-2 if self.config.dtype or self._rounds else 1e-3)
        if not close:
            raise ValueError(
                "accelerate: expected the lowered model to agree with the model on example_inputs, "
                "got other outputs; a forward that is random in eval mode cannot be accelerated"
            )
        rows = _batch_size(_leaves(args, {}))
        leaves = pytree.tree_leaves(expected)
        if not rows or _batch_size(leaves) != rows:
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
            return torch.cat([t, t * 0.5 + noise]).flip(0)

        try:
            twice = self._run(plan, None, *pytree.tree_map_only(Tensor, double, args))
        except Exception:
            return  # a forward with a fixed batch size
        if _batch_size(pytree.tree_leaves(twice)) != 2 * rows:
            return
        old = _take_rows(twice, torch.arange(2 * rows).flip(0)[:rows], 2 * rows)
        self._row_wise = _close(old, got, 1e-2 if self._rounds else _ROW_TOLERANCE)
        if self._row_wise:
            images = [n.meta.get("shape") for n in self._program.traced.graph.nodes]
            sizes = [4 * math.prod(s[1:]) for s in images if s is not None and len(s) == 4]
            self._slice_rows = max(8, _SLICE_BYTES // max(sizes)) if sizes else 0

    def _read_versions(self) -> int:
        return sum(map(_version, self._tracked))

    def _follow_weights(self) -> None:
        """Pack the dense weights anew if they were changed in place."""
        if self._read_versions() == self._versions:
            return
        with self._controller.lock:
            versions = self._read_versions()
            if versions != self._versions:
                self._controller.reload_weights()
                self._versions = versions

    def train(self, mode: bool = True) -> AcceleratedModel:
        """Only ``train(False)``: an accelerated model serves.

        Raises:
            NotImplementedError: for ``mode`` True.
        """
        if mode:
            raise NotImplementedError(
                "train: expected mode False, got True; an accelerated model serves only, train the "
                "model that restore() returns"
            )
        return self

    # Control ------------------------------------------------------------------------------------

    def calibrate(self, batches: Iterable[Any]) -> None:
        """Observe batches without pruning, then apply the policy once, without dwell or cap.

        Args:
            batches: inputs; each a tensor, or a tuple of the model's positional arguments. A tensor
                in place of the iterable is one batch.

        Raises:
            ValueError: there is no batch, or the model is frozen.
        """
        controller = self._controller
        if controller.frozen:
            raise ValueError("calibrate: expected a model that is not frozen, got a frozen one")
        if isinstance(batches, Tensor):
            batches = [batches]
        if not isinstance(batches, Iterable):
            raise ValueError(f"calibrate: expected an iterable of batches, got {type(batches).__name__}")
        self._follow_weights()
        statistics = Statistics(self._program, self.config.window)
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            for batch in batches:
                args = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
                if self.config.dtype is not None:
                    args = _cast(args, self.config.dtype)
                rows = _batch_size(_leaves(args, {}))
                if not rows:
                    continue
                record = self._controller.dense_record()
                try:
                    self._run(controller.dense_plan, record, *args)
                except Exception as error:
                    raise ValueError(
                        f"calibrate: expected batches that the model accepts, got {describe(args)}, "
                        f"which ends in {type(error).__name__}: {error}"
                    ) from error
                statistics.add(record, rows)
        if statistics.rows == 0:
            raise ValueError("calibrate: expected at least one batch with rows, got none")
        controller.calibrated(statistics)

    def freeze(self) -> None:
        """No canaries, statistics or flips: the output is a pure function of the input."""
        self._controller.frozen = True

    def unfreeze(self) -> None:
        """Adapt again."""
        self._controller.frozen = False

    @property
    def groups(self) -> dict[str, Group]:
        """Name -> group; the name is the qualified name of its first layer in execution order."""
        return dict(self._program.groups)

    def active(self) -> dict[str, Tensor]:
        """Name -> BoolTensor ``[units]``: what is computed now."""
        return {name: mask.clone() for name, mask in self._controller.plan.active.items()}

    def usage(self) -> dict[str, UsageStats]:
        """Name -> usage statistics, each ``[units]``, full width."""
        return self._controller.usage()

    def constants(self) -> dict[str, Tensor]:
        """Read point -> ``[units]``: what stands in there for pruned units.

        A group with a single read point is keyed by its own name, others by ``group:reader``. With
        ``compensation="lstsq"`` it is the constant part of a prediction, see :meth:`mixing`.
        """
        return {name: value.constants.clone() for name, value in self._controller.plan.substitutes.items()}

    def mixing(self) -> dict[str, Tensor]:
        """Read point -> ``[units, units]``: pruned unit p reads as ``constants[p] + mixing[p] @ x``.

        Zero in the rows of active and in the columns of pruned units; empty unless
        ``compensation="lstsq"``.
        """
        plan = self._controller.plan
        return {n: s.mixing.clone() for n, s in plan.substitutes.items() if s.mixing is not None}

    def stats(self) -> dict[str, Any]:
        """Counts since the model was accelerated, as plain data.

        ``batches``, ``rows``, ``canary_rows``, ``flips``, ``active_fraction``, ``operations``
        (multiply-adds executed by lowered layers, canaries and fill included) and
        ``dense_operations`` (what dense layers would have taken), ``observing`` (whether everything
        is active because evidence is being gathered), and ``divergence`` where a guard is set.
        """
        return self._controller.summary()

    def set_active(self, name: str, mask: Tensor) -> None:
        """Force the active set of a group, exactly as given, until :meth:`release`.

        Args:
            name: a key of :attr:`groups`.
            mask: BoolTensor ``[units]``.

        Raises:
            ValueError: the group is unknown, or the mask is not as above.
        """
        group = self._group("set_active", name)
        got = (
            f"{mask.dtype} {list(mask.shape)} on {mask.device}"
            if isinstance(mask, Tensor)
            else type(mask).__name__
        )
        if (
            not isinstance(mask, Tensor)
            or mask.dtype != torch.bool
            or mask.shape != (group.units,)
            or mask.device.type != "cpu"
        ):
            raise ValueError(
                f"set_active: expected a BoolTensor [{group.units}] on the CPU for {name!r}, got {got}"
            )
        self._controller.force(name, mask)

    def release(self, name: str) -> None:
        """Give a forced group back to the policy.

        Raises:
            ValueError: the group is unknown.
        """
        self._group("release", name)
        self._controller.force(name, None)

    def _group(self, op: str, name: str) -> Group:
        group = self._program.groups.get(name)
        if group is None:
            known = ", ".join(self._program.groups) or "none"
            raise ValueError(f"{op}: expected a group out of {known}, got {name!r}")
        return group

    def on_update(self, callback: Callable[[dict[str, Tensor]], None]) -> None:
        """Call ``callback`` with every published choice: name -> BoolTensor ``[units]``.

        It runs in the thread that publishes, after the plan is in place.
        """
        if not callable(callback):
            raise ValueError(f"on_update: expected a callable, got {type(callback).__name__}")
        self._controller.callbacks.append(callback)

    def explain(self) -> str:
        """What was lowered how, and why the rest was not, layer by layer."""
        return explaining.explain(self._program, self._controller.plan, row_wise=self._row_wise)

    def materialize(self, compensate: bool = True) -> nn.Module:
        """A plain ``nn.Module`` of the compacted size, for the choice of active units now.

        Args:
            compensate: whether the constants of pruned units are kept (exactly, at convolution
                borders too); without, the result is the compact oracle.
        """
        return materializing.materialize(self._program, self._controller.plan, compensate=compensate)

    def restore(self) -> nn.Module:
        """The original dense model; its weights were never touched."""
        original: nn.Module = self.__dict__["_original"]
        return original


def _close(got: Any, expected: Any, tolerance: float) -> bool:
    """Whether two structures of tensors agree, relative to the largest value of each."""
    left, right = pytree.tree_leaves(got), pytree.tree_leaves(expected)
    if len(left) != len(right):
        return False
    for a, b in zip(left, right, strict=True):
        if not isinstance(b, Tensor):
            continue
        if not isinstance(a, Tensor) or a.shape != b.shape:
            return False
        if not b.is_floating_point():
            continue
        scale = float(b.abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0
        if not torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            return False
    return True


def _changed(dense: Any, pruned: Any) -> int:
    """Rows whose answer differs, by the first floating output."""
    for a, b in zip(pytree.tree_leaves(dense), pytree.tree_leaves(pruned), strict=True):
        if isinstance(a, Tensor) and a.is_floating_point() and a.dim() > 0:
            return changed_answers(a, b)
    return 0
