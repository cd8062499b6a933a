"""Models on a GPU that is only pretended: tensors without values, of which nothing can be read.

Whatever would wait for the device, such as ``.item()``, a condition or ``nonzero``, raises here, and so does
an op on tensors of two devices. So the way that a request takes is walked through without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import dynprune
from dynprune import capture, ops
from dynprune.control.criteria import GroupView
from dynprune.ops import devices
from dynprune.serving import Server
from tests.models.architectures import ARCHITECTURES, build


class OnThePretendedDevice(TorchDispatchMode):
    """Makes new tensors "on cuda" ones without values; a tensor of the host gets there by an upload only."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "cuda":
            return func(*args, **kwargs)
        values = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        assert all(v.device.type == "cuda" for v in values), f"{func} sends a tensor and waits for it"
        with self.mode:
            return func(*args, **kwargs)


class WithoutGuard(TorchFunctionMode):
    """A few methods by the ops behind them: they ask for a driver by themselves."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not (args and isinstance(args[0], FakeTensor)):
            return func(*args, **kwargs)
        if func is Tensor.__getitem__:
            return indexed(*args)
        if func is Tensor.__setitem__:
            value = args[2] if isinstance(args[2], Tensor) else torch.full_like(indexed(*args[:2]), args[2])
            return torch.ops.aten.copy_(indexed(*args[:2]), value)
        if func is torch._VF._pack_padded_sequence:
            return packed_shape(*args)
        if func is torch._VF._pad_packed_sequence:
            return padded_shape(*args)
        if func is Tensor.copy_:
            return torch.ops.aten.copy_(*args, **kwargs)
        if func is Tensor.contiguous:
            layout = kwargs.get("memory_format", torch.contiguous_format)
            x = args[0]
            return x if x.is_contiguous(memory_format=layout) else x.clone(memory_format=layout)
        if func in (Tensor.index_copy, Tensor.index_copy_):
            assert args[0].device == args[2].device == args[3].device
            return args[0] if func is Tensor.index_copy_ else args[0].clone()
        return func(*args, **kwargs)


def indexed(x: Tensor, key: Any) -> Tensor:
    """``x[key]`` of numbers, slices, None, ... and tensors."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in [k for k in keys if not isinstance(k, Tensor)]:
        at = next(i for i, k in enumerate(keys) if k is Ellipsis)
        given = sum(k is not None for k in keys) - 1
        keys[at : at + 1] = [slice(None)] * (x.dim() - given)
    lists: list[Tensor | None] = []
    for k in keys:
        dim = len(lists)
        if k is None:
            x, k = x.unsqueeze(dim), slice(None)
        if isinstance(k, int):
            x = x.select(dim, k)
            continue
        if isinstance(k, slice):
            begin, end, step = k.indices(x.shape[dim])
            x = torch.ops.aten.slice.Tensor(x, dim, begin, end, step)
        lists.append(k if isinstance(k, Tensor) else None)
    if any(k is not None for k in lists):
        x = torch.ops.aten.index.Tensor(x, lists)
    return x


