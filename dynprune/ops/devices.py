"""Tensors between the host and a GPU, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(t: Tensor, device: torch.device) -> Tensor:
    """``t`` of the host on ``device``, in the order of the current stream; the host goes on at once."""
    return t if device.type == "cpu" else _send(t, device)


def _send(t: Tensor, device: torch.device) -> Tensor:
    return t.pin_memory().to(device, non_blocking=True)


def tf32_allowed(op: str) -> bool:
    """Whether PyTorch lets products of float32 in "linear", "conv2d" or "lstm" be taken in tf32 on a GPU.

    What an LSTM has PyTorch multiply for it, such as the inputs of all steps, follows "linear".
    """
    backends = torch.backends
    convolutions = backends.cudnn.conv  # type: ignore[attr-defined]  # not in its module, but set on it
    of = {"linear": backends.cuda.matmul, "conv2d": convolutions, "lstm": backends.cudnn.rnn}
    return bool(of[op].fp32_precision == "tf32")


def fetch(t: Tensor) -> Tensor:
    """``t`` on the host; waits for everything before it on the current stream."""
    return t if t.device.type == "cpu" else t.cpu()


class Download:
    """Tensors of a device on their way to the host.

    Those of one dtype go in one piece: a layer's usage is some hundred bytes, and each copy takes
    microseconds to start.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._shapes = [(t.dtype, t.shape) for t in tensors]
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for t in tensors:
            by_dtype.setdefault(t.dtype, []).append(t.flatten())
        self._pieces = {dtype: _receive(torch.cat(each)) for dtype, each in by_dtype.items()}
        self._passed = mark(tensors[0].device)

    @property
    def ready(self) -> bool:
        """Whether everything has arrived; does not wait."""
        return bool(self._passed.query())  # type: ignore[no-untyped-call]

    def tensors(self) -> list[Tensor]:
        """What was sent, on the host; waits until it is there."""
        self._passed.synchronize()
        sizes: dict[torch.dtype, list[int]] = {}
        for dtype, shape in self._shapes:
            sizes.setdefault(dtype, []).append(shape.numel())
        parts = {dtype: iter(torch.split(self._pieces[dtype], n)) for dtype, n in sizes.items()}
        return [next(parts[dtype]).view(shape) for dtype, shape in self._shapes]


def _receive(t: Tensor) -> Tensor:
    return t.to("cpu", non_blocking=True)  # into pinned memory


class Ready:
    """Tensors that one stream has written and any may read.

    Args:
        tensors: all on one GPU, written by its current stream.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._device = tensors[0].device
        self._written = mark(self._device)
        self._readers = {_stream(self._device)}

    def join(self) -> None:
        """Before the current stream reads them: it waits for what wrote them, and their memory is not given
        to others before it has passed. The host does not wait."""
        stream = _stream(self._device)
        if stream in self._readers:
            return
        stream.wait_event(self._written)
        for t in self._tensors:
            t.record_stream(stream)
        self._readers = {*self._readers, stream}


def mark(device: torch.device) -> torch.cuda.Event:
    """An event behind what was asked of the current stream of ``device`` by now."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(_stream(device))
    return event


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.current_stream(device)
