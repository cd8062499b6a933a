"""Training is repeatable and learns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynprune.experiments.data import Split
from dynprune.experiments.models import mnist_cnn
from dynprune.experiments.training import Epoch, train


def _two_kinds() -> Split:
    """48 images: a bright upper half for class 0, a bright lower half for class 1."""
    generator = torch.Generator().manual_seed(0)
    images = 0.1 * torch.randn(48, 1, 28, 28, generator=generator)
    labels = torch.arange(48) % 2
    images[labels == 0, :, :14] += 1
    images[labels == 1, :, 14:] += 1
    return Split(images, labels)


def _trained(seed: int) -> tuple[nn.Module, list[Epoch], list[tuple[int, float]]]:
    model = mnist_cnn(0)
    calls: list[tuple[int, float]] = []
    history = train(
        model,
        _two_kinds(),
        epochs=3,
        learning_rate=0.002,
        batch_size=20,
        seed=seed,
        on_batch=lambda epoch, loss: calls.append((epoch, loss)),
    )
    return model, history, calls


def test_training() -> None:
    model, history, calls = _trained(seed=1)
    again, _, same_calls = _trained(seed=1)
    _, _, other_calls = _trained(seed=2)
    assert calls == same_calls
    assert calls != other_calls
    weights: dict[str, Tensor] = again.state_dict()
    for name, weight in model.state_dict().items():
        assert weight.is_contiguous()
        assert torch.equal(weight, weights[name])
    assert not model.training
    assert [epoch for epoch, _ in calls] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert history[-1].loss < history[0].loss
    assert history[-1].accuracy > 0.9
