"""The Triton kernels of ``sparse_input_linear``, and which backend serves."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from dynprune.ops import backends, packing, reference
from dynprune.ops.triton.sparse_input import sparse_input_linear
from tests.ops.cases import seeded
from tests.ops.tolerance import assert_close, assert_usage_close


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("rows", "depth", "units", "threshold"),
    [(1, 100, 75, 0.0), (8, 33, 64, 0.3), (3, 5, 130, 0.0), (2, 0, 7, 0.0), (1, 70, 0, 0.0)],
    ids=str,
)
def test_sparse_input(
    device: str, rows: int, depth: int, units: int, threshold: float, dtype: torch.dtype
) -> None:
    if dtype == torch.bfloat16 and device == "cpu":
        pytest.skip("the interpreter's products of bfloat16 are wrong")
    g = seeded(f"{rows}{units}")
    x = torch.relu(torch.randn(rows, depth, generator=g)).to(dtype)
    weight = (torch.randn(units, depth, generator=g) / max(1, depth) ** 0.5).to(dtype)
    bias = torch.randn(units, generator=g)
    usage, expected_usage = (torch.zeros(4, units, dtype=torch.float64) for _ in range(2))
    needed = (x.abs() > threshold).any(0)
    expected = reference.linear(
        torch.where(needed, x, 0).double(),
        weight.double(),
        bias.double(),
        activation="relu",
        usage=expected_usage,
    )
    on_device = usage.to(device)
    actual = sparse_input_linear(
        x.to(device), packing.pack_plain(weight).to(device), bias.to(device),
        threshold=threshold, activation="relu", usage=on_device,
    )  # fmt: skip
    assert_close(actual.cpu(), expected)
    assert_usage_close(on_device.cpu(), expected_usage)


def test_weights_of_inputs_that_no_row_needs_are_not_read(device: str) -> None:
    x = torch.tensor([[0.0, 1.0, 0.0], [0.0, 2.0, 0.0]], device=device)
    weight = torch.full((9, 3), float("nan"))
    weight[:, 1] = 3.0
    y = sparse_input_linear(x, packing.pack_plain(weight).to(device), torch.zeros(9, device=device))
    assert y.tolist() == [[3.0] * 9, [6.0] * 9]


def test_nan_is_needed(device: str) -> None:
    x = torch.tensor([[0.0, float("nan"), 0.0]], device=device)
    y = sparse_input_linear(x, packing.pack_plain(torch.ones(9, 3)).to(device), torch.zeros(9, device=device))
    assert y.isnan().all()


def test_counts_of_sparse_inputs(device: str) -> None:
    g = seeded("counts")
    x, weight, bias = (
        torch.randn(3, 64, generator=g),
        torch.randn(48, 64, generator=g),
        torch.randn(48, generator=g),
    )
    x[:, 32:] = float("nan")
    counts = {n: torch.tensor([v], dtype=torch.int32) for n, v in (("unit_count", 16), ("depth_count", 32))}
    there = {n: c.to(device) for n, c in counts.items()}
    packed = packing.pack_plain(weight).to(device)
    y = sparse_input_linear(x.to(device), packed, bias.to(device), **there)
    expected = reference.linear(x.double(), weight.double(), bias.double(), **counts)
    assert_close(y.cpu()[:, :16], expected[:, :16])


SCRIPT = (
    "import json, torch, dynprune; from dynprune.ops import backends, on_cuda;"
    "print(json.dumps([dynprune.info()['backends']['triton'], on_cuda, backends.has_kernel('lstm')]))"
)


@pytest.mark.parametrize("choice", ["triton", "cuda", "rocm"])
def test_the_environment_chooses(choice: str) -> None:
    environment = {**os.environ, backends.CHOICE: choice}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    if choice == "rocm":
        assert "DYNPRUNE_BACKEND: expected cuda or triton, got rocm" in done.stderr
        return
    info, serving, has_lstm = json.loads(done.stdout)
    assert info["available"] == (choice == "triton") == ("triton" in serving.values())
    if choice == "triton":
        assert has_lstm
        assert serving["linear"] == serving["lstm"] == "triton"
        assert serving["max_pool2d"] in ("torch", "cuda")


def test_an_old_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.5.1")
    assert backends.why_no_triton() == "triton 3.5.1 is older than 3.6"
