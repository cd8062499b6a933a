"""The experiments by name: which model, on which data, trained how, and what traffic it then serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from dynprune.experiments import models
from dynprune.experiments.data import Data, Reading
from dynprune.experiments.data_sets import CIFAR10, IMDB, MNIST, SST2, DataSet
from dynprune.experiments.training import Recipe

DEFAULT_SHAPE = "128-64"


@dataclass(frozen=True)
class Choices:
    """What a model is made of: the seed, the initial weights and, of an MLP, its shape."""

    seed: int
    init: str
    shape: str


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    ``build`` makes the untrained model; ``reading`` says how texts become numbers; ``traffic`` are subsets as
    ``Traffic.parse`` reads them, ``thresholds`` those under which they are served (prune, reactivate), and
    ``compensation`` what stands in for pruned units then, beside means;
    ``bar`` is the accuracy that the dense model has after full training, at least, and ``loss_bar`` the loss
    it has at most; ``heavy``: a sample takes so long that fewer are served and timed.
    """

    name: str
    data_set: DataSet
    build: Callable[[Choices, Data], nn.Module]
    recipe: Recipe = field(default_factory=Recipe)
    traffic: tuple[str, ...] = ("0,1", "4,9")
    thresholds: tuple[float, float] = (0.2, 0.3)
    compensation: str = "lstsq"
    init: str = "he"
    reading: Reading | None = None
    bar: float | None = None
    loss_bar: float | None = None
    heavy: bool = False


def _image_mlp(choices: Choices, data: Data) -> nn.Module:
    return models.mlp(28 * 28, 10, choices.shape, choices.seed, choices.init)


def _bag_mlp(choices: Choices, data: Data) -> nn.Module:
    return models.mlp(len(data.vocabulary), 1, choices.shape, choices.seed, choices.init)


def _bilstm(choices: Choices, data: Data) -> nn.Module:
    return models.bilstm(len(data.vocabulary), choices.seed, choices.init)


TEXT_RECIPE = Recipe(buckets=True, clip_norm=1.0, validation=2500)

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        # Thresholds other than 0.2 / 0.3, and zeros in place of least squares, were chosen after seeing
        # results, see docs/design.md.
        Experiment(
            "mnist-cnn",
            MNIST,
            lambda c, _: models.mnist_cnn(c.seed, c.init),
            Recipe(decay=True, weight_decay=5e-4),
            thresholds=(0.4, 0.5),
            bar=0.990,
        ),
        Experiment("mnist-mlp", MNIST, _image_mlp),
        # The weight decay of mnist-cnn and cifar10-cnn was chosen after seeing results, see docs/design.md.
        Experiment(
            "cifar10-cnn",
            CIFAR10,
            lambda c, _: models.cifar_cnn(c.seed, c.init),
            Recipe(augment="crop", weight_decay=5e-4),
            traffic=("0,1", "3,5"),
            thresholds=(0.3, 0.4),
            compensation="none",
            bar=0.80,
        ),
        Experiment(
            "cifar10-vgg16",
            CIFAR10,
            lambda c, _: models.vgg16(c.seed, c.init),
            Recipe(augment="crop", decay=True, weight_decay=5e-4),
            traffic=("0,1", "3,5"),
            thresholds=(0.1, 0.2),
            bar=0.88,
            heavy=True,
        ),
        Experiment(
            "imdb-bilstm",
            IMDB,
            _bilstm,
            TEXT_RECIPE,
            traffic=("short", "long"),
            thresholds=(0.8, 0.9),
            init="torch",
            reading=Reading(steps=240),
            bar=0.87,
            loss_bar=0.35,
            heavy=True,
        ),
        Experiment(
            "imdb-mlp",
            IMDB,
            _bag_mlp,
            Recipe(validation=2500),
            traffic=("short", "long"),
            thresholds=(0.7, 0.8),
            reading=Reading(bag=True),
        ),
        Experiment(
            "sst2-bilstm",
            SST2,
            _bilstm,
            TEXT_RECIPE,
            traffic=("short", "long"),
            thresholds=(0.8, 0.9),
            init="torch",
            reading=Reading(steps=240),
            bar=0.80,
        ),
    )
}
ALL = "all"


def find_experiment(name: str) -> Experiment:
    """The experiment called ``name``.

    Raises:
        ValueError: there is none.
    """
    if name not in EXPERIMENTS:
        known = ", ".join(sorted([*EXPERIMENTS, ALL]))
        raise ValueError(f"experiment: expected one of {known}, got {name}")
    return EXPERIMENTS[name]
