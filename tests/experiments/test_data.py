"""Data sets as tensors, and what becomes of files that hold something else."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dynprune.experiments import sources
from dynprune.experiments.data import Data, Reading, load
from dynprune.experiments.data_sets import CIFAR10, IMDB, MNIST, SST2
from dynprune.experiments.samples import Images, Split, Texts
from tests.experiments.conftest import png

DATA = os.environ.get("DYNPRUNE_DATA")
EMBEDDED = sources.ASSETS / "mnist"


def pixels_of(split: Split) -> torch.Tensor:
    (images,) = split.samples.inputs(split.rows)
    return images


@pytest.fixture(scope="module")
def subset_tool() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "make_mnist_subset.py"
    spec = importlib.util.spec_from_file_location("make_mnist_subset", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_embedded_subset() -> None:
    data = load(MNIST)
    for split, per_class in ((data.train, 1000), (data.test, 200)):
        images = pixels_of(split)
        assert images.shape == (10 * per_class, 1, 28, 28)
        assert images.dtype == torch.float32
        assert torch.equal(split.labels.bincount(), torch.full((10,), per_class))
        assert abs(images.mean().item()) < 0.02
        assert abs(images.std().item() - 1) < 0.02
        assert images.min().item() == pytest.approx(-0.1307 / 0.3081)
    files = list(EMBEDDED.glob("*.parquet"))
    assert sum(file.stat().st_size for file in files) <= 2_500_000
    assert "LeCun" in (EMBEDDED / "ATTRIBUTION.md").read_text(encoding="utf-8")


def test_normalise() -> None:
    images = Images(torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8), (0.1, 0.2), (0.5, 0.25))
    expected = torch.tensor([[[[-0.2, 1.8]], [[0.0, 0.8]]]])
    torch.testing.assert_close(images.inputs(torch.tensor([0]))[0], expected)
    (changed,) = images.inputs(torch.tensor([0, 0]), lambda samples: (samples[0] * 0,))
    assert changed.shape == (2, 2, 1, 2)
    assert changed[1, 0, 0, 0].item() == pytest.approx(-0.2)


def test_limit_takes_the_first_images(data_dir: Path) -> None:
    everything, few = load(MNIST, data_dir), load(MNIST, data_dir, limit=15)
    assert (len(few.train), len(few.test)) == (15, 12)
    assert torch.equal(pixels_of(few.train), pixels_of(everything.train)[:15])
    assert torch.equal(few.train.labels, everything.train.labels[:15])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.rename_columns(["picture", "label"]), "expected columns image and label, got"),
        (lambda t: _with_labels(t, 10), "expected integer labels 0 to 9, got int64 from 10 to 10"),
        (lambda t: _with_labels(t, -1), "expected integer labels 0 to 9, got int64 from -1 to -1"),
        (lambda t: _with_image(t, b"not a picture"), "expected PNG images, got "),
        (lambda t: _with_image(t, png("L", 8, 9)), r"got uint8 \[8, 9\]"),
        (lambda t: _with_image(t, png("RGB", 28, 28)), r"got uint8 \[28, 28, 3\]"),
    ],
    ids=["columns", "label 10", "label -1", "broken png", "small images", "colour"],
)
def test_other_contents_are_an_error(
    change: Callable[[pa.Table], pa.Table], message: str, data_dir: Path
) -> None:
    # Both splits, because datasets itself refuses splits with different columns.
    for path in (data_dir / "mnist").iterdir():
        table = change(pq.read_table(path))
        pq.write_table(table.replace_schema_metadata(_features_of(table, path)), path)
    with pytest.raises(ValueError, match=rf"^--data-dir: train split in .*: .*{message}"):
        load(MNIST, data_dir)


def test_colour_images(colour_dir: Path) -> None:
    data = load(CIFAR10, colour_dir)
    assert pixels_of(data.train).shape == (40, 3, 32, 32)
    grey = pixels_of(data.test)[3].flatten(1)[:, 0]
    expected = [(60 / 255 - m) / d for m, d in zip(CIFAR10.mean, CIFAR10.deviation, strict=True)]
    assert grey.tolist() == pytest.approx(expected, abs=1e-6)
    assert data.test.labels[3] == 3


def _text(data: Data, split: Split, row: int) -> list[str]:
    assert isinstance(split.samples, Texts)
    tokens, lengths = split.samples.inputs(torch.tensor([row]))
    return [data.vocabulary[token] for token in tokens[0, : lengths[0]].tolist()]


def test_texts(text_dir: Path) -> None:
    data = load(IMDB, text_dir)
    assert data.vocabulary[:2] == ("[PAD]", "[UNK]")
    assert _text(data, data.train, 3) == ["film", "3", "was", "good", "good", "good", "good"]
    tokens, lengths = data.test.samples.inputs(torch.tensor([0, 3]))
    assert lengths.tolist() == [4, 7]
    assert tokens.shape == (2, 7)
    assert tokens[0, 4:].tolist() == [0, 0, 0]


def test_long_texts_keep_their_end(text_dir: Path) -> None:
    data = load(IMDB, text_dir, reading=Reading(steps=4))
    assert _text(data, data.train, 4) == ["film", "bad", "bad", "bad"]


def test_vocabulary_does_not_depend_on_the_limit(text_dir: Path) -> None:
    everything, few = load(SST2, text_dir), load(SST2, text_dir, limit=10)
    assert few.vocabulary == everything.vocabulary
    assert (len(few.train), len(few.test)) == (10, 10)
    given = load(SST2, text_dir, vocabulary=["[PAD]", "[UNK]", "good"])
    assert _text(given, given.train, 1) == ["[UNK]", "[UNK]", "[UNK]", "good", "good"]


def test_bags_of_words(text_dir: Path) -> None:
    data = load(IMDB, text_dir, reading=Reading(bag=True))
    (bags,) = data.train.samples.inputs(torch.tensor([3, 0]))
    assert bags.shape == (2, len(data.vocabulary))
    found = {data.vocabulary[word] for word in bags[0].nonzero().flatten().tolist()}
    assert found == {"film", "3", "was", "good"}
    assert bags[1].sum() == 4


def test_rows_sorted_by_class_are_shuffled(text_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "imdb").mkdir()
    for path in (text_dir / "imdb").iterdir():
        pq.write_table(pq.read_table(path).sort_by("label"), tmp_path / "imdb" / path.name)
    assert 2 <= load(IMDB, tmp_path, limit=10).train.labels.sum() <= 8


def test_other_columns_than_texts_are_an_error(text_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "imdb").mkdir()
    for path in (text_dir / "imdb").iterdir():
        labels = pq.read_table(path)["label"]
        pq.write_table(pa.table({"text": labels, "label": labels}), tmp_path / "imdb" / path.name)
    with pytest.raises(ValueError, match=r"^--data-dir: train split in .*: expected texts, got int"):
        load(IMDB, tmp_path)


def test_even_rows(subset_tool: ModuleType) -> None:
    labels = np.repeat(np.arange(10), 4)[np.arange(40).reshape(10, 4).T.ravel()]
    rows = subset_tool.even_rows(labels, 2)
    # Class c stands at rows c, c + 10, c + 20, c + 30; the first and third of each are taken.
    assert rows.tolist() == [*range(10), *range(20, 30)]


def test_even_rows_need_enough_images(subset_tool: ModuleType) -> None:
    with pytest.raises(ValueError, match="expected at least 3 images of class 0, got 2"):
        subset_tool.even_rows(np.repeat(np.arange(10), 2), 3)


@pytest.mark.skipif(not DATA, reason="needs the full set in DYNPRUNE_DATA")
def test_subset_is_what_the_tool_makes(subset_tool: ModuleType, tmp_path: Path) -> None:
    assert DATA is not None
    subset_tool.write_subset(Path(DATA) / "mnist", tmp_path)
    for split in ("train", "test"):
        made = pq.read_table(tmp_path / f"{split}.parquet")
        kept = pq.read_table(EMBEDDED / f"{split}.parquet")
        assert made.equals(kept, check_metadata=True)


def _with_labels(table: pa.Table, label: int) -> pa.Table:
    return table.set_column(1, "label", pa.array([label] * len(table), pa.int64()))


def _with_image(table: pa.Table, png: bytes) -> pa.Table:
    column = pa.array([{"bytes": png, "path": None}] * len(table), table.schema.field(0).type)
    return table.set_column(0, "image", column)


def _features_of(table: pa.Table, path: Path) -> dict[bytes, bytes] | None:
    """The hub's feature metadata, unless the columns or labels no longer fit it."""
    original = pq.read_schema(path)
    labels = table["label"].to_pylist()
    fits = table.column_names == original.names and all(0 <= label < 10 for label in labels)
    return original.metadata if fits else None
