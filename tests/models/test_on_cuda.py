"""Accelerated models on a GPU against the masked dense model, as they serve and captured."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import dynprune
from tests.models.architectures import ARCHITECTURES, build
from tests.models.masked import masked_dense
from tests.models.test_architectures import choices, error
from tests.models.test_exactness import frozen
from tests.models.traffic import Traffic, two_halves

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
TOLERANCE = 1e-4  # the order of sums differs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_forced_sets(name: str) -> None:
    case = build(name)
    there = tuple(v.cuda() for v in case.inputs)
    fast = frozen(copy.deepcopy(case.model).cuda(), *there)
    captured = None if fast._program.has_lengths else fast.capture(there)
    for _ in choices(fast):
        expected = masked_dense(case.model, fast, case.readers(), *case.inputs)
        for run in filter(None, (fast, captured)):
            assert error(torch.utils._pytree.tree_map(Tensor.cpu, run(*there)), expected) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half(dtype: torch.dtype) -> None:
    case = build("ResNet-18, small")
    model, there = copy.deepcopy(case.model).cuda().to(dtype), tuple(v.cuda().to(dtype) for v in case.inputs)
    fast = frozen(model, *there)
    for group, found in fast.groups.items():
        fast.set_active(group, torch.arange(found.units) % 3 > 0)
    expected = masked_dense(case.model, fast, case.readers(), *case.inputs)
    assert error(fast(*there).float().cpu(), expected) <= 3e-2
    assert error(fast.capture(there)(*there).float().cpu(), expected) <= 3e-2


@pytest.mark.parametrize("capturing", [False, True], ids=["eager", "captured"])
def test_adapting_without_waiting(capturing: bool) -> None:
    traffic = Traffic()
    config = dynprune.Config(evidence=256, canary_interval=16, drift_interval=4)
    fast = dynprune.accelerate(two_halves().cuda(), torch.randn(2, 16).cuda(), config)
    run = fast.capture(torch.randn(64, 16).cuda()) if capturing else fast
    batches = [traffic.low(64).cuda() for _ in range(60)] + [traffic.high(64).cuda() for _ in range(60)]
    run(batches[0])  # compiles and loads what is needed
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        answers = [run(x) for x in batches]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    fast.wait()
    assert fast.stats()["flips"] > 0
    dense = fast.restore()
    for x, answer in zip(batches[-20:], answers[-20:], strict=True):
        # The right half is active by now, and the other one is constant.
        assert error(answer.cpu(), dense(x).detach().cpu()) <= 1e-3


def test_streams() -> None:
    """A plan that one stream has written serves on another."""
    fast = dynprune.accelerate(two_halves().cuda(), torch.randn(2, 16).cuda())
    fast.calibrate([Traffic().low(512).cuda()])
    fast.freeze()
    x = torch.randn(64, 16).cuda()
    for keep in (3, 5, 2):
        with torch.cuda.stream(torch.cuda.Stream()):
            fast.set_active("0", torch.arange(64) % keep == 0)
        torch.cuda.synchronize()
        expected = fast(x)
        with torch.cuda.stream(torch.cuda.Stream()):
            got = fast(x)
        torch.cuda.synchronize()
        assert torch.equal(got, expected)


def test_a_capture_of_ones_own_is_refused() -> None:
    fast = dynprune.accelerate(two_halves().cuda(), torch.randn(2, 16).cuda())
    x, graph = torch.randn(4, 16).cuda(), torch.cuda.CUDAGraph()
    with pytest.raises(NotImplementedError, match="capture\\(\\) makes a graph"), torch.cuda.graph(graph):
        fast(x)
