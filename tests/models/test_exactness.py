"""Pruned models against the masked dense model in float64."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

import dynprune
from tests.models.masked import Reader, masked_dense, relative_error
from tests.models.networks import ACTIVATIONS, Case, random_network

TOLERANCE = 1e-5
SHARES = (0.0, 0.05, 0.3, 0.5, 0.8, 1.0)


def force_random_sets(fast: dynprune.AcceleratedModel, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, group in fast.groups.items():
        fast.set_active(name, torch.rand(group.units, generator=generator) < share)


def frozen(model: nn.Module, *x: Tensor, compensation: str = "mean") -> dynprune.AcceleratedModel:
    """Accelerated, with stand-ins from other traffic than the one it is tested on, frozen."""
    fast = dynprune.accelerate(model, x, dynprune.Config(compensation=compensation))
    fast.calibrate([tuple(t * 0.5 + 0.1 if t.is_floating_point() else t.roll(1) for t in x), x])
    fast.freeze()
    return fast


def expect_exact(
    fast: dynprune.AcceleratedModel, model: nn.Module, readers: list[Reader], *x: Tensor
) -> None:
    expected = masked_dense(model, fast, readers, *x)
    assert relative_error(fast(*x), expected) <= TOLERANCE
    assert relative_error(fast.materialize()(*x), expected) <= TOLERANCE
    without = masked_dense(model, fast, readers, *x, compensate=False)
    assert relative_error(fast.materialize(compensate=False)(*x), without) <= TOLERANCE


def check(case: Case, seed: int) -> None:
    fast = frozen(case.model, case.x, compensation="lstsq" if seed % 2 else "mean")
    readers = case.readers(list(fast.groups))
    chance = random.Random(seed)
    for draw in range(3):
        force_random_sets(fast, chance.choice(SHARES), seed * 10 + draw)
        expect_exact(fast, case.model, readers, case.x)


@pytest.mark.parametrize("seed", range(60))
def test_random_networks(seed: int) -> None:
    check(random_network(seed), seed)


def conv_case(*layers: nn.Module, size: tuple[int, int] = (9, 7), reader: int) -> Case:
    torch.manual_seed(1)
    return Case(nn.Sequential(*layers).eval(), torch.randn(3, 2, *size), [(str(reader), 1)])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name: str) -> None:
    act = ACTIVATIONS[name]()
    check(conv_case(nn.Conv2d(2, 19, 3), act, nn.Conv2d(19, 4, 3, padding=1), reader=2), 3)


GEOMETRIES = {
    "1x1": (1, 1, 0, 1, (9, 7)),
    "7x7 on one pixel": (7, 1, 3, 1, (1, 1)),
    "5x5 on 2x3": (5, 1, 2, 1, (2, 3)),
    "even kernel": (2, 1, 1, 1, (5, 4)),
    "stride over the end": (3, 3, 1, 1, (8, 10)),
    "stride larger than the kernel": (1, 3, 0, 1, (8, 10)),
    "dilation": (3, 1, 2, 2, (9, 7)),
    "dilation and stride": (3, 2, 3, 3, (9, 7)),
    "padding beyond the kernel": (2, 1, 5, 1, (3, 2)),
    "padding between taps": (3, 1, 3, 2, (4, 4)),
}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_borders(geometry: tuple[int, int, int, int, tuple[int, int]]) -> None:
    kernel, stride, padding, dilation, size = geometry
    reader = nn.Conv2d(18, 5, kernel, stride, padding, dilation)
    check(conv_case(nn.Conv2d(2, 18, 1), nn.ReLU(), reader, size=size, reader=2), 5)


@pytest.mark.parametrize("padding", ["same", "valid", (1, 0), (0, 2)], ids=str)
def test_named_and_unequal_padding(padding: str | tuple[int, int]) -> None:
    check(conv_case(nn.Conv2d(2, 18, 1), nn.Tanh(), nn.Conv2d(18, 5, 3, padding=padding), reader=2), 6)


def test_rectangular_kernel() -> None:
    reader = nn.Conv2d(18, 5, (1, 5), (2, 1), (0, 2), (1, 1))
    check(conv_case(nn.Conv2d(2, 18, (3, 1)), nn.ReLU(), reader, reader=2), 7)


@pytest.mark.parametrize("shape", [(4, 6, 10), (2, 3, 4, 10), (0, 10), (3, 0, 10)], ids=str)
def test_linear_on_leading_dimensions(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.GELU(), nn.Linear(20, 3))
    fast = frozen(model, torch.randn([4, *(size or 2 for size in shape[1:])]))
    force_random_sets(fast, 0.4, 1)
    expect_exact(fast, model, [Reader("2", "0")], torch.randn(shape))


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_other_batch_sizes(rows: int, share: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 18, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LayerNorm(162), nn.Linear(162, 9),
        nn.BatchNorm1d(9), nn.SiLU(), nn.Linear(9, 2),
    )  # fmt: skip
    fast = frozen(model, torch.randn(3, 1, 8, 8))
    force_random_sets(fast, share, 2)
    readers = [Reader("4", "0", pixels=9), Reader("8", "5")]
    expect_exact(fast, model.eval(), readers, torch.randn(rows, 1, 8, 8))


@pytest.mark.parametrize("size", [(3, 3), (5, 31), (40, 9)], ids=str)
def test_other_image_sizes(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 17, 3, padding=1), nn.ReLU(), nn.Conv2d(17, 30, 5, padding=2), nn.GELU(),
        nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Linear(60, 6),
    )  # fmt: skip
    fast = frozen(model, torch.randn(2, 3, 12, 12))
    force_random_sets(fast, 0.5, 3)
    expect_exact(fast, model, [Reader("2", "0"), Reader("6", "2", pixels=2)], torch.randn(2, 3, *size))


def test_the_sets_are_taken_exactly_and_do_work() -> None:
    """The checks above could not fail if pruning changed nothing."""
    case = random_network(4)
    fast = frozen(case.model, case.x)
    force_random_sets(fast, 0.0, 0)
    assert not any(mask.any() for mask in fast.active().values())
    dense = masked_dense(case.model, fast, [], case.x)
    assert relative_error(fast(case.x), dense) > 100 * TOLERANCE
