"""Captured models, whose layers have room for all units and counts of those that are active.

On the CPU the reference ops serve, which leave NaN where no active unit is: what reads it would show.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dynprune
from tests.models.architectures import ARCHITECTURES, build
from tests.models.masked import masked_dense
from tests.models.test_architectures import choices, error
from tests.models.test_exactness import TOLERANCE, force_random_sets, frozen
from tests.models.traffic import Traffic, two_halves


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_choice_on_the_same_buffers(name: str) -> None:
    case = build(name)
    fast = frozen(case.model, *case.inputs)
    if fast._program.has_lengths:
        with pytest.raises(ValueError, match="capture: expected a model whose shapes follow"):
            fast.capture(case.inputs)
        return
    captured = fast.capture(case.inputs)
    for _ in choices(fast):
        expected = masked_dense(case.model, fast, case.readers(), *case.inputs)
        assert error(captured(*case.inputs), expected) <= TOLERANCE


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_least_squares(name: str) -> None:
    case = build(name)
    fast = frozen(case.model, *case.inputs, compensation="lstsq")
    if fast._program.has_lengths:
        pytest.skip("packed sequences")
    captured = fast.capture(case.inputs)
    for seed in (1, 2):
        force_random_sets(fast, 0.6, seed)
        expected = masked_dense(case.model, fast, case.readers(), *case.inputs)
        assert error(captured(*case.inputs), expected) <= TOLERANCE


def settled() -> tuple[dynprune.AcceleratedModel, Traffic]:
    """A model that has learned that one half of its units is not used."""
    config = dynprune.Config(evidence=256, canary_interval=16, drift_interval=4)
    fast = dynprune.accelerate(two_halves(), torch.randn(2, 16), config)
    traffic = Traffic()
    fast.calibrate([traffic.low(512)])
    return fast, traffic


def test_it_adapts_like_the_model_itself() -> None:
    (fast, traffic), (other, _) = settled(), settled()
    captured = other.capture(torch.randn(64, 16))
    batches = [traffic.low(64) for _ in range(40)] + [traffic.high(64) for _ in range(40)]
    for x in batches:
        expected = fast(x)
        assert error(captured(x), expected) <= TOLERANCE
        assert other.active().keys() == fast.active().keys()
        assert all(torch.equal(other.active()[n], mask) for n, mask in fast.active().items())
    ours, theirs = other.stats(), fast.stats()
    for name in ("batches", "rows", "canary_rows", "flips", "dense_operations"):
        assert ours[name] == theirs[name], name
    # Canary rows run on the graph as well, since that has all rows.
    assert theirs["operations"] < ours["operations"] < 1.1 * theirs["operations"]
    assert ours["flips"] > 0


def test_forced_frozen_and_changed_weights() -> None:
    fast, traffic = settled()
    captured, x = fast.capture(torch.randn(8, 16)), traffic.both(8)
    fast.set_active("0", torch.arange(64) % 5 == 0)
    assert error(captured(x), fast(x)) <= TOLERANCE
    fast.freeze()
    first = fast.restore()[0]
    assert isinstance(first, nn.Linear)
    before = captured(x)
    with torch.no_grad():
        first.weight.mul_(2.0)
    assert error(captured(x), fast(x)) <= TOLERANCE
    assert error(captured(x), before) > 1e-2


def test_outputs_stay() -> None:
    fast, traffic = settled()
    captured = fast.capture(torch.randn(8, 16))
    first = captured(traffic.low(8))
    kept = first.clone()
    captured(traffic.high(8))
    assert torch.equal(first, kept)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((torch.randn(7, 16),), "as it was captured, got"),
        ((torch.randn(8, 16).double(),), "float64"),
        ((torch.randn(8, 16), torch.randn(8, 16)), "captured model: expected"),
    ],
    ids=["rows", "dtype", "arguments"],
)
def test_wrong_inputs(given: tuple[Tensor, ...], message: str) -> None:
    captured = settled()[0].capture(torch.randn(8, 16))
    with pytest.raises(ValueError, match=message):
        captured(*given)


@pytest.mark.parametrize(
    "config",
    [{"max_divergence": 0.01}, {"criterion": "budget"}, {"compensation": "auto"}, {"input_threshold": 0.1}],
    ids=str,
)
def test_configurations_that_cannot(config: dict[str, Any]) -> None:
    fast = dynprune.accelerate(two_halves(), torch.randn(2, 16), dynprune.Config(**config))
    with pytest.raises(ValueError, match="capture: expected a Config without"):
        fast.capture(torch.randn(8, 16))


class Quotient(nn.Module):
    """Units of one group divided by those of the same one: 0 / 0 where nothing is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 40), nn.Linear(8, 40), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.a(x)) / torch.sigmoid(self.b(x)).abs())
        return y


def test_division_behind_the_active_units() -> None:
    torch.manual_seed(0)
    model, x = Quotient().eval(), torch.randn(6, 8)
    fast = frozen(model, x)
    captured = fast.capture(x)
    for group, found in fast.groups.items():
        fast.set_active(group, torch.arange(found.units) % 2 == 0)
    assert captured._plan._divides
    assert error(captured(x), fast(x)) <= TOLERANCE


@pytest.mark.parametrize(
    "example",
    [torch.randn(0, 16), torch.randn(4, 15), torch.randn(4, 16).double(), (), None, "x"],
    ids=["no rows", "width", "dtype", "nothing", "None", "text"],
)
def test_bad_examples(example: Any) -> None:
    with pytest.raises(ValueError, match=r"^capture: expected inputs"):
        settled()[0].capture(example)


def test_gradients_are_refused() -> None:
    captured = settled()[0].capture(torch.randn(8, 16))
    with pytest.raises(NotImplementedError, match="inputs that need no gradient"):
        captured(torch.randn(8, 16, requires_grad=True))
