"""Small data sets on disk, and a hub that is never asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("datasets")

import pyarrow as pa
import pyarrow.parquet as pq

from dynprune.experiments import sources

SplitTable = Callable[[str, int], pa.Table]


@pytest.fixture(autouse=True)
def _no_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No network, no data of the surroundings, and torch as it was."""

    def unreachable() -> None:
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(sources, "_probe_hub", unreachable)
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.delenv("DYNPRUNE_DATA", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def some_rows() -> SplitTable:
    """The first rows of an embedded split, in the hub's schema."""

    def rows(split: str, count: int) -> pa.Table:
        return pq.read_table(sources.EMBEDDED_FOLDER / f"{split}.parquet").slice(0, count)

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
