"""MNIST as normalised tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from dynprune.experiments.sources import SPLITS, Source, find_mnist, first_line

CLASSES = 10
IMAGE_SIZE = 28
# Mean and standard deviation of the pixels of the full training split, in units of 0 to 1.
PIXEL_MEAN = 0.1307
PIXEL_STD = 0.3081


@dataclass(frozen=True)
class Split:
    """Images and their classes.

    ``images``: float32 [N, 1, 28, 28], normalised to mean 0 and standard deviation 1; ``labels``:
    int64 [N], 0 to 9.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Mnist:
    """Both splits and the place they came from."""

    train: Split
    test: Split
    source: Source


def load_mnist(data_dir: Path | None = None, limit: int | None = None) -> Mnist:
    """MNIST from the first place that has it, at most ``limit`` images of each split.

    ``find_mnist`` gives the order of the places.

    Raises:
        FileNotFoundError: a folder that was asked for, or one of its splits, is missing.
        ValueError: a file is damaged or does not hold 28 x 28 grey images with labels 0 to 9.
    """
    source = find_mnist(data_dir)
    tensors = {split: _to_tensors(source, split, limit) for split in SPLITS}
    return Mnist(tensors["train"], tensors["test"], source)


def normalise(pixels: Tensor) -> Tensor:
    """uint8 [N, 28, 28] to normalised float32 [N, 1, 28, 28]."""
    return ((pixels.float() / 255 - PIXEL_MEAN) / PIXEL_STD).unsqueeze(1)


def _to_tensors(source: Source, split: str, limit: int | None) -> Split:
    rows = source.splits[split]
    place = f"{source.kind}: {split} split in {source.location}"
    missing = {"image", "label"} - set(rows.column_names)
    if missing:
        raise ValueError(f"{place}: expected columns image and label, got {rows.column_names}")
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    try:
        columns = rows.cast_column("image", datasets.Image()).with_format("numpy")[:]
    except Exception as error:  # pillow, pyarrow and datasets each raise errors of their own
        raise ValueError(f"{place}: expected PNG images, got {first_line(error)}") from error
    pixels = _checked_pixels(columns["image"], place)
    labels = _checked_labels(columns["label"], place)
    return Split(normalise(torch.from_numpy(pixels)), torch.from_numpy(labels))


def _checked_pixels(column: Any, place: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    shapes = {(np.asarray(image).dtype.name, *np.asarray(image).shape) for image in column}
    if shapes != {("uint8", IMAGE_SIZE, IMAGE_SIZE)}:
        found = ", ".join(f"{dtype} {list(shape)}" for dtype, *shape in sorted(shapes, key=str))
        raise ValueError(f"{place}: expected images uint8 [28, 28], got {found}")
    return np.stack(column)


def _checked_labels(column: Any, place: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    labels = np.asarray(column)
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= CLASSES:
        raise ValueError(
            f"{place}: expected integer labels 0 to {CLASSES - 1}, "
            f"got {labels.dtype} from {labels.min()} to {labels.max()}"
        )
    return labels.astype(np.int64)
