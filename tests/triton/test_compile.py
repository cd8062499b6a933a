"""Every Triton kernel compiled ahead of time for the GPUs it is meant for, within a budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.triton import compile_kernels

SCRIPT = Path(compile_kernels.__file__)
MOST_REGISTERS = 208  # of 255; beside 8 warps, one program a multiprocessor at the least
MOST_SHARED = 96 * 1024  # two programs a multiprocessor where there are 200 KiB


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)

    def run(target: int) -> list[dict[str, Any]]:
        command = [sys.executable, "-W", "ignore", str(SCRIPT), str(target)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(2) as pool:
        return [kernel for found in pool.map(run, compile_kernels.TARGETS) for kernel in found]


def test_all_are_compiled_for_every_target(kernels: list[dict[str, Any]]) -> None:
    wanted = [
        (name, dtype, target)
        for target in compile_kernels.TARGETS
        for name, _, dtype, *_ in compile_kernels.variants()
    ]
    assert [(k["kernel"], k["dtype"], k["target"]) for k in kernels] == wanted
    sources = set(Path(compile_kernels.__file__).parents[2].glob("kernels/triton/*.py"))
    covered = {name.split()[0] for name, *_ in wanted} | {"__init__", "epilogue"}
    assert {path.stem for path in sources} == covered


def test_nothing_is_spilled(kernels: list[dict[str, Any]]) -> None:
    assert [k for k in kernels if k["stack"] and not k["kernel"].endswith("ones")] == []


def test_registers_and_shared_memory(kernels: list[dict[str, Any]]) -> None:
    real = [k for k in kernels if not k["kernel"].endswith("ones")]
    assert [k for k in real if k["registers"] > MOST_REGISTERS or k["shared"] > MOST_SHARED] == []
