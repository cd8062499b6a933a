"""Finished runs from disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NEEDED = ("experiment", "runs", "data", "config", "machine", "versions", "training")


def read_results(folder: Path) -> dict[str, Any]:
    """The contents of ``results.json`` in a run's ``folder``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not what an experiment writes.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"report: expected {path}, got no such file")
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"report: expected JSON in {path}, got {error}") from error
    missing = [name for name in NEEDED if not isinstance(results, dict) or name not in results]
    if missing or "classes" not in results["data"]:
        raise ValueError(f"report: expected {path} with {', '.join(NEEDED)}, got another file")
    return results