class Passed:
    """An event on a device that is always done."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class Pretended:
    """A GPU without values."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode()
        self.uploads = self.downloads = 0

    def tensor(self, t: Tensor) -> Tensor:
        with self.mode:
            return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")

    def send(self, t: Tensor, device: torch.device) -> Tensor:
        assert device.type == "cuda"
        self.uploads += 1
        return self.tensor(t)

    def receive(self, t: Tensor) -> Tensor:
        """Something for the host to read: every unit was used."""
        self.downloads += 1
        return torch.linspace(1.0, 2.0, t.numel()).to(t.dtype).view(t.shape)

    def model(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(self.tensor(parameter), requires_grad=False)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = self.tensor(buffer)
        return model

    def inputs(self, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(self.tensor(v) for v in values)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretended]:
    pretended = Pretended()
    monkeypatch.setattr(devices, "_send", pretended.send)
    monkeypatch.setattr(devices, "_receive", pretended.receive)
    monkeypatch.setattr(devices, "_stream", lambda device: "the only stream")
    monkeypatch.setattr(devices, "mark", lambda device: Passed())
    monkeypatch.setattr(ops, "on_cuda", dict.fromkeys(("linear", "conv2d", "lstm", "gather_into"), "cuda"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(nn.LSTM, "forward", lstm_shapes)

    def assume_rows(self: Server, *args: Any, **kwargs: Any) -> None:
        self.row_wise = True

    # What happens once, before the first request, may wait.
    monkeypatch.setattr(Server, "check", assume_rows)
    monkeypatch.setattr("dynprune.plan.build.fetch", pretended.receive)
    with WithoutGuard(), OnThePretendedDevice(pretended.mode):
        yield pretended


def lstm_shapes(self: nn.LSTM, x: Any, states: Any = None) -> Any:
    """What ``nn.LSTM`` returns, whose own way asks for a driver."""
    if isinstance(x, PackedSequence):
        y, (h, c) = lstm_shapes(self, x.data.unsqueeze(0 if self.batch_first else 1))
        batch = int(x.batch_sizes[0])
        h, c = (s.expand(-1, batch, -1) for s in (h, c))
        return PackedSequence(y.squeeze(0 if self.batch_first else 1), x.batch_sizes), (h, c)
    ways, batch = 2 if self.bidirectional else 1, x.shape[0 if self.batch_first else 1]
    state = x.new_zeros(ways * self.num_layers, batch, self.hidden_size)
    return x.new_zeros(*x.shape[:2], ways * self.hidden_size), (state, state.clone())


def packed_shape(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """What ``torch._VF._pack_padded_sequence`` returns."""
    assert lengths.device.type == "cpu" and x.shape[0 if batch_first else 1] == len(lengths)
    batch_sizes = (lengths[None, :] > torch.arange(int(lengths[0]))[:, None]).sum(1)
    return x.new_zeros(int(lengths.sum()), x.shape[2]), batch_sizes


def padded_shape(
    x: Tensor, batch_sizes: Tensor, batch_first: bool, padding: float, steps: int
) -> tuple[Tensor, Tensor]:
    """What ``torch._VF._pad_packed_sequence`` returns."""
    batch = int(batch_sizes[0])
    y = x.new_zeros(*((batch, len(batch_sizes)) if batch_first else (len(batch_sizes), batch)), x.shape[1])
    return y, (batch_sizes[:, None] > torch.arange(batch)).sum(0)


# What PyTorch itself computes of these asks for a driver on the way.
NOT_PRETENDED = {"PyTorch's encoder and decoder"}
PRETENDED = [name for name in ARCHITECTURES if name not in NOT_PRETENDED]


class Turns:
    """A criterion that wants other units at each decision."""

    def __init__(self) -> None:
        self.turn = 0

    def __call__(self, view: GroupView) -> Tensor:
        self.turn += 1
        return ((torch.arange(len(view.usage.mean)) + self.turn) % 7) / 6


def accelerated(
    gpu: Pretended, name: str, **config: Any
) -> tuple[dynprune.AcceleratedModel, tuple[Tensor, ...]]:
    case = build(name)
    rows = [torch.cat([x] * -(-32 // len(x)))[:32] for x in case.inputs]
    inputs = gpu.inputs(tuple(rows))
    limits = {"evidence": 64, "drift_threshold": float("inf"), "dwell": 0, "min_active": 1}
    often = {"criterion": Turns(), "prune_threshold": 0.4, "reactivate_threshold": 0.6, "canary_interval": 3}
    config = dynprune.Config(**{**limits, **often, **config})
    return dynprune.accelerate(gpu.model(case.model), inputs, config), inputs


@pytest.mark.parametrize("name", PRETENDED)
def test_serving(gpu: Pretended, name: str) -> None:
    fast, inputs = accelerated(gpu, name)
    for _ in range(14):
        output = fast(*inputs)
    assert all(t.device.type == "cuda" for t in pytree.tree_leaves(output))
    stats = fast.stats()
    assert stats["canary_rows"] > 0
    assert stats["flips"] > 0
    assert 0 < stats["active_fraction"] < 1


class Packed(nn.Module):
    """Sequences with lengths of their own, read by an LSTM that is given its first states."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.lstm = nn.LSTM(6, 16, bidirectional=True, batch_first=batch_first)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor, lengths: Tensor, h: Tensor, c: Tensor) -> Tensor:
        packed = pack_padded_sequence(x if self.batch_first else x.transpose(0, 1), lengths, self.batch_first)
        _, (last, _) = self.lstm(packed, (h.transpose(0, 1), c.transpose(0, 1)))
        return self.head(torch.cat([last[0], last[1]], 1))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("size", ["small", "large"])
def test_packed_sequences(
    gpu: Pretended, batch_first: bool, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size == "large":  # canary rows run on PyTorch's own LSTM
        monkeypatch.setattr("dynprune.control.controller._SMALL_MODEL", 0)
    lengths = torch.arange(32, 0, -1) // 4 + 1
    states = torch.zeros(32, 2, 16)
    there = gpu.inputs((torch.zeros(32, 9, 6), states, states))
    inputs = (there[0], lengths, *there[1:])
    limits = {"evidence": 64, "drift_threshold": float("inf"), "dwell": 0, "min_active": 1}
    config = dynprune.Config(
        criterion=Turns(), prune_threshold=0.4, reactivate_threshold=0.6, canary_interval=3, **limits
    )
    fast = dynprune.accelerate(gpu.model(Packed(batch_first)), inputs, config)
    for _ in range(14):
        assert fast(*inputs).device.type == "cuda"
    assert fast.stats()["canary_rows"] > 0
    assert fast.stats()["flips"] > 0


@pytest.mark.parametrize("compensation", ["lstsq", "none", "auto"])
def test_compensations(gpu: Pretended, compensation: str) -> None:
    fast, inputs = accelerated(gpu, "ResNet-18, small", compensation=compensation)
    for _ in range(14):
        fast(*inputs)
    assert fast.stats()["flips"] > 0


def test_drift_and_callbacks(gpu: Pretended) -> None:
    fast, inputs = accelerated(gpu, "inception", drift_threshold=4.0)
    chosen: list[dict[str, Tensor]] = []
    fast.on_update(chosen.append)
    for _ in range(60):
        fast(*inputs)
    assert len(chosen) > 0


@pytest.mark.parametrize("name", [name for name in PRETENDED if name != "U-Net"])
def test_captured(gpu: Pretended, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, inputs = accelerated(gpu, name)
    if fast._program.has_lengths:
        pytest.skip("packed sequences")
    graph = capture.Graph
    monkeypatch.setattr(capture, "Graph", lambda run, record, device: graph(run, record, torch.device("cpu")))
    captured = fast.capture(inputs)
    addresses = [id(t) for entry in captured._plan.entries for t in tensors(entry)]
    for _ in range(14):
        captured(*inputs)
    assert fast.stats()["flips"] > 0
    for group, found in fast.groups.items():
        fast.set_active(group, torch.arange(found.units) % 3 == 0)
        captured(*inputs)
    assert addresses == [id(t) for entry in captured._plan.entries for t in tensors(entry)]


def tensors(entry: Any) -> list[Tensor]:
    from dynprune.plan.entries import tensors_of

    return tensors_of(entry.run)


def test_a_guard_waits(gpu: Pretended) -> None:
    fast, inputs = accelerated(gpu, "residual sums of identities", max_divergence=0.01)
    for _ in range(2):  # observing, everything is dense
        fast(*inputs)
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        fast(*inputs)
