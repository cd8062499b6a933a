"""What is asked of PyTorch about a device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dynprune.ops.devices import tf32_allowed
from dynprune.ops.triton import common


@pytest.fixture
def _precisions_restored() -> Iterator[None]:
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    before = [each.fp32_precision for each in settings]
    yield
    for each, value in zip(settings, before, strict=True):
        each.fp32_precision = value


@pytest.mark.usefixtures("_precisions_restored")
@pytest.mark.parametrize("allowed", ["linear", "conv2d", "lstm"])
def test_each_op_follows_its_own_setting(allowed: str) -> None:
    backends = torch.backends
    settings = {"linear": backends.cuda.matmul, "conv2d": backends.cudnn.conv, "lstm": backends.cudnn.rnn}
    for op, setting in settings.items():
        setting.fp32_precision = "tf32" if op == allowed else "ieee"
    assert {op for op in settings if tf32_allowed(op)} == {allowed}
    assert {op for op in settings if common.precision(op) == "tf32"} == {allowed}
