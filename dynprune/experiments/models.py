"""The models of the experiments; each is a function of its seed."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
INITS = ("he", "torch")
VGG16_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# The shapes of an MLP: the widths of its hidden layers, and the dropout behind each.
MLP_SHAPES: dict[str, tuple[tuple[int, ...], float]] = {
    "64": ((64,), 0.0),
    "128-64": ((128, 64), 0.0),
    "128-64-dropout": ((128, 64), 0.5),
}


def mnist_cnn(seed: int, init: str = "he") -> nn.Sequential:
    """Two pairs of 3x3 convolutions with max pooling after each, then two fully connected layers.

    Input float32 [N, 1, 28, 28], output logits [N, 10]; 467,818 parameters. ``seed`` determines the
    initial weights and leaves torch's global generator as it was. ``init`` is ``"he"`` (normal, He et
    al. 2015, the textbook choice for ReLU; biases 0) or ``"torch"`` (PyTorch's default). How many units
    a trained model can spare depends on it: see docs/design.md.
    """

    def build() -> nn.Sequential:
        layers = _convolutions(1, ((32, 32), (64, 64)))
        layers.update(
            flatten=nn.Flatten(), fc1=nn.Linear(64 * 7 * 7, 128), relu5=nn.ReLU(), fc2=nn.Linear(128, 10)
        )
        return nn.Sequential(layers)

    return _seeded(seed, build, init)


def cifar_cnn(seed: int, init: str = "he") -> nn.Sequential:
    """Three pairs of 3x3 convolutions, 32, 64 and 128 wide, then two fully connected layers.

    Input float32 [N, 3, 32, 32], output logits [N, 10]; 814,122 parameters; arguments as of
    :func:`mnist_cnn`.
    """

    def build() -> nn.Sequential:
        layers = _convolutions(3, ((32, 32), (64, 64), (128, 128)))
        layers.update(
            flatten=nn.Flatten(),
            fc1=nn.Linear(128 * 4 * 4, 256),
            relu7=nn.ReLU(),
            fc2=nn.Linear(256, 10),
        )
        return nn.Sequential(layers)

    return _seeded(seed, build, init)


def vgg16(seed: int, init: str = "he") -> nn.Sequential:
    """VGG-16 (Simonyan and Zisserman 2015) with batch norm, for small images: hidden layers of 512.

    Batch norm stands in for the dropout of the paper, beside which training hardly gets going.
    Input float32 [N, 3, 32, 32], output logits [N, 10]; arguments as of :func:`mnist_cnn`.
    """

    def build() -> nn.Sequential:
        layers = _convolutions(3, VGG16_WIDTHS, norm=True)
        layers.update(
            flatten=nn.Flatten(),
            fc1=nn.Linear(512, 512),
            relu14=nn.ReLU(),
            fc2=nn.Linear(512, 512),
            relu15=nn.ReLU(),
            fc3=nn.Linear(512, 10),
        )
        return nn.Sequential(layers)

    return _seeded(seed, build, init)


def mlp(inputs: int, outputs: int, shape: str, seed: int, init: str = "he") -> nn.Sequential:
    """Fully connected layers with ReLU between them; ``shape`` is a key of ``MLP_SHAPES``.

    Input float32 [N, ...] of ``inputs`` elements a row, output logits [N, outputs]; the logit of a sigmoid
    where ``outputs`` is 1.
    """
    hidden, dropout = MLP_SHAPES[shape]

    def build() -> nn.Sequential:
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for number, (before, behind) in enumerate(itertools.pairwise((inputs, *hidden)), 1):
            layers[f"fc{number}"] = nn.Linear(before, behind)
            layers[f"relu{number}"] = nn.ReLU()
            if dropout:
                layers[f"dropout{number}"] = nn.Dropout(dropout)
        layers[f"fc{len(hidden) + 1}"] = nn.Linear(hidden[-1], outputs)
        return nn.Sequential(layers)

    return _seeded(seed, build, init)


class BiLstm(nn.Module):
    """Embedding, bidirectional LSTM, mean of its states over the text, two fully connected layers, one logit.

    Input: int64 [N, steps], 0 where a text has ended, and lengths int64 [N] (on the CPU); output: logits
    [N], above 0 for class 1. Dropout 0.5 behind the embedding and before the last layer.
    """

    def __init__(self, vocabulary: int, width: int = 128, layers: int = 1, hidden: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.drop = nn.Dropout(0.5)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, bidirectional=True)
        self.fc1 = nn.Linear(2 * width, hidden)
        self.relu = nn.ReLU()
        self.drop2 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(hidden, 1)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits float32 [N]."""
        embedded = self.drop(self.embedding(tokens))
        packed = nn.utils.rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        words = (tokens[:, : states.shape[1]] != 0).unsqueeze(2)
        mean = (states * words).sum(1) / words.sum(1)
        logits: Tensor = self.fc2(self.drop2(self.relu(self.fc1(mean))))[:, 0]
        return logits


def bilstm(vocabulary: int, seed: int, init: str = "torch") -> BiLstm:
    """A :class:`BiLstm` of 128 units a direction; ``init`` concerns its fully connected layers."""
    return _seeded(seed, lambda: BiLstm(vocabulary), init)


def _convolutions(
    channels: int, stages: Sequence[Sequence[int]], norm: bool = False
) -> OrderedDict[str, nn.Module]:
    """3x3 convolutions with ReLU, each stage ended by a max pool: conv1, (bn1,) relu1, ... pool1, ..."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    number = itertools.count(1)
    for stage, widths in enumerate(stages, 1):
        for width in widths:
            i = next(number)
            layers[f"conv{i}"] = nn.Conv2d(channels, width, 3, padding=1, bias=not norm)
            if norm:
                layers[f"bn{i}"] = nn.BatchNorm2d(width)
            layers[f"relu{i}"] = nn.ReLU()
            channels = width
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    return layers


def _seeded(seed: int, build: Callable[[], Model], init: str) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        for layer in model.modules() if init == "he" else ():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    return model
