"""The data sets of the experiments, as the hub has them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSet:
    """One data set: where it is found and what its rows hold.

    ``name``: its folder under ``--data-dir``; ``hub``: its name there; ``column``: images or texts;
    ``test_split``: the split that models are judged on. Of images, ``size`` is [channels, height, width],
    and ``mean`` and ``deviation`` are those of the training pixels per channel, in units of 0 to 1.
    """

    name: str
    hub: str
    column: str
    classes: tuple[str, ...]
    test_split: str = "test"
    size: tuple[int, int, int] | None = None
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    @property
    def kind(self) -> str:
        """``"image"`` or ``"text"``."""
        return "text" if self.size is None else "image"


MNIST = DataSet(
    "mnist",
    "ylecun/mnist",
    "image",
    tuple(map(str, range(10))),
    size=(1, 28, 28),
    mean=(0.1307,),
    deviation=(0.3081,),
)
CIFAR10 = DataSet(
    "cifar10",
    "uoft-cs/cifar10",
    "img",
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    size=(3, 32, 32),
    mean=(0.4914, 0.4822, 0.4465),
    deviation=(0.2470, 0.2435, 0.2616),
)
IMDB = DataSet("imdb", "stanfordnlp/imdb", "text", ("negative", "positive"))
# The labels of its test split are not public, so the validation split is the test set.
SST2 = DataSet("sst2", "stanfordnlp/sst2", "sentence", ("negative", "positive"), test_split="validation")
