"""Models in bfloat16, and models under autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import dynprune
from dynprune import ops
from tests.models.masked import Reader, masked_dense, relative_error
from tests.models.traffic import INPUTS, LOW, Traffic, two_halves

TOLERANCE = 1e-2


def network() -> nn.Sequential:
    """Convolutions with a folded norm and a max pool, then linear layers."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(20, 33, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(33 * 16, 40), nn.GELU(), nn.Linear(40, 7),
    ).eval()  # fmt: skip
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 2)
    return model


X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def pruned(model: nn.Module, x: Tensor, config: dynprune.Config) -> dynprune.AcceleratedModel:
    fast = dynprune.accelerate(model, x, config)
    fast.calibrate([x, x * 0.5 + 0.1])
    fast.freeze()
    generator = torch.Generator().manual_seed(2)
    for name, group in fast.groups.items():
        fast.set_active(name, torch.rand(group.units, generator=generator) < 0.6)
    return fast


def readers(fast: dynprune.AcceleratedModel) -> list[Reader]:
    first, second, third = fast.groups
    return [Reader("4", first), Reader("7", second, pixels=16), Reader("9", third)]


@pytest.mark.parametrize("compensation", ["mean", "lstsq"])
def test_pruned_model(compensation: str) -> None:
    """What is pruned is as exact as bfloat16 allows, against float64 on the same weights."""
    model, x = network().bfloat16(), X.bfloat16()
    fast = pruned(model, x, dynprune.Config(compensation=compensation))
    assert fast(x).dtype == torch.bfloat16
    expected = masked_dense(model, fast, readers(fast), x)
    assert relative_error(fast(x), expected) <= TOLERANCE
    assert relative_error(fast.materialize()(x), expected) <= 2 * TOLERANCE


@pytest.mark.skipif(ops.native is None, reason="dynprune._C is not there")
def test_layers_run_on_the_kernels() -> None:
    fast = dynprune.accelerate(network().bfloat16(), X.bfloat16())
    layers = [e for e in fast._controller.plan.entries if hasattr(e, "bias")]
    assert [e.op for e in layers] == [torch.ops.dynprune.conv2d.default] * 2 + [
        torch.ops.dynprune.linear.default
    ] * 2
    assert all(e.weight.dtype == torch.bfloat16 and e.bias.dtype == torch.float32 for e in layers)


def test_computing_a_float32_model_in_bfloat16() -> None:
    model = network()
    fast = pruned(model, X, dynprune.Config(dtype=torch.bfloat16))
    assert fast(X).dtype == torch.float32
    assert relative_error(fast(X), masked_dense(model, fast, readers(fast), X)) <= 2 * TOLERANCE


def test_observing_and_pruning() -> None:
    model, traffic = two_halves().bfloat16(), Traffic()
    fast = dynprune.accelerate(model, torch.zeros(2, INPUTS).bfloat16(), dynprune.Config(evidence=128))
    for _ in range(4):
        fast(traffic.low(32).bfloat16())
    assert fast.active()["0"].equal(LOW)
    fast.freeze()
    x = traffic.both(20).bfloat16()
    assert relative_error(fast(x), masked_dense(model, fast, [Reader("2", "0")], x)) <= TOLERANCE


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.float64])
def test_autocast_changes_nothing_in_an_accelerated_model(own: torch.dtype) -> None:
    """It computes and answers in its own dtype, also where the inputs come from a layer under autocast."""
    model = network().to(own)
    fast = pruned(model, X.to(own), dynprune.Config())
    expected = fast(X.to(own))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast(X.to(own)).equal(expected)
        narrow = fast(X.bfloat16())
    assert narrow.dtype == own
    assert narrow.equal(fast(X.bfloat16().to(own)))


def test_autocast_and_config_dtype() -> None:
    fast = pruned(network(), X, dynprune.Config(dtype=torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = fast(X)
    assert actual.dtype == torch.bfloat16
    assert actual.float().equal(fast(X))


def test_accelerating_under_autocast() -> None:
    model = network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast = dynprune.accelerate(model, X)
        fast.calibrate([X])
    fast.freeze()
    assert relative_error(fast(X), masked_dense(model, fast, readers(fast), X)) <= 1e-4
