"""The whole models of the benchmarks: seeded random weights, eval mode."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynprune.experiments.models import mnist_cnn

VOCABULARY, STEPS = 20_000, 200
VGG_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    pairs = itertools.pairwise(widths)
    return nn.Sequential(*[m for pair in pairs for m in (nn.Linear(*pair), nn.ReLU())][:-1])


def vgg(widths: tuple[tuple[int, ...], ...], size: int, hidden: tuple[int, ...], norm: bool) -> nn.Sequential:
    """3x3 convolutions in stages, each ended by a max pool, on ``size`` x ``size`` images of 10 classes."""
    layers: list[nn.Module] = []
    channels = 3
    for stage in widths:
        for units in stage:
            layers.append(nn.Conv2d(channels, units, 3, padding=1, bias=not norm))
            layers.extend([nn.BatchNorm2d(units)] * norm)
            layers.append(nn.ReLU())
            channels = units
        layers.append(nn.MaxPool2d(2))
    pixels = (size >> len(widths)) ** 2
    return nn.Sequential(*layers, nn.Flatten(), *mlp(channels * pixels, *hidden, 10))


class BiLstmClassifier(nn.Module):
    """Embedding, bidirectional LSTM, then the mean over time or the last states, and two classes."""

    def __init__(self, layers: int, mean: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 128)
        self.lstm = nn.LSTM(128, 128, layers, batch_first=True, bidirectional=True)
        self.head = nn.Linear(256, 2)
        self.mean = mean

    def forward(self, tokens: Tensor) -> Tensor:
        """``[batch, steps]`` to ``[batch, 2]``."""
        states, (last, _) = self.lstm(self.embedding(tokens))
        pooled = states.mean(1) if self.mean else torch.cat([last[-2], last[-1]], 1)
        return self.head(pooled)  # type: ignore[no-any-return]


def image(channels: int, size: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, channels, size, size)


@dataclass(frozen=True)
class Model:
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]  # of a batch

    def make(self, batch: int) -> tuple[nn.Module, Tensor]:
        """The model in eval mode and an input, always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.build().eval().requires_grad_(False)
            for module in model.modules():
                _settle(module)
            return model, self.inputs(batch)


def _settle(module: nn.Module) -> None:
    """He-normal weights, small biases, and a batch norm that has seen something."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
    elif isinstance(module, nn.BatchNorm2d):
        assert module.running_mean is not None and module.running_var is not None
        nn.init.normal_(module.running_mean, std=0.1)
        nn.init.uniform_(module.running_var, 0.5, 1.5)
        nn.init.uniform_(module.weight, 0.5, 1.5)


def _tokens(batch: int) -> Tensor:
    return torch.randint(VOCABULARY, (batch, STEPS))


MODELS = [
    Model("mlp", lambda: mlp(784, 512, 512, 10), lambda batch: torch.randn(batch, 784)),
    Model("mnist-cnn", lambda: mnist_cnn(0), image(1, 28)),
    Model("cifar-vgg6", lambda: vgg(((32, 32), (64, 64), (128, 128)), 32, (256,), False), image(3, 32)),
    Model("vgg16-bn", lambda: vgg(VGG_WIDTHS, 32, (512, 512), True), image(3, 32)),
    Model("bilstm-1", lambda: BiLstmClassifier(1, mean=True), _tokens),
    Model("bilstm-2", lambda: BiLstmClassifier(2, mean=False), _tokens),
]
