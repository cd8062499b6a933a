"""Where the data comes from, in which order, and what is said about it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynprune.experiments import sources
from dynprune.experiments.data_sets import IMDB, MNIST, SST2
from dynprune.experiments.sources import find

SplitTable = Callable[[str, int], pa.Table]

# Bound before the fixtures replace it.
probe_hub = sources._probe_hub


def test_data_dir_comes_before_everything(data_dir: Path, tmp_path: Path) -> None:
    found = find(MNIST, data_dir, {"DYNPRUNE_DATA": str(tmp_path / "not there")})
    assert (found.kind, found.location, found.note) == ("--data-dir", str(data_dir / "mnist"), "")
    assert {name: len(rows) for name, rows in found.splits.items()} == {"train": 24, "test": 12}


def test_environment_comes_before_the_hub(data_dir: Path) -> None:
    found = find(MNIST, None, {"DYNPRUNE_DATA": str(data_dir)})
    assert found.kind == "DYNPRUNE_DATA"
    assert found.describe() == f"DYNPRUNE_DATA ({data_dir / 'mnist'})"


def test_hub_comes_before_the_embedded_subset(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = find(MNIST, data_dir, {}).splits
    asked: list[Any] = []

    def load_dataset(*arguments: Any) -> Any:
        asked.append(arguments)
        return splits

    monkeypatch.setattr(sources, "_probe_hub", lambda name: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = find(MNIST, None, {"DYNPRUNE_DATA": ""})
    assert (found.kind, found.location, found.note) == ("hub", "ylecun/mnist", "")
    assert asked == [("ylecun/mnist",)]


def test_embedded_subset_is_last_and_says_why() -> None:
    found = find(MNIST, None, {})
    assert found.kind == "embedded"
    assert "the hub gave no ylecun/mnist: ConnectionError: no network in tests" in found.describe()
    assert {name: len(rows) for name, rows in found.splits.items()} == {
        "train": 10000,
        "test": 2000,
    }


def test_offline_mode_asks_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, **options: Any) -> Any:
        if name == "ylecun/mnist":
            raise ConnectionError("offline, not in the cache")
        return real(name, **options)

    real = datasets.load_dataset
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    monkeypatch.setattr(sources, "_probe_hub", lambda name: pytest.fail("asked the hub"))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "not in the cache" in find(MNIST, None, {}).note


def test_probe_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: release.wait(10))
    monkeypatch.setattr(sources, "PROBE_SECONDS", 0.05)
    started = time.perf_counter()
    try:
        with pytest.raises(TimeoutError, match=r"no answer in 0\.1 s"):
            probe_hub("ylecun/mnist")
    finally:
        release.set()
    assert time.perf_counter() - started < 5


def test_probe_passes_the_error_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("name not known")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    with pytest.raises(OSError, match="name not known"):
        probe_hub("ylecun/mnist")


@pytest.mark.parametrize("named_by", ["--data-dir", "DYNPRUNE_DATA"])
def test_missing_folder_is_an_error(named_by: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{named_by}: expected a folder .*mnist, got no"):
        _find(named_by, tmp_path)


@pytest.mark.parametrize("named_by", ["--data-dir", "DYNPRUNE_DATA"])
def test_missing_split_is_an_error(named_by: str, data_dir: Path) -> None:
    (data_dir / "mnist" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{named_by}: expected test-\*.parquet in"):
        _find(named_by, data_dir)


@pytest.mark.parametrize("damage", ["empty", "cut short", "not parquet", "bytes changed"])
def test_damaged_file_is_an_error(damage: str, data_dir: Path) -> None:
    path = data_dir / "mnist" / "train-00000-of-00002.parquet"
    content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "cut short": content[: len(content) // 2],
            "not parquet": b"<html>404</html>" * 100,
            "bytes changed": content[:4] + bytes(len(content) - 2000) + content[-1996:],
        }[damage]
    )
    with pytest.raises(ValueError, match=r"--data-dir: expected readable parquet files in .*, got "):
        find(MNIST, data_dir, {})


def test_file_without_rows_is_an_error(data_dir: Path, some_rows: SplitTable) -> None:
    path = data_dir / "mnist" / "test-00000-of-00001.parquet"
    pq.write_table(some_rows("test", 0), path)
    message = r'--data-dir: expected readable .*"test" corresponds to no data'
    with pytest.raises(ValueError, match=message):
        find(MNIST, data_dir, {})


def _find(named_by: str, folder: Path) -> None:
    if named_by == "--data-dir":
        find(MNIST, folder, {})
    else:
        find(MNIST, None, {"DYNPRUNE_DATA": str(folder)})


def test_nothing_is_embedded_of_other_data_sets() -> None:
    message = "imdb: expected the data set in --data-dir, DYNPRUNE_DATA or the hub, got none; the hub gave no"
    with pytest.raises(FileNotFoundError, match=message):
        find(IMDB, None, {})


def test_the_test_split_may_have_another_name(text_dir: Path) -> None:
    assert set(find(SST2, text_dir, {}).splits) == {"train", "validation"}
