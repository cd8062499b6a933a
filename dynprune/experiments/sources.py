"""Where MNIST comes from: a folder, the hub, or the subset inside the package."""

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

HUB_NAME = "ylecun/mnist"
PROBE_SECONDS = 5.0
EMBEDDED_FOLDER = Path(__file__).parent / "assets" / "mnist"
SPLITS = ("train", "test")


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


def find_mnist(data_dir: Path | None = None, environ: Mapping[str, str] | None = None) -> Source:
    """MNIST from the first of: ``data_dir``, ``$DYNPRUNE_DATA``, the hub, the embedded subset.

    The first two are folders that hold ``mnist/train-*.parquet`` and ``mnist/test-*.parquet``.
    Naming one of them is a demand: if it is missing or damaged, that is an error and never a reason
    to go on to the next place.

    Raises:
        FileNotFoundError: the named folder or one of its splits is missing.
        ValueError: a file cannot be read as parquet.
    """
    environment = os.environ if environ is None else environ
    if data_dir is not None:
        return _from_folder("--data-dir", data_dir / "mnist", "{split}-*.parquet")
    if environment.get("DYNPRUNE_DATA"):
        folder = Path(environment["DYNPRUNE_DATA"]) / "mnist"
        return _from_folder("DYNPRUNE_DATA", folder, "{split}-*.parquet")
    try:
        return Source("hub", HUB_NAME, "", _load_hub())
    except Exception as error:  # the hub, the network and the cache each raise errors of their own
        note = f"the hub gave no {HUB_NAME}: {first_line(error)}"
    embedded = _from_folder("embedded", EMBEDDED_FOLDER, "{split}.parquet")
    return Source(embedded.kind, embedded.location, note, embedded.splits)


def first_line(error: BaseException) -> str:
    """The type and the first line of an error, to quote it inside another sentence."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _from_folder(kind: str, folder: Path, pattern: str) -> Source:
    if not folder.is_dir():
        raise FileNotFoundError(f"{kind}: expected a folder {folder}, got no such folder")
    files = {}
    for split in SPLITS:
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


def _load_hub() -> Mapping[str, Any]:
    if not huggingface_hub.is_offline_mode():
        _probe_hub()
    splits: Mapping[str, Any] = datasets.load_dataset(HUB_NAME)
    return splits


def _probe_hub() -> None:
    """One cheap request with a deadline.

    Without a network ``load_dataset`` alone retries for half a minute.
    """
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            huggingface_hub.HfApi().dataset_info(HUB_NAME, timeout=PROBE_SECONDS)
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
