"""The embedded subset, and what becomes of files that hold something else than MNIST."""

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
from dynprune.experiments.data import PIXEL_MEAN, PIXEL_STD, load_mnist, normalise

DATA = os.environ.get("DYNPRUNE_DATA")


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
    data = load_mnist()
    for split, per_class in ((data.train, 1000), (data.test, 200)):
        assert split.images.shape == (10 * per_class, 1, 28, 28)
        assert split.images.dtype == torch.float32
        assert torch.equal(split.labels.bincount(), torch.full((10,), per_class))
        assert abs(split.images.mean().item()) < 0.02
        assert abs(split.images.std().item() - 1) < 0.02
        assert split.images.min().item() == pytest.approx(-PIXEL_MEAN / PIXEL_STD)
    files = list(sources.EMBEDDED_FOLDER.glob("*.parquet"))
    assert sum(file.stat().st_size for file in files) <= 2_500_000
    assert "LeCun" in (sources.EMBEDDED_FOLDER / "ATTRIBUTION.md").read_text(encoding="utf-8")


def test_normalise() -> None:
    pixels = torch.tensor([[[0, 255], [51, 102]]], dtype=torch.uint8)
    expected = torch.tensor([[[[0.0, 1.0], [0.2, 0.4]]]])
    torch.testing.assert_close(normalise(pixels), (expected - 0.1307) / 0.3081)


def test_limit_takes_the_first_images(data_dir: Path) -> None:
    everything, few = load_mnist(data_dir), load_mnist(data_dir, limit=15)
    assert (len(few.train), len(few.test)) == (15, 12)
    assert torch.equal(few.train.images, everything.train.images[:15])
    assert torch.equal(few.train.labels, everything.train.labels[:15])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.rename_columns(["picture", "label"]), "expected columns image and label, got"),
        (lambda t: _with_labels(t, 10), "expected integer labels 0 to 9, got int64 from 10 to 10"),
        (lambda t: _with_labels(t, -1), "expected integer labels 0 to 9, got int64 from -1 to -1"),
        (lambda t: _with_image(t, b"not a picture"), "expected PNG images, got "),
        (lambda t: _with_image(t, _png("L", 8, 9)), r"got uint8 \[8, 9\]"),
        (lambda t: _with_image(t, _png("RGB", 28, 28)), r"got uint8 \[28, 28, 3\]"),
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
        load_mnist(data_dir)


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
        kept = pq.read_table(sources.EMBEDDED_FOLDER / f"{split}.parquet")
        assert made.equals(kept, check_metadata=True)


def _with_labels(table: pa.Table, label: int) -> pa.Table:
    return table.set_column(1, "label", pa.array([label] * len(table), pa.int64()))


def _with_image(table: pa.Table, png: bytes) -> pa.Table:
    column = pa.array([{"bytes": png, "path": None}] * len(table), table.schema.field(0).type)
    return table.set_column(0, "image", column)


def _png(mode: str, height: int, width: int) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG")
    return file.getvalue()


def _features_of(table: pa.Table, path: Path) -> dict[bytes, bytes] | None:
    """The hub's feature metadata, unless the columns or labels no longer fit it."""
    original = pq.read_schema(path)
    labels = table["label"].to_pylist()
    fits = table.column_names == original.names and all(0 <= label < 10 for label in labels)
    return original.metadata if fits else None
