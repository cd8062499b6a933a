"""Drop-in layers on the compiled kernels, for models that are built by hand.

Each behaves as the ``torch.nn`` layer of the same name, whose parameters ``from_dense`` shares, and can
be told which output units to compute.
"""

from dynprune.nn.conv import Conv1d, Conv2d
from dynprune.nn.linear import Linear
from dynprune.nn.lstm import LSTM

__all__ = ["LSTM", "Conv1d", "Conv2d", "Linear"]
