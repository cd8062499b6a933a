"""Sizes, memory and the GPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dynprune.experiments.resources import Gpu, gpu_now, memory_of, size_of


def test_size_counts_buffers_in_the_file_only(tmp_path: object) -> None:
    model = nn.Sequential(nn.Linear(30, 40), nn.BatchNorm1d(40))
    size = size_of(model)
    assert size.parameters == 30 * 40 + 40 + 2 * 40
    assert size.bytes == 4 * size.parameters
    save_file(model.state_dict(), f"{tmp_path}/model.safetensors")
    with open(f"{tmp_path}/model.safetensors", "rb") as file:
        assert size.file_bytes == len(file.read())


def test_memory_of_a_call() -> None:
    held = []

    def call() -> None:
        held.append(torch.ones(64 * 2**20 // 4))
        held.clear()

    memory = memory_of(call)
    assert memory.rise >= 30 * 2**20
    assert memory.peak > memory.rise


def test_memory_of_a_call_that_fails() -> None:
    with pytest.raises(ZeroDivisionError):
        memory_of(lambda: 1 / 0)


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_now() is None


def test_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SimpleNamespace(
        NVMLError=OSError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: f"handle {index}",
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=73),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=2**30),
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "some GPU")
    assert gpu_now() == Gpu("some GPU", 73, 2**30)

    def unwilling() -> None:
        raise OSError("driver not loaded")

    monkeypatch.setattr(driver, "nvmlInit", unwilling)
    assert gpu_now() is None
