"""Every instruction set of the kernels, and no kernels at all: each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dynprune.ops import native

ROOT = Path(__file__).parents[2]
RANK = ["plain", "avx2", "avx512", "amx"]
BEST = {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "plain")
if BEST == "avx512" and torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx():
    BEST = "amx"
CORE = [
    "test_isa.py::test_selected",
    "test_linear.py::test_packed",
    "test_linear.py::test_each_activation",
    "test_linear.py::test_index_lists",
    "test_sparse_input.py::test_against_reference",
    "test_sparse_input.py::test_input_major",
    "test_conv2d.py::test_packed",
    "test_conv2d.py::test_depthwise_on_some_channels",
    "test_conv2d.py::test_border_table",
    "test_conv2d.py::test_index_lists",
    "test_pack.py::test_index_lists_and_scale",
    "test_max_pool2d.py::test_equals_reference",
    "test_max_pool2d.py::test_nan_wins_and_infinity_stays",
    "test_epilogue.py",
    "test_bfloat16.py::test_linear",
    "test_bfloat16.py::test_index_lists",
    "test_bfloat16.py::test_conv2d",
    "test_bfloat16.py::test_border_table",
    "test_bfloat16.py::test_rounding_and_values_that_are_no_numbers",
]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.skipif(native is None, reason="dynprune._C is not there")
def test_selected() -> None:
    assert native.isa() == os.environ.get("DYNPRUNE_CPU_ISA", BEST)


@pytest.mark.skipif(native is None, reason="dynprune._C is not there")
@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="torch has no OpenMP")
def test_kernels_run_on_torchs_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert native.threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(native is None, reason="dynprune._C is not there")
@pytest.mark.parametrize("isa", RANK)
def test_core_cases(isa: str) -> None:
    if RANK.index(isa) > RANK.index(BEST):
        pytest.skip(f"this CPU has no {isa}")
    nodes = [f"tests/ops/{node}" for node in CORE]
    done = run("-m", "pytest", "-p", "no:cacheprovider", *nodes, DYNPRUNE_CPU_ISA=isa)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@pytest.mark.skipif(native is None, reason="dynprune._C is not there")
def test_unknown_name_is_one_clear_error() -> None:
    done = run("-c", "import dynprune", DYNPRUNE_CPU_ISA="sse9")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    expected = "expected amx, avx512, avx2 or plain, and one that this CPU has, got sse9"
    assert last == f"ValueError: DYNPRUNE_CPU_ISA: {expected}"
    assert done.stderr.count("Traceback") == 1
    assert "Warning" not in done.stderr


WITHOUT_NATIVE = """
import sys, warnings
sys.modules["dynprune._C"] = None  # importing it fails
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import dynprune
    import torch
    torch.manual_seed(0)
    x, w, b = torch.randn(5, 7), torch.randn(20, 7), torch.randn(20)
    images, kernels = torch.randn(2, 3, 6, 5), torch.randn(20, 3, 3, 3)
    rows, usage = torch.tensor([1, 4, 19]), torch.zeros(4, 3, dtype=torch.float64)
    some = torch.ops.dynprune.linear(x, w, b, indices=rows, activation="relu", usage=usage)
    packed = torch.ops.dynprune.linear(x, dynprune.ops.pack_linear(w), b)
    image = torch.ops.dynprune.conv2d(images, dynprune.ops.pack_conv2d(kernels), b, (1, 1), (1, 1))
full = torch.nn.functional.linear(x, w, b)
torch.testing.assert_close(some, full[:, rows].relu())
torch.testing.assert_close(usage[1], full[:, rows].relu().double().sum(0), rtol=1e-5, atol=1e-5)
torch.testing.assert_close(packed, full)
torch.testing.assert_close(image, torch.nn.functional.conv2d(images, kernels, b, padding=1))
assert dynprune.ops.native is None and not dynprune.info()["backends"]["cpu"]["available"]
mine = [w for w in caught if "dynprune" in str(w.message)]
print(len(mine), mine[0].category.__name__, mine[0].message)
"""


def test_without_the_extension_the_reference_serves_after_one_warning() -> None:
    done = run("-c", WITHOUT_NATIVE, DYNPRUNE_REQUIRE_NATIVE="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 RuntimeWarning dynprune: the compiled kernels could not be loaded (")
    assert "likely causes: (1)" in done.stdout


def test_without_the_extension_an_error_where_it_is_required() -> None:
    done = run("-c", WITHOUT_NATIVE, DYNPRUNE_REQUIRE_NATIVE="1")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: dynprune: the compiled kernels could not be loaded (")
