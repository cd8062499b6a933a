"""Writing of results.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynprune.experiments.catalogue import find_experiment
from dynprune.experiments.records import bars_record, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json({"value": 1}, path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"value": float("nan")}, path)
    assert json.loads(path.read_text()) == {"value": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json({"value": 1}, path)
    write_json({"value": 2}, path)
    assert json.loads(path.read_text()) == {"value": 2}


def test_bars() -> None:
    record = bars_record(find_experiment("imdb-bilstm"), {"eval_accuracy": 0.87, "eval_loss": 0.36})
    assert record["accuracy"] == {"least": 0.87, "got": 0.87, "met": True}
    assert record["loss"] == {"most": 0.35, "got": 0.36, "met": False}
    assert bars_record(find_experiment("mnist-mlp"), {"eval_accuracy": 0.1, "eval_loss": 9.0}) == {}
