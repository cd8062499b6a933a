"""Data sets as tensors."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dynprune.experiments import texts
from dynprune.experiments.data_sets import DataSet
from dynprune.experiments.samples import Images, Samples, Split, Texts
from dynprune.experiments.sources import Source, find, first_line


@dataclass(frozen=True)
class Reading:
    """How texts become numbers: at most ``steps`` words each (None: all), as a sequence or as a bag."""

    steps: int | None = None
    bag: bool = False


@dataclass(frozen=True)
class Data:
    """Both splits, the place they came from, and of texts the vocabulary, word by word."""

    data_set: DataSet
    train: Split
    test: Split
    source: Source
    vocabulary: tuple[str, ...] = ()


def load(
    data_set: DataSet,
    data_dir: Path | None = None,
    limit: int | None = None,
    reading: Reading | None = None,
    vocabulary: Sequence[str] | None = None,
) -> Data:
    """A data set from the first place that has it, at most ``limit`` samples of each split.

    ``find`` gives the order of the places. Of texts, ``vocabulary`` numbers the words; if it is None, it is
    trained on the whole training split, whatever the limit, so that it is always the same.

    Raises:
        FileNotFoundError: a folder that was asked for, or one of its splits, is missing.
        ValueError: a file is damaged or does not hold what the data set holds.
    """
    source = find(data_set, data_dir)
    rows = {split: _Rows(source, split, data_set) for split in ("train", data_set.test_split)}
    splits = {}
    tokenizer = None
    if data_set.kind == "text":
        tokenizer = (
            texts.train_vocabulary(rows["train"].texts(None))
            if vocabulary is None
            else texts.from_words(vocabulary)
        )
    for name, each in rows.items():
        labels, order = each.labels(limit)
        samples: Samples
        if tokenizer is None:
            samples = Images(each.pixels(order), data_set.mean, data_set.deviation)
        else:
            reading = reading or Reading()
            numbered = texts.numbered(tokenizer, each.texts(order), reading.steps)
            samples = Texts(*numbered, tokenizer.get_vocab_size() if reading.bag else None)
        splits[name] = Split(samples, labels)
    return Data(
        data_set,
        splits["train"],
        splits[data_set.test_split],
        # The rows themselves are in the tensors now.
        Source(source.kind, source.location, source.note, {}),
        () if tokenizer is None else tuple(texts.words(tokenizer)),
    )


class _Rows:
    """The rows of one split as they were found, checked column by column."""

    def __init__(self, source: Source, split: str, data_set: DataSet) -> None:
        self.rows: Any = source.splits[split]
        self.data_set = data_set
        self.place = f"{source.kind}: {split} split in {source.location}"
        wanted = {data_set.column, "label"}
        if wanted - set(self.rows.column_names):
            raise ValueError(
                f"{self.place}: expected columns {data_set.column} and label, got {self.rows.column_names}"
            )

    def labels(self, limit: int | None) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Labels int64 [n] of the first ``limit`` rows, and the numbers of those rows.

        Rows that come sorted by class are shuffled first: their beginning and their end hold a single class.
        """
        labels = np.asarray(self.rows.with_format("numpy")["label"][:])
        last = len(self.data_set.classes) - 1
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > last:
            raise ValueError(
                f"{self.place}: expected integer labels 0 to {last}, "
                f"got {labels.dtype} from {labels.min()} to {labels.max()}"
            )
        order = np.arange(len(labels))
        if labels[0] != labels[-1] and (np.diff(labels) >= 0).all():
            order = np.random.default_rng(0).permutation(order)
        order = order[:limit]
        return torch.from_numpy(labels[order].astype(np.int64)), order

    def texts(self, order: npt.NDArray[np.int64] | None) -> list[str]:
        """Texts in the order of ``order``; None: all."""
        rows = self.rows if order is None else self.rows.select(order)
        found = list(rows[self.data_set.column])
        strange = next((text for text in found if not isinstance(text, str)), None)
        if strange is not None or not found:
            raise ValueError(f"{self.place}: expected texts, got {type(strange).__name__}")
        return found

    def pixels(self, order: npt.NDArray[np.int64]) -> Tensor:
        """Images uint8 [n, channels, height, width]."""
        assert self.data_set.size is not None
        column = self.data_set.column
        undecoded = datasets.Image(decode=False)
        try:
            cells = self.rows.select(order).cast_column(column, undecoded)[column]
            images = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in cells]
        except Exception as error:  # pillow, pyarrow and datasets each raise errors of their own
            raise ValueError(f"{self.place}: expected PNG images, got {first_line(error)}") from error
        channels, height, width = self.data_set.size
        expected = [height, width] if channels == 1 else [height, width, channels]
        shapes = {(image.dtype.name, *image.shape) for image in images}
        if shapes != {("uint8", *expected)}:
            found = ", ".join(f"{dtype} {list(shape)}" for dtype, *shape in sorted(shapes, key=str))
            raise ValueError(f"{self.place}: expected images uint8 {expected}, got {found}")
        stacked = torch.from_numpy(np.stack(images))
        return stacked.unsqueeze(1) if channels == 1 else stacked.permute(0, 3, 1, 2).contiguous()
