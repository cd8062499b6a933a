"""What a model takes besides time: memory, bytes on disk, and the GPU if there is one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from safetensors.torch import save
from torch import nn

SAMPLE_SECONDS = 0.002


@dataclass(frozen=True)
class Size:
    """``parameters``: their number; ``bytes``: what they take; ``file_bytes``: as a safetensors file."""

    parameters: int
    bytes: int
    file_bytes: int


def size_of(model: nn.Module) -> Size:
    """The size of ``model``; its file also holds the buffers."""
    parameters = list(model.parameters())
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    return Size(
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        len(save(tensors)),
    )


@dataclass(frozen=True)
class Memory:
    """Bytes of memory the whole process holds: the ``peak`` of a call, and the ``rise`` above its start."""

    peak: int
    rise: int


def memory_of(call: Callable[[], object]) -> Memory:
    """The memory of the process while ``call`` runs, sampled every 2 ms."""
    process = psutil.Process()
    before = process.memory_info().rss
    seen = [before]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    seen.append(process.memory_info().rss)
    return Memory(max(seen), max(seen) - before)


@dataclass(frozen=True)
class Gpu:
    """One moment of the GPU: ``percent`` of the last second it was busy, ``memory`` bytes in use."""

    name: str
    percent: int
    memory: int


def gpu_now() -> Gpu | None:
    """The first GPU; None where torch uses none or the driver does not answer."""
    if not torch.cuda.is_available():
        return None
    import pynvml  # of nvidia-ml-py

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        return Gpu(
            torch.cuda.get_device_name(),
            int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            int(pynvml.nvmlDeviceGetMemoryInfo(handle).used),
        )
    except pynvml.NVMLError:
        return None
