"""Where a data set comes from: a folder, the hub, or, for MNIST, the subset inside the package."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub

from dynprune.experiments.data_sets import DataSet

PROBE_SECONDS = 5.0
ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Source:
    """One place that gave the data.

    ``kind`` is ``"--data-dir"``, ``"DYNPRUNE_DATA"``, ``"hub"`` or ``"embedded"``; ``location`` is
    the folder or the hub name; ``note`` says why earlier places were passed over and is empty if
    there was no reason to.
    """

    kind: str
    location: str
    note: str
    splits: Mapping[str, Any]

    def describe(self) -> str:
        """One sentence for the user."""
        return f"{self.kind} ({self.location})" + (f"; {self.note}" if self.note else "")


def find(data_set: DataSet, data_dir: Path | None = None, environ: Mapping[str, str] | None = None) -> Source:
    """A data set from the first of: ``data_dir``, ``$DYNPRUNE_DATA``, the hub, an embedded subset.

    The first two are folders that hold ``NAME/SPLIT-*.parquet``. Naming one of them is a demand: if it is
    missing or damaged, that is an error and never a reason to go on to the next place.

    Raises:
        FileNotFoundError: the named folder or one of its splits is missing, or no place has the data set.
        ValueError: a file cannot be read as parquet.
    """
    environment = os.environ if environ is None else environ
    if data_dir is not None:
        return _from_folder(data_set, "--data-dir", data_dir / data_set.name, "{split}-*.parquet")
    if environment.get("DYNPRUNE_DATA"):
        folder = Path(environment["DYNPRUNE_DATA"]) / data_set.name
        return _from_folder(data_set, "DYNPRUNE_DATA", folder, "{split}-*.parquet")
    try:
        return Source("hub", data_set.hub, "", _load_hub(data_set.hub))
    except Exception as error:  # the hub, the network and the cache each raise errors of their own
        note = f"the hub gave no {data_set.hub}: {first_line(error)}"
        if not (ASSETS / data_set.name).is_dir():
            raise FileNotFoundError(
                f"{data_set.name}: expected the data set in --data-dir, DYNPRUNE_DATA or the hub, got none; "
                f"{note}"
            ) from error
    embedded = _from_folder(data_set, "embedded", ASSETS / data_set.name, "{split}.parquet")
    return Source(embedded.kind, embedded.location, note, embedded.splits)


def first_line(error: BaseException) -> str:
    """The type and the first line of an error, to quote it inside another sentence."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _from_folder(data_set: DataSet, kind: str, folder: Path, pattern: str) -> Source:
    if not folder.is_dir():
        raise FileNotFoundError(f"{kind}: expected a folder {folder}, got no such folder")
    files = {}
    for split in ("train", data_set.test_split):
        name = pattern.format(split=split)
        files[split] = [str(path) for path in sorted(folder.glob(name))]
        if not files[split]:
            raise FileNotFoundError(f"{kind}: expected {name} in {folder}, got no such file")
    datasets.disable_progress_bars()
    # Its log repeats the error that is raised below.
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        # A cache of its own: a stale or unwritable one can then neither hide nor cause an error.
        with tempfile.TemporaryDirectory() as cache:
            splits = datasets.load_dataset(
                "parquet",
                data_files=files,
                cache_dir=cache,
                keep_in_memory=True,
                batch_size=1000,  # its default is refused where a file is empty
            )
    except Exception as error:  # datasets wraps the errors of pyarrow and of the file system
        cause = error.__cause__ or error
        raise ValueError(
            f"{kind}: expected readable parquet files in {folder}, got {first_line(cause)}"
        ) from error
    return Source(kind, str(folder), "", splits)


def _load_hub(name: str) -> Mapping[str, Any]:
    if not huggingface_hub.is_offline_mode():
        _probe_hub(name)
    splits: Mapping[str, Any] = datasets.load_dataset(name)
    return splits


def _probe_hub(name: str) -> None:
    """One cheap request with a deadline.

    Without a network ``load_dataset`` alone retries for half a minute.
    """
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            huggingface_hub.HfApi().dataset_info(name, timeout=PROBE_SECONDS)
        except Exception as error:  # whatever it is, it is raised again below
            failures.append(error)

    # A thread, because the timeout of the request does not cover the name look-up.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * PROBE_SECONDS)
    if thread.is_alive():
        raise TimeoutError(f"no answer in {2 * PROBE_SECONDS:g} s")
    if failures:
        raise failures[0]
