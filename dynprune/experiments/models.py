"""The models of the experiments."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

INITS = ("he", "torch")


def mnist_cnn(seed: int, init: str = "he") -> nn.Sequential:
    """Two pairs of 3x3 convolutions with max pooling after each, then two fully connected layers.

    Input float32 [N, 1, 28, 28], output logits [N, 10]; 467,818 parameters. ``seed`` determines the
    initial weights and leaves torch's global generator as it was. ``init`` is ``"he"`` (normal, He et
    al. 2015, the textbook choice for ReLU; biases 0) or ``"torch"`` (PyTorch's default). How many units
    a trained model can spare depends on it: see docs/design.md.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 32, 3, padding=1),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(32, 32, 3, padding=1),
                relu2=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv3=nn.Conv2d(32, 64, 3, padding=1),
                relu3=nn.ReLU(),
                conv4=nn.Conv2d(64, 64, 3, padding=1),
                relu4=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(64 * 7 * 7, 128),
                relu5=nn.ReLU(),
                fc2=nn.Linear(128, 10),
            )
        )
        for layer in model if init == "he" else ():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    return model
