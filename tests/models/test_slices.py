"""A large batch of images runs in slices; nobody can tell but by the clock."""

from __future__ import annotations

import torch
from torch import nn

import dynprune


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 8, 3, padding=1),
        nn.AvgPool2d(2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8 * 49, 5),
    ).eval()


def test_slices_add_up_to_the_whole() -> None:
    model = _model()
    batch = torch.randn(67, 1, 28, 28)
    sliced, whole = (dynprune.accelerate(model, batch[:2], dynprune.Config(evidence=1000)) for _ in range(2))
    calls = []
    run = sliced._server.run
    sliced._server.run = lambda plan, record, x: calls.append(len(x)) or run(plan, record, x)
    whole._server.slice_rows = 0
    assert torch.allclose(sliced(batch), whole(batch), rtol=1e-5, atol=1e-6)
    assert len(calls) > 1
    assert sum(calls) == 67
    ours, theirs = sliced.stats(), whole.stats()
    assert (ours["operations"], ours["rows"]) == (theirs["operations"], theirs["rows"])
    for name, usage in sliced.usage().items():
        expected = whole.usage()[name]
        assert torch.equal(usage.count, expected.count)
        assert torch.allclose(usage.mean, expected.mean, rtol=1e-5, atol=1e-7)
        assert torch.allclose(usage.var, expected.var, rtol=1e-5, atol=1e-7)
    sliced.calibrate(batch)
    whole.calibrate(batch)
    for name, constant in whole.constants().items():
        assert torch.allclose(sliced.constants()[name], constant, rtol=1e-5, atol=1e-7)


def test_models_without_images_run_whole() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    assert dynprune.accelerate(model, torch.randn(2, 4))._server.slice_rows == 0
