"""Random plain networks with odd sizes, and the places where their units are read."""

from __future__ import annotations

import dataclasses
import random

import torch
from torch import Tensor, nn

from tests.models.masked import Reader

ACTIVATIONS = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "leaky relu": lambda: nn.LeakyReLU(0.2),
    "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


@dataclasses.dataclass
class Case:
    """A model, an input, and the layers that read the layer before them with their pixels."""

    model: nn.Sequential
    x: Tensor
    reading: list[tuple[str, int]]

    def readers(self, groups: list[str]) -> list[Reader]:
        """The read points; the groups stand in the order of the layers."""
        pairs = zip(groups, self.reading, strict=True)
        return [Reader(module, group, pixels=pixels) for group, (module, pixels) in pairs]


def random_norms(model: nn.Module) -> nn.Module:
    """Statistics and parameters of batch norms far from the identity; eval mode."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight, 1, 0.2)
                nn.init.normal_(module.bias)
    return model.eval()


def random_network(seed: int) -> Case:
    """An MLP or a CNN."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    case = _random_mlp(chance) if chance.random() < 0.4 else _random_cnn(chance)
    random_norms(case.model)
    return case


def _random_mlp(chance: random.Random) -> Case:
    width = chance.choice([1, 5, 17, 64, 100])
    x = torch.randn(chance.choice([1, 2, 7, 64, 65]), width)
    layers: list[nn.Module] = []
    linears = []
    for _ in range(chance.randint(2, 4)):
        units = chance.choice([1, 3, 16, 33, 64, 65, 130])
        linears.append(len(layers))
        layers.append(nn.Linear(width, units, bias=chance.random() < 0.8))
        if chance.random() < 0.3:
            layers.append(nn.BatchNorm1d(units, affine=chance.random() < 0.7))
        layers += [ACTIVATIONS[chance.choice(list(ACTIVATIONS))](), nn.Dropout(0.5)]
        width = units
    linears.append(len(layers))
    layers.append(nn.Linear(width, 5))
    return Case(nn.Sequential(*layers), x, [(str(i), 1) for i in linears[1:]])


def _random_cnn(chance: random.Random) -> Case:
    channels = chance.choice([1, 2, 3, 16])
    size = (chance.choice([1, 2, 3, 5, 8, 13, 28]), chance.choice([1, 2, 4, 7, 9, 16]))
    x = torch.randn(chance.choice([1, 2, 5]), channels, *size)
    layers: list[nn.Module] = []
    reading: list[tuple[str, int]] = []
    for number in range(chance.randint(2, 4)):
        conv = _random_conv(chance, channels, size, always=number == 0)
        if conv is None:
            continue
        reading.append((str(len(layers)), 1))
        channels = conv.out_channels
        activation = ACTIVATIONS[chance.choice(list(ACTIVATIONS))]()
        layers += [conv, nn.BatchNorm2d(channels)] if chance.random() < 0.3 else [conv]
        size = _size_after(conv, conv.in_channels, size)
        pool = _random_pool(chance, size)
        behind = chance.random() < 0.3
        layers += [pool, activation] if behind else [activation, pool]
        size = _size_after(pool, channels, size)
    if chance.random() < 0.3:
        layers.append(chance.choice([nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])((1, 2)))
        size = (1, 2)
    layers.append(nn.Flatten())
    reading.append((str(len(layers)), size[0] * size[1]))
    layers.append(nn.Linear(channels * size[0] * size[1], 7))
    if chance.random() < 0.5:
        reading.append((str(len(layers) + 1), 1))
        layers += [nn.ReLU(), nn.Linear(7, 3)]
    return Case(nn.Sequential(*layers), x, reading[1:])


def _random_conv(
    chance: random.Random, channels: int, size: tuple[int, int], *, always: bool
) -> nn.Conv2d | None:
    kernel, dilation = chance.choice([1, 2, 3, 3, 5, 7]), chance.choice([1, 1, 2])
    padding = chance.choice([0, 1, 2, kernel // 2, kernel // 2])
    reach = dilation * (kernel - 1) + 1
    if min(size) + 2 * padding < reach:
        if not always:
            return None
        padding = -(-reach // 2)
    units = chance.choice([1, 5, 16, 17, 33, 64, 70])
    stride, bias = chance.choice([1, 1, 2, 3]), chance.random() < 0.8
    return nn.Conv2d(channels, units, kernel, stride, padding, dilation, bias=bias)


def _random_pool(chance: random.Random, size: tuple[int, int]) -> nn.Module:
    if min(size) < 2 or chance.random() < 0.5:
        return nn.Identity()
    return chance.choice([nn.MaxPool2d(2), nn.AvgPool2d(2, padding=1), nn.MaxPool2d(3, 2, 1)])


def _size_after(module: nn.Module, channels: int, size: tuple[int, int]) -> tuple[int, int]:
    with torch.no_grad():
        height, width = module(torch.zeros(1, channels, *size)).shape[2:]
    return height, width
