"""Weights on disk: of finished models, of trainings that may go on, and those that come with the project."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def save(tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, Any]) -> None:
    """Write ``tensors`` and plain data ``about`` them; a reader finds the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    metadata = {name: json.dumps(value) for name, value in about.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)
    os.replace(partial, path)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file of :func:`save`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights: expected a file {path}, got no such file")
    try:
        with safe_open(path, framework="pt") as file:
            about = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"weights: expected a safetensors file of dynprune at {path}, got {error}"
        ) from error


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load weights of any floating dtype, named as in ``model``'s ``state_dict()``.

    Raises:
        ValueError: a name or a shape is another; ``path`` is what the message calls the file.
    """
    check_fit(model, tensors, path)
    model.load_state_dict(dict(tensors))


def check_fit(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise what :func:`load_into` would raise, and load nothing."""
    own = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    got = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if own != got:
        name = min(n for n in own.keys() | got.keys() if own.get(n) != got.get(n))
        raise ValueError(f"weights: expected {name} {own.get(name)} in {path}, got {got.get(name)}")


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating tensors in float16, for files that are small.

    Raises:
        ValueError: a value is not finite in float16.
    """
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }
    for name, tensor in halves.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"weights: expected values within float16 in {name}, got larger ones")
    return halves
