"""The accelerated model, and ``accelerate`` which makes it."""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune import explain as explaining
from dynprune import materialize as materializing
from dynprune.capture import CapturedModel
from dynprune.config import Config
from dynprune.control import state
from dynprune.control.controller import Controller
from dynprune.control.seen import Seen
from dynprune.control.statistics import Statistics
from dynprune.control.usage import UsageStats
from dynprune.lowering.analyse import analyse
from dynprune.lowering.emit import emit
from dynprune.lowering.ir import Group, Program
from dynprune.lowering.recurrent import split_lstms
from dynprune.lowering.trace import annotate_shapes, describe, share_copy, trace
from dynprune.rows import batch_size, cast, leaves_of
from dynprune.serving import Server

_version = operator.attrgetter("_version")


def accelerate(model: nn.Module, example_inputs: Any, config: Config | None = None) -> AcceleratedModel:
    """Make a model that stops computing the units its traffic does not use.

    Args:
        model: a model on the CPU or on one GPU; it is never changed, and its parameters are shared.
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
    device = _device_of(named)
    if config.dtype is None:
        dense = share_copy(model)
    else:
        dense, args = copy.deepcopy(model).eval().to(config.dtype), cast(args, config.dtype)
    traced = trace(dense, args)
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        annotate_shapes(traced, args)
        if split_lstms(traced):
            annotate_shapes(traced, args)
        expected = dense(*args)
        program = emit(analyse(traced))
        accelerated = AcceleratedModel(model, program, config, args)
        # In tf32 ours multiplies folded weights, PyTorch others, and another batch may take another kernel.
        rounded = 1e-2 if accelerated._rounds or program.takes_tf32 else 0.0
        tolerance = 1e-2 if rounded or config.dtype is not None else 1e-3
        accelerated._server.check(args, expected, tolerance=tolerance, row_tolerance=rounded)
    return accelerated


def _device_of(named: Iterable[tuple[str, Any]]) -> torch.device:
    """Where a model and its inputs are; whole numbers, such as lengths, may be on the host beside a GPU."""
    found: tuple[str, torch.device] | None = None
    for name, tensor in named:
        if not isinstance(tensor, Tensor) or (tensor.device.type == "cpu" and not tensor.is_floating_point()):
            continue
        if tensor.device.type not in ("cpu", "cuda"):
            raise ValueError(
                f"accelerate: expected a model and inputs on the CPU or a GPU, got {name} on {tensor.device}"
            )
        if found is not None and found[1] != tensor.device:
            raise ValueError(
                "accelerate: expected a model and inputs on one device, "
                f"got {found[0]} on {found[1]} and {name} on {tensor.device}"
            )
        found = name, tensor.device
    return torch.device("cpu") if found is None else found[1]


class AcceleratedModel(nn.Module):
    """A model that serves on compact layers; made by :func:`accelerate`.

    It has the signature and outputs of the original. Calls run without gradients, in eval mode, from
    any number of threads: each call takes the published plan once, at its start.
    """

    def __init__(
        self, original: nn.Module, program: Program, config: Config, example: tuple[Any, ...]
    ) -> None:
        super().__init__()
        self.config = config
        self.training = False
        self._program = program
        self._controller = Controller(program, config)
        # Not a submodule: the accelerated model's own members are the eval-mode copy's.
        self.__dict__["_original"] = original
        self._example = example
        self._shared = False
        self._loaded: dict[str, Any] | None = None  # a state to adopt once the weights are there as well
        self.dense = program.traced
        self._device = program.device
        self._server = Server(program, self._controller, config)
        tensors = itertools.chain(program.traced.parameters(), program.traced.buffers())
        dtypes = (p.dtype for p in program.traced.parameters() if p.is_floating_point())
        self._dtype = next(dtypes, config.dtype)  # what it computes in; None: as its inputs are
        self._rounds = self._dtype in (torch.bfloat16, torch.float16)
        self._tracked = [t for t in tensors if not t.is_inference()]
        self._versions = self._read_versions()

    # Serving ------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Same arguments and outputs as the original model.

        Under ``torch.autocast`` it computes, and answers, in its own dtype all the same: ``Config.dtype``
        or that of its parameters.

        Raises:
            NotImplementedError: an input requires a gradient.
        """
        if self._device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise NotImplementedError(
                "forward: expected no capture of the current stream, got one, which would keep weights that "
                "are replaced when units flip; capture() makes a graph"
            )
        if torch.is_autocast_enabled(self._device.type):
            if self._dtype is not None:
                args, kwargs = cast(args, self._dtype), cast(kwargs, self._dtype)
            with torch.autocast(self._device.type, enabled=False):
                return self(*args, **kwargs)
        if not torch.is_grad_enabled():
            return self._answer(args, kwargs)
        for value in leaves_of(args, kwargs):
            if isinstance(value, Tensor) and value.requires_grad:
                raise NotImplementedError(
                    "forward: expected inputs that need no gradient, got one that requires it; "
                    "use restore() to differentiate"
                )
        with torch.no_grad():
            return self._answer(args, kwargs)

    def _answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Serve in the dtype of the configuration, and answer in that of the arguments."""
        self._follow_weights()
        dtype = self.config.dtype
        if dtype is None:
            return self._server.serve(args, kwargs)
        floats = (v for v in leaves_of(args, kwargs) if isinstance(v, Tensor) and v.is_floating_point())
        given = next((v.dtype for v in floats), dtype)
        output = self._server.serve(cast(args, dtype), cast(kwargs, dtype))
        return cast(output, given)

    def _read_versions(self) -> int:
        return sum(map(_version, self._tracked))

    def _follow_weights(self) -> int:
        """Pack the dense weights anew if they were changed in place, and adopt a state that was loaded.

        Returns:
            A number that is another one for other weights.
        """
        if self._read_versions() == self._versions and self._loaded is None:
            return self._versions
        with self._controller.lock:
            versions = self._read_versions()
            if versions != self._versions:
                self._controller.reload_weights()
                self._versions = versions
            if self._loaded is not None:
                loaded, self._loaded = self._loaded, None
                state.load(self._controller, loaded)
            return self._versions

    # Keeping ------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Active sets, usage, constants and counts: the part of ``state_dict()`` beside the dense weights."""
        self._follow_weights()
        self._controller.wait()
        return state.save(self._controller)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Adopt them, at the next call: the weights of the same ``state_dict`` are loaded after this."""
        self._loaded = state

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module: dense weights, which the original model shares, then active sets and usage.

        Raises:
            ValueError: the active sets are those of another model.
            RuntimeError: as torch does, where weights are missing or do not fit.
        """
        result = super().load_state_dict(*args, **kwargs)
        self._follow_weights()
        return result

    def __reduce__(self) -> Any:
        """For pickle and ``copy.deepcopy``: the original is accelerated anew, and adopts the state.

        Callbacks of :meth:`on_update` stay behind.
        """
        saved = self.get_extra_state()
        return _revive, (self.restore(), self._example, self.config, saved, self._shared)

    def share_memory(self) -> AcceleratedModel:
        """Move the dense weights to shared memory, and freeze for good.

        Processes that share a model each have plans of their own; it would adapt differently in each.
        """
        super().share_memory()
        self.freeze()
        self._shared = True
        return self

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
        self._expect_own("calibrate")
        controller = self._controller
        if controller.frozen:
            raise ValueError("calibrate: expected a model that is not frozen, got a frozen one")
        if isinstance(batches, Tensor):
            batches = [batches]
        if not isinstance(batches, Iterable):
            raise ValueError(f"calibrate: expected an iterable of batches, got {type(batches).__name__}")
        self._follow_weights()
        statistics = Statistics(self._program, self.config.window)
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            if controller.dense_plan.ready is not None:
                controller.dense_plan.ready.join()
            for batch in batches:
                args = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
                if self.config.dtype is not None:
                    args = cast(args, self.config.dtype)
                rows = batch_size(leaves_of(args, {}))
                if not rows:
                    continue
                record = self._controller.dense_record()
                try:
                    self._server.run(controller.dense_plan, record, *args)
                    seen = Seen(rows, controller.plan.serial, dense=(record, rows))
                    seen.send()
                    seen.receive()
                except Exception as error:
                    raise ValueError(
                        f"calibrate: expected batches that the model accepts, got {describe(args)}, "
                        f"which ends in {type(error).__name__}: {error}"
                    ) from error
                statistics = statistics.with_record(record, rows)
        if statistics.rows == 0:
            raise ValueError("calibrate: expected at least one batch with rows, got none")
        controller.calibrated(statistics)

    def wait(self) -> None:
        """Until every answered request is taken in: by the background, and from a GPU, where there is one."""
        self._controller.wait()

    def freeze(self) -> None:
        """No canaries, statistics or flips: the output is a pure function of the input."""
        self._controller.frozen = True

    def unfreeze(self) -> None:
        """Adapt again.

        Raises:
            ValueError: the model is in shared memory.
        """
        self._expect_own("unfreeze")
        self._controller.frozen = False

    def _expect_own(self, op: str) -> None:
        if self._shared:
            raise ValueError(f"{op}: expected a model of this process alone, got one in shared memory")

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

        ``batches``, ``rows``, ``canary_rows``, ``bad_batches`` (of those that gave statistics, how many held
        NaN or infinity, which are left out), ``unread_batches`` (of which nothing was learned, because
        threads served faster than one of them learns), ``flips``, ``active_fraction``, ``operations``
        (multiply-adds executed by lowered layers, canaries included) and
        ``dense_operations`` (what dense layers would have taken), ``observing`` (whether everything
        is active because evidence is being gathered); ``divergence`` where a guard is set,
        ``output_error`` with a budget, and ``compensation``, the present one, where that is ``"auto"``.
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
        self._expect_own("set_active")
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
        self._expect_own("release")
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
        return explaining.explain(self._program, self._controller.plan, row_wise=self._server.row_wise)

    def materialize(self, compensate: bool = True) -> nn.Module:
        """A plain ``nn.Module`` of the compacted size, for the choice of active units now.

        Args:
            compensate: whether the constants of pruned units are kept (exactly, at convolution
                borders too); without, the result is the compact oracle.
        """
        if self._device.type != "cpu":
            return self._on_host().materialize(compensate).to(self._device)
        return materializing.materialize(self._program, self._controller.plan, compensate=compensate)

    def _on_host(self) -> AcceleratedModel:
        """The same model on the CPU, with the same active sets."""
        host = pytree.tree_map_only(Tensor, Tensor.cpu, self._example)
        saved = self.get_extra_state()
        return _revive(copy.deepcopy(self.restore()).cpu(), host, self.config, saved, shared=False)

    def capture(self, example_inputs: Any) -> CapturedModel:
        """A model for inputs of one size on a CUDA graph, which goes on as this one adapts.

        Every layer has room for all of its units there, so it holds the dense weights once more. On the CPU,
        where there are no graphs, it serves in the same way without.

        Args:
            example_inputs: a tensor, or a tuple of the model's positional arguments, of the sizes that are to
                be served.

        Raises:
            ValueError: the configuration compares answers call by call (a guard, a budget, ``"auto"``),
                leaves inputs out (``input_threshold``) or sets a dtype, or the model takes packed sequences.
        """
        self._expect_own("capture")
        args = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
        if self.config.dtype is not None:
            raise ValueError("capture: expected a Config without dtype, got one; convert the model instead")
        if [_kind(a) for a in args] != [_kind(a) for a in self._example]:
            expected, got = describe(self._example), describe(args)
            raise ValueError(f"capture: expected inputs like {expected}, of any batch size, got {got}")
        return CapturedModel(self._server, self._follow_weights, args)

    def restore(self) -> nn.Module:
        """The original dense model; its weights were never touched."""
        original: nn.Module = self.__dict__["_original"]
        return original


def _kind(value: Any) -> Any:
    """What an input is, but for its values and its batch size."""
    if not isinstance(value, Tensor):
        return type(value)
    return value.dtype, value.device, value.dim(), tuple(value.shape[1:])


def _revive(
    original: nn.Module, example: tuple[Any, ...], config: Config, saved: dict[str, Any], shared: bool
) -> AcceleratedModel:
    revived = accelerate(original, example, config)
    revived.set_extra_state(saved)
    revived._follow_weights()
    revived._shared = shared
    return revived
