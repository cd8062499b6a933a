"""Threads (``--bench-threads``, or DYNPRUNE_BENCH_THREADS, or 1), denormals and device of the benchmarks.

``--no-compile`` leaves out the contestants that need torch.compile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks import common


def pytest_addoption(parser: pytest.Parser) -> None:
    threads = int(os.environ.get(common.THREADS_VARIABLE, "1"))
    parser.addoption("--bench-threads", type=int, default=threads, help="threads torch may use in benchmarks")
    parser.addoption("--bench-device", default="cpu", help="what benchmarks measure on: cpu or cuda")
    parser.addoption("--no-compile", action="store_true", help="leave torch.compile out of benchmarks")


@pytest.fixture(autouse=True, scope="package")
def _machine(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    config = request.config
    common.set_up(config.getoption("--bench-threads"), config.getoption("--bench-device"))
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["dynprune"] = common.machine(config.getoption("--bench-threads"))
