"""Small data sets on disk, and a hub that is never asked."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("datasets")

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dynprune.experiments import sources

SplitTable = Callable[[str, int], pa.Table]


@pytest.fixture(autouse=True)
def _no_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No network, no data of the surroundings, one thread, and torch as it was afterwards."""

    def unreachable(name: str) -> None:
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(sources, "_probe_hub", unreachable)
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.delenv("DYNPRUNE_DATA", raising=False)
    threads = torch.get_num_threads()
    # Work this small is done before two threads on a busy machine have met.
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def some_rows() -> SplitTable:
    """The first rows of an embedded split, in the hub's schema."""

    def rows(split: str, count: int) -> pa.Table:
        return pq.read_table(sources.ASSETS / "mnist" / f"{split}.parquet").slice(0, count)

    return rows


@pytest.fixture
def data_dir(tmp_path: Path, some_rows: SplitTable) -> Path:
    """A folder as ``--data-dir`` expects it: 24 training images in two files, 12 test images."""
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    train = some_rows("train", 24)
    pq.write_table(train.slice(0, 20), folder / "train-00000-of-00002.parquet")
    pq.write_table(train.slice(20), folder / "train-00001-of-00002.parquet")
    pq.write_table(some_rows("test", 12), folder / "test-00000-of-00001.parquet")
    return folder.parent


def png(mode: str, height: int, width: int, value: int = 0) -> bytes:
    """An image of one grey value, or of one value in all channels."""
    file = io.BytesIO()
    colour = value if mode == "L" else (value,) * 3
    Image.new(mode, (width, height), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def colour_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``--data-dir`` with 40 training and 20 test images of CIFAR-10's size; class c has grey 20 c."""
    folder = tmp_path_factory.mktemp("colour") / "cifar10"
    folder.mkdir()
    for split, count in (("train", 40), ("test", 20)):
        labels = [i % 10 for i in range(count)]
        images = [{"bytes": png("RGB", 32, 32, 20 * label), "path": None} for label in labels]
        pq.write_table(pa.table({"img": images, "label": labels}), folder / f"{split}-00000-of-00001.parquet")
    return folder.parent


@pytest.fixture(scope="session")
def text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``--data-dir`` with IMDB and SST-2: 60 training and 24 test texts; good words are class 1."""
    root = tmp_path_factory.mktemp("texts")
    for name, column, test in (("imdb", "text", "test"), ("sst2", "sentence", "validation")):
        (root / name).mkdir()
        for split, count in (("train", 60), (test, 24)):
            labels = [i % 2 for i in range(count)]
            texts = [
                f"Film {i % 7}<br />was " + " ".join([("bad", "good")[label]] * (1 + i % 5))
                for i, label in enumerate(labels)
            ]
            table = pa.table({column: texts, "label": labels})
            pq.write_table(table, root / name / f"{split}-00000-of-00001.parquet")
    return root
