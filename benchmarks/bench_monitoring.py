"""What watching costs: usage sums in an op, and Python and dispatch around the ops of a model."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dynprune
from benchmarks.common import (
    Run,
    Times,
    contestants,
    cpu_only,
    device,
    laid_out_conv2d,
    laid_out_linear,
    measure,
    usage_of,
)
from dynprune import ops
from dynprune.plan.lstm import packed_gates


def linear(rows: int, width: int) -> dict[str, Run]:
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, width, generator=g), torch.randn(width, width, generator=g) / width**0.5
    x, packed = x.to(device()), laid_out_linear(weight.to(device()))
    bias = torch.randn(width, generator=g).to(device())
    op = torch.ops.dynprune.linear.default
    return with_and_without(partial(op, x, packed, bias, activation="relu"), width)


def conv2d(rows: int, channels: int, size: int) -> dict[str, Run]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, channels, size, size, generator=g)
    x = x.to(device(), memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, generator=g) / (9 * channels) ** 0.5
    packed, bias = laid_out_conv2d(weight.to(device())), torch.randn(channels, generator=g).to(device())
    call = partial(torch.ops.dynprune.conv2d.default, x, packed, bias, (1, 1), (1, 1), activation="relu")
    return with_and_without(call, channels)


def lstm(rows: int, hidden: int, steps: int) -> dict[str, Run]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, steps, hidden, generator=g).to(device())
    weights, biases = [], []
    for _ in ("forward", "backward"):
        read, recurrent = torch.randn(2, 4 * hidden, hidden, generator=g) / hidden**0.5
        weights.append(packed_gates(read.to(device()), recurrent.to(device())))
        biases.append(torch.randn(1, 4, hidden, generator=g).expand(2, 4, hidden).contiguous().to(device()))
    call = partial(torch.ops.dynprune.lstm.default, x, weights, biases, batch_first=True)
    return with_and_without(lambda **usage: call(**usage)[0], 2 * hidden)


def with_and_without(call: Any, units: int) -> dict[str, Run]:
    usage = usage_of(units)
    return {"ours": lambda: call(usage=usage), "without": lambda: call()}


CASES = {
    "linear 64x512": lambda: linear(64, 512),
    "linear 64x1024": lambda: linear(64, 1024),
    "linear 256x512": lambda: linear(256, 512),
    "linear 1024x1024": lambda: linear(1024, 1024),
    "conv2d 64x32-28px": lambda: conv2d(64, 32, 28),
    "conv2d 64x64-16px": lambda: conv2d(64, 64, 16),
    "conv2d 64x128-8px": lambda: conv2d(64, 128, 8),
    "lstm h64-b64-t50": lambda: lstm(64, 64, 50),
    "lstm h128-b64-t50": lambda: lstm(64, 128, 50),
}
runs_of = lru_cache(maxsize=1)(lambda case: CASES[case]())


def share(times: Times) -> dict[str, float]:
    return {"with sums / without": times["ours"] / times["without"]}


@contestants("ours", "without")
@pytest.mark.parametrize("case", CASES)
def bench_monitoring(benchmark: Any, case: str, contestant: str) -> None:
    measure(benchmark, "monitoring", case, contestant, runs_of(case), share)


LAYERS = 8  # of a model whose layers take next to no time themselves


@lru_cache(maxsize=1)
def tiny(adapting: bool) -> dict[str, Run]:
    cpu_only()
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(LAYERS) for m in (nn.Linear(16, 16), nn.ReLU())]).eval()
    x = torch.randn(1, 16)
    fast = dynprune.accelerate(model, x, dynprune.Config(compensation="none"))
    for name in fast.groups:  # forced, so that adapting serves the same units throughout
        fast.set_active(name, torch.ones(16, dtype=torch.bool))
    if not adapting:
        fast.freeze()
    entries = [(ops.pack_linear(m.weight.detach()), m.bias.detach()) for m in model[::2]]  # type: ignore[index, union-attr]
    op = torch.ops.dynprune.linear.default

    def bare() -> Tensor:
        y = x
        for packed, bias in entries:
            y = op(y, packed, bias, activation="relu")
        return y

    return {"ours": lambda: fast(x), "ops": bare}


def dispatch(times: Times) -> dict[str, float]:
    return {"us per layer": (times["ours"] - times["ops"]) * 1e6 / LAYERS}


@contestants("ours", "ops")
@pytest.mark.parametrize("state", ["frozen", "adapting"])
def bench_dispatch(benchmark: Any, state: str, contestant: str) -> None:
    measure(benchmark, "dispatch", state, contestant, tiny(state == "adapting"), dispatch)
