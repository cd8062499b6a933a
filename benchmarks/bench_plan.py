"""Building a plan on one core, and the memory it holds, on models of a million weights and more."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

import dynprune
from benchmarks.common import Times, contestants, cpu_only, measure
from benchmarks.models import MODELS, Model, mlp
from dynprune.lowering.ir import LayerSite
from dynprune.plan.build import PlanBuilder
from dynprune.plan.plan import Plan

WIDE = Model("mlp-2048", lambda: mlp(1024, 2048, 2048, 1000), lambda batch: torch.randn(batch, 1024))
LARGE = {model.name: model for model in (WIDE, *MODELS) if model.name in ("mlp-2048", "vgg16-bn")}


def half_of(groups: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """A random half of the units of each group."""
    g = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(group.units, generator=g).argsort() < group.units // 2
        for name, group in groups.items()
    }


@lru_cache(maxsize=1)
def accelerated(model: str) -> dynprune.AcceleratedModel:
    """With constants for every unit, as after calibration: they are folded into each new plan."""
    dense, x = LARGE[model].make(8)
    fast = dynprune.accelerate(dense, x)
    fast.calibrate([x])
    return fast


class Rebuild:
    """Builds one plan after the other, of two choices in turn; each replaces the one before."""

    def __init__(self, fast: dynprune.AcceleratedModel, changed: Iterable[str]) -> None:
        self.program, self.controller = fast._program, fast._controller
        self.builder = PlanBuilder(self.program)
        start, other = (half_of(fast.groups, seed) for seed in (0, 1))
        self.choices = itertools.cycle([{**start, **{name: other[name] for name in changed}}, start])
        self.plan = self.builder.build(start, self.controller.substitutes(start))

    def __call__(self) -> Tensor:
        active = next(self.choices)
        self.plan = self.builder.build(active, self.controller.substitutes(active), self.plan)
        return torch.empty(0)

    def weights(self) -> tuple[int, int]:
        """Weights that the next build reads, and those it packs.

        It reads the active rows whole: what is not packed of them is worth a constant.
        """
        before = self.plan
        self()
        read = packed = 0
        for site, old, new in zip(self.program.sites, before.entries, self.plan.entries, strict=True):
            if old is not new and isinstance(site, LayerSite):
                active = self.plan.active[site.group].sum() if site.group else site.units
                read += int(active) * site.module.weight[0].numel()
                packed += packed_weights(site, new)
        return read, packed


def packed_weights(site: Any, entry: Any) -> int:
    """Weights of an entry, without the padding of its layout."""
    if not isinstance(site, LayerSite):
        return 0
    return int(entry.macs)  # per row of a linear layer, or per output pixel: once per weight


@pytest.fixture
def _one_core() -> Iterator[None]:
    cpu_only()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contestants("ours", "set-active")
@pytest.mark.parametrize("changed", ["one group", "all groups"])
@pytest.mark.parametrize("model", LARGE)
@pytest.mark.usefixtures("_one_core")
def bench_plan(benchmark: Any, model: str, changed: str, contestant: str) -> None:
    fast = accelerated(model)
    largest = max(fast.groups, key=lambda name: fast.groups[name].units)
    names = list(fast.groups) if changed == "all groups" else [largest]
    rebuild = Rebuild(fast, names)
    read, packed = rebuild.weights()
    runs: dict[str, Any] = {"ours": rebuild}
    if len(names) == 1:  # set_active takes one group, and publishes
        choices = itertools.cycle(half_of(fast.groups, seed)[names[0]] for seed in (0, 1))

        def set_active() -> Tensor:
            fast.set_active(names[0], next(choices))
            return torch.empty(0)

        runs["set-active"] = set_active

    def figures(times: Times) -> dict[str, float]:
        each = times["ours"] * 1e9
        return {"ms per million weights": each / read, "ms per million packed": each / packed}

    measure(benchmark, "plan", f"{model}, {changed}", contestant, runs, figures, alike=[])


def bytes_held(plans: Iterable[Plan], shared: Iterable[Tensor]) -> int:
    """Bytes of the tensors in the entries of ``plans``, each storage once, without those of the model."""
    storages = {}
    for plan in plans:
        for entry in plan.entries:
            for name in entry.__slots__:
                value = getattr(entry, name)
                if isinstance(value, Tensor):
                    storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    for tensor in shared:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


@pytest.mark.parametrize("percent", [100, 50, 25])
@pytest.mark.parametrize("model", LARGE)
def bench_memory(benchmark: Any, model: str, percent: int) -> None:
    """Beside the dense weights, which are the model's own: the plan, and with it the dense plan kept."""
    fast = accelerated(model)
    g = torch.Generator().manual_seed(0)
    for name, group in fast.groups.items():
        chosen = torch.rand(group.units, generator=g).argsort() < round(group.units * percent / 100)
        fast.set_active(name, chosen)
    controller, program = fast._controller, fast._program
    weights = sum(packed_weights(*pair) for pair in zip(program.sites, controller.plan.entries, strict=True))
    shared = list(fast.dense.parameters())
    held = bytes_held([controller.plan], shared)
    both = bytes_held([controller.plan, controller.dense_plan], shared)
    figures = {"plan / active weights": held / (4 * weights), "with the dense plan": both / (4 * weights)}
    benchmark.extra_info.update(suite="memory", case=f"{model}-{percent}%", medians={}, figures=figures)
    x = LARGE[model].inputs(1)
    with torch.inference_mode():
        benchmark(fast, x)
