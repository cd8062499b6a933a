"""Traffic: which images reach the model, and in what order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynprune.experiments.data import CLASSES


@dataclass(frozen=True)
class Traffic:
    """The classes whose images arrive; ``None`` stands for all of them."""

    classes: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, text: str) -> Traffic:
        """Traffic of the classes in a text such as ``"0,1"``.

        Raises:
            ValueError: the text is not a comma-separated list of different class numbers.
        """
        numbers = [part.strip() for part in text.split(",")]
        known = {str(number) for number in range(CLASSES)}
        if not set(numbers) <= known or len(set(numbers)) < len(numbers):
            raise ValueError(
                f"traffic: expected different classes 0 to {CLASSES - 1} separated by commas, got {text!r}"
            )
        return cls(tuple(int(number) for number in numbers))

    @property
    def name(self) -> str:
        """``"all classes"``, or the classes as ``"0,1"``."""
        return "all classes" if self.classes is None else ",".join(map(str, self.classes))

    def rows(self, labels: Tensor) -> Tensor:
        """Row numbers int64 [n] of the images of these classes; ``labels``: int64 [N].

        Raises:
            ValueError: there is no such image.
        """
        if self.classes is None:
            chosen = torch.arange(len(labels))
        else:
            chosen = torch.isin(labels, torch.tensor(self.classes)).nonzero().flatten()
        if len(chosen) == 0:
            raise ValueError(f"traffic {self.name}: expected at least one image in each split, got none")
        return chosen


def stream(rows: Tensor, count: int, *seed: int) -> Tensor:
    """The first ``count`` of endless rounds over ``rows``, each round shuffled anew.

    ``rows``: int64 [n]; the result: int64 [count]. The numbers of ``seed`` determine
    the order.
    """
    generator = np.random.default_rng(seed)
    rounds = -(-count // len(rows))
    order = np.concatenate([generator.permutation(len(rows)) for _ in range(rounds)])
    return rows[torch.from_numpy(order[:count])]
