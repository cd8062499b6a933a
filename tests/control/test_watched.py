"""Which layers give live usage."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dynprune


def watched(model: nn.Module, x: torch.Tensor) -> set[str]:
    return set(dynprune.accelerate(model.eval(), x)._controller.watched)


def cnn(*widths: int) -> nn.Sequential:
    layers, before = [], 1
    for width in widths:
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        before = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * (16 >> len(widths)) ** 2, 5))


@pytest.mark.parametrize(
    ("widths", "expected"),
    [((8,), {"0"}), ((8, 8), {"3"}), ((16, 8, 4), {"0", "3", "6"}), ((4, 8, 16), {"6"})],
    ids=["one", "equal", "early is wide", "late is wide"],
)
def test_late_layers_of_a_cnn_until_half_the_units(widths: tuple[int, ...], expected: set[str]) -> None:
    assert watched(cnn(*widths), torch.randn(2, 1, 16, 16)) == expected


def test_layers_of_as_many_outputs_go_together() -> None:
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3), nn.ReLU(), nn.Linear(3, 2))
    assert watched(model, torch.randn(4, 6)) == {"0", "2"}


def test_only_watched_layers_are_summed_live_and_all_are_dense() -> None:
    x = torch.randn(4, 1, 16, 16)
    fast = dynprune.accelerate(cnn(8, 8).eval(), x)
    live, dense = fast._controller.live_record(usage=True), fast._controller.dense_record()
    for record in (live, dense):
        with torch.no_grad():
            fast._server.run(fast._controller.plan, record, x)
    assert set(live.usage) == {"3"} and set(dense.usage) == {"0", "3"}
