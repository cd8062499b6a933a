"""Images and texts in memory, and what a model gets of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Inputs = tuple[Tensor, ...]
# From raw samples to raw samples, on their way to the model: an augmentation, or corruptions.
Change = Callable[[Inputs], Inputs]


class Samples(Protocol):
    """Raw samples that turn into a model's positional arguments, a batch at a time."""

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> Tensor | None:
        """Steps of each text, int64 [N]; None of images."""

    def inputs(self, rows: Tensor, change: Change | None = None) -> Inputs:
        """The arguments for ``rows`` int64 [n], after ``change`` of the raw samples."""


@dataclass(frozen=True)
class Images:
    """``pixels`` uint8 [N, channels, height, width]; ``mean`` and ``deviation`` per channel, of 0 to 1.

    The model gets float32 [n, channels, height, width], normalised; ``change`` sees pixels of 0 to 1.
    """

    pixels: Tensor
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def lengths(self) -> None:
        """Images have none."""
        return None

    def inputs(self, rows: Tensor, change: Change | None = None) -> Inputs:
        """Normalised images [n, channels, height, width]."""
        pixels = self.pixels[rows].float() / 255
        if change is not None:
            (pixels,) = change((pixels,))
        mean, deviation = (torch.tensor(each).view(-1, 1, 1) for each in (self.mean, self.deviation))
        return ((pixels - mean) / deviation,)


@dataclass(frozen=True)
class Texts:
    """Texts as numbers of words; 0 stands for no word.

    ``tokens``: int32, all texts one behind the other; text i is ``tokens[starts[i]:starts[i + 1]]``. The
    model gets int64 [n, steps], ended with zeros, and lengths int64 [n]; or, where ``bag`` is the size of the
    vocabulary, float32 [n, bag], 1 at the words that occur. ``change`` sees the former.
    """

    tokens: Tensor
    starts: Tensor
    bag: int | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Tensor:
        """Steps of each text, int64 [N]."""
        return self.starts.diff()

    def inputs(self, rows: Tensor, change: Change | None = None) -> Inputs:
        """Padded texts and lengths, or bags of words."""
        lengths = self.lengths[rows]
        steps = torch.arange(int(lengths.max()))
        there = steps < lengths.unsqueeze(1)
        places = torch.where(there, self.starts[rows].unsqueeze(1) + steps, 0)
        raw: Inputs = (torch.where(there, self.tokens[places].long(), 0), lengths)
        if change is not None:
            raw = change(raw)
        if self.bag is None:
            return raw
        bags = torch.zeros(len(rows), self.bag).scatter_(1, raw[0], 1.0)
        bags[:, 0] = 0
        return (bags,)


@dataclass(frozen=True)
class Split:
    """Samples and their classes: ``labels`` int64 [N], 0 to the number of classes - 1."""

    samples: Samples
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def rows(self) -> Tensor:
        """All row numbers, int64 [N]."""
        return torch.arange(len(self))
