"""The place of a drop-in for ``torch.nn.LSTM``."""

from __future__ import annotations

from typing import Any

from torch import nn


class LSTM(nn.LSTM):
    """Not available yet: there is no LSTM kernel in this version."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "dynprune.nn.LSTM: this version has no LSTM kernel; use torch.nn.LSTM, which an "
            "accelerated model runs dense"
        )

    @classmethod
    def from_dense(cls, module: nn.LSTM) -> LSTM:
        """Raises NotImplementedError."""
        return cls()
