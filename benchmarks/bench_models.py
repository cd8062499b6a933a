"""Whole models on forced active sets, against the dense model and the compact oracle, eager and compiled.

Images run in both memory formats, and the faster one counts. Nothing stands in for pruned units
(``compensation="none"``), so that ours and the compact oracle compute the same. "torch-pruning" has about
the same number of units, but others.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dynprune
from benchmarks import rivals
from benchmarks.common import Run, Times, contestants, device, measure
from benchmarks.models import MODELS, Model

DENSE = ("dense-eager", "dense-eager-channels-last", "dense-compiled")
COMPACT = (
    "compact-eager", "compact-eager-channels-last", "compact-compiled",
    *(f"compact-{name}" for name in rivals.PEERS),
)  # fmt: skip
PERCENT = (100, 50, 45, 25)  # 45% of the usual widths is never a multiple of 16


@dataclass(frozen=True)
class Case:
    model: Model
    batch: int
    percent: int

    @property
    def name(self) -> str:
        return f"{self.model.name}-b{self.batch}-{self.percent}%"


CASES = [Case(model, batch, percent) for model in MODELS for batch in (1, 64) for percent in PERCENT]


def eager(name: str, module: nn.Module, x: Tensor) -> dict[str, Run]:
    """``module`` as it is, and for images in channels last too."""
    runs: dict[str, Run] = {name: lambda: module(x)}
    if x.dim() == 4:
        last, x_last = (t.to(memory_format=torch.channels_last) for t in (copy.deepcopy(module), x))  # type: ignore[attr-defined]
        runs[f"{name}-channels-last"] = lambda: last(x_last)
    return runs


@lru_cache(maxsize=1)  # the cases of a model and batch follow each other, and share what is dense
def dense_of(model: Model, batch: int, compiling: bool) -> tuple[nn.Module, Tensor, Any, dict[str, Run]]:
    dense, x = model.make(batch)
    dense, x = dense.to(device()), x.to(device())
    fast = dynprune.accelerate(dense, x, dynprune.Config(compensation="none"))
    runs = eager("dense-eager", dense, x)
    if compiling:
        runs["dense-compiled"] = rivals.compiled(dense, x)
    return dense, x, fast, runs


@lru_cache(maxsize=1)
def runs_of(case: Case, compiling: bool, peers: bool) -> dict[str, Run]:
    dense, x, fast, dense_runs = dense_of(case.model, case.batch, compiling)
    if case.percent < 100 and not fast.groups:
        return {}
    g = torch.Generator().manual_seed(0)
    for name, group in fast.groups.items():
        active = torch.randperm(group.units, generator=g)[: round(group.units * case.percent / 100)]
        fast.set_active(name, torch.zeros(group.units, dtype=torch.bool).index_fill_(0, active, True))
    compact = fast.materialize(compensate=False)
    fast.freeze()

    def adapting() -> Tensor:
        fast.unfreeze()
        y: Tensor = fast(x)
        fast.freeze()
        return y

    runs = {"ours": lambda: fast(x), "ours-adapting": adapting, **dense_runs}
    if x.is_cuda:
        runs["ours-graph"] = partial(fast.capture(x), x)
    runs.update(eager("compact-eager", compact, x))
    if compiling:
        runs["compact-compiled"] = rivals.compiled(compact, x)
    if peers:
        runs.update({f"compact-{name}": run for name, run in rivals.peers(compact, x).items()})
        if rivals.installed("torch_pruning") and x.is_floating_point():
            small = rivals.torch_pruning(dense, x, case.percent / 100)
            runs.update(eager("torch-pruning-eager", small, x))
    return runs


def figures_of(percent: int) -> Any:
    def figures(times: Times) -> dict[str, float]:
        def fastest(start: str) -> float:
            return min(value for name, value in times.items() if name.startswith(start))

        ours, dense = times["ours"], fastest("dense-eager")
        values = {"compact eager / ours": fastest("compact-eager") / ours, "dense eager / ours": dense / ours}
        if "ours-graph" in times:
            values["dense eager / ours in a graph"] = dense / times["ours-graph"]
        if "compact-compiled" in times:
            values["compact compiled / ours"] = times["compact-compiled"] / ours
            values["dense compiled / ours"] = times["dense-compiled"] / ours
        peers = [times[f"compact-{name}"] for name in rivals.PEERS if f"compact-{name}" in times]
        if peers:
            values["compact peers / ours"] = min(peers) / ours
        if percent == 100:
            values["ours / dense eager, all active"] = ours / dense
        return values

    return figures


@contestants(
    "ours",
    "ours-adapting",
    "ours-graph",
    *DENSE,
    *COMPACT,
    "torch-pruning-eager",
    "torch-pruning-eager-channels-last",
)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def bench_models(request: pytest.FixtureRequest, benchmark: Any, case: Case, contestant: str) -> None:
    timed = not benchmark.disabled
    if not timed and contestant != "ours":
        pytest.skip("ours is checked against the others; only timing runs each of them")
    on_cpu = device().type == "cpu"
    compiling = timed and not request.config.getoption("--no-compile") and on_cpu and rivals.can_compile()
    # Canary rows of an adapting model run dense: its results are compared where all units are active.
    alike = [
        ("ours", "ours-graph", *COMPACT),
        DENSE,
        *[("ours", "ours-adapting", *DENSE)] * (case.percent == 100),
    ]
    runs = runs_of(case, compiling, peers=timed and on_cpu)
    measure(benchmark, "models", case.name, contestant, runs, figures_of(case.percent), alike)
