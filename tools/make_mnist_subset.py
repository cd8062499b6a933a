"""Make the embedded MNIST subset: 1,000 training and 200 test images of each class.

    python tools/make_mnist_subset.py --data-dir DIR

``DIR/mnist`` holds the full set in the hub's schema (``train-*.parquet``, ``test-*.parquet``:
image, label). Of each class the script keeps rows at even distances over the whole split, because
the second half of the test split is harder than the first. The rows keep their order and their PNG
bytes, so the pixels are those of the source. The script uses no random numbers, so the same source
and the same pyarrow give the same files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

CLASSES = 10
IMAGES_PER_CLASS = {"train": 1000, "test": 200}
LARGEST_TOTAL_BYTES = 2_500_000
DEFAULT_OUTPUT = Path(__file__).parents[1] / "dynprune" / "experiments" / "assets" / "mnist"


def read_split(folder: Path, split: str) -> pa.Table:
    """All rows of one split, from every ``<split>-*.parquet`` in ``folder``."""
    files = sorted(folder.glob(f"{split}-*.parquet"))
    if not files:
        raise FileNotFoundError(
            f"make_mnist_subset: expected {split}-*.parquet in {folder}, got no such file"
        )
    return pa.concat_tables([pq.read_table(file) for file in files])


def even_rows(labels: npt.NDArray[np.int64], per_class: int) -> npt.NDArray[np.int64]:
    """Ascending row numbers, ``per_class`` of each class, evenly spaced among its rows."""
    chosen = []
    for label in range(CLASSES):
        rows = np.flatnonzero(labels == label)
        if len(rows) < per_class:
            raise ValueError(
                f"make_mnist_subset: expected at least {per_class} images of class {label}, got {len(rows)}"
            )
        chosen.append(rows[np.arange(per_class) * len(rows) // per_class])
    return np.sort(np.concatenate(chosen))


def write_subset(source: Path, target: Path) -> int:
    """Write both splits of the subset to ``target``; returns their size in bytes."""
    target.mkdir(parents=True, exist_ok=True)
    total = 0
    for split, per_class in IMAGES_PER_CLASS.items():
        table = read_split(source, split)
        subset = table.take(even_rows(table["label"].to_numpy(), per_class))
        path = target / f"{split}.parquet"
        pq.write_table(
            subset,
            path,
            compression="zstd",
            compression_level=22,
            row_group_size=len(subset),
            data_page_size=LARGEST_TOTAL_BYTES,
            use_dictionary=["label"],
        )
        total += path.stat().st_size
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded MNIST subset.")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder that holds mnist/*.parquet")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder to write to")
    arguments = parser.parse_args()
    total = write_subset(arguments.data_dir / "mnist", arguments.output)
    if total > LARGEST_TOTAL_BYTES:
        raise SystemExit(f"make_mnist_subset: expected at most {LARGEST_TOTAL_BYTES} bytes, got {total}")
    print(f"{arguments.output}: {total} bytes")


if __name__ == "__main__":
    main()
