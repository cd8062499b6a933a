"""Which kernels serve the ops on CUDA devices: the compiled ones, or Triton's."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

from dynprune.ops import packing, reference
from dynprune.ops.checks import expect
from dynprune.ops.schemas import NAMESPACE, SCHEMAS

CHOICE = "DYNPRUNE_BACKEND"
OLDEST_TRITON = (3, 6)
# Op -> module of dynprune.ops.triton that has it.
_TRITON = {
    "linear": "linear",
    "conv2d": "conv2d",
    "lstm": "lstm",
    "sparse_input_linear": "sparse_input",
}
# What PyTorch's ops do there where no kernel of ours does.
_TORCH = {"max_pool2d": reference.max_pool2d, "gather_into": packing.gather_into}


def requested() -> str:
    """What the environment asks for: ``"cuda"``, ``"triton"``, or nothing.

    Raises:
        ValueError: it asks for something else.
    """
    name = os.environ.get(CHOICE, "")
    expect(name in ("", "cuda", "triton"), CHOICE, "cuda or triton", name)
    return name


def has_kernel(op: str) -> bool:
    """Whether an op has a kernel for CUDA devices by now."""
    found: bool = torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{op}", "CUDA")
    return found


def why_no_triton() -> str | None:
    """Why Triton kernels cannot serve in this installation; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'dynprune[triton]')"
    version = importlib.metadata.version("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRITON:
        return f"triton {version} is older than {'.'.join(map(str, OLDEST_TRITON))}"
    if importlib.util.find_spec("dynprune.kernels_triton") is None:
        return "dynprune.kernels_triton is not installed: install dynprune anew"
    if torch.version.cuda is None and requested() != "triton":
        return f"torch {torch.__version__} is no CUDA build"
    return None


def register(library: Any) -> dict[str, str]:
    """Give every op that has no CUDA kernel yet one, or all of them Triton's where the environment says so.

    Triton is imported when a kernel is first called.

    Returns:
        Op -> the backend that serves it on CUDA devices, ``"cuda"``, ``"triton"`` or ``"torch"``.
    """
    serving = {op: "cuda" for op in SCHEMAS if has_kernel(op)}
    choice = requested()
    if choice != "cuda" and why_no_triton() is None:
        for op, module in _TRITON.items():
            if choice == "triton" or op not in serving:
                library.impl(op, _lazily(module, op), "CUDA", allow_override=op in serving)
                serving[op] = "triton"
    for op, function in _TORCH.items():
        if serving and op not in serving:
            library.impl(op, function, "CUDA")
            serving[op] = "torch"
    return serving


def _lazily(module: str, op: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(f"dynprune.ops.triton.{module}"), op)(*args, **kwargs)

    return run


def describe(serving: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What ``dynprune info`` says of ``cuda`` and ``triton``: whether they serve an op, and why not."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    found = {}
    for name in ("cuda", "triton"):
        ops = [op for op, backend in serving.items() if backend == name]
        if ops:
            reason = f"{', '.join(ops)}; {device}"
        elif name == "cuda":
            reason = "the extension has no CUDA kernels" if not serving else f"{CHOICE}=triton"
        else:
            reason = why_no_triton() or f"the compiled kernels serve; {CHOICE}=triton chooses these"
        found[name] = {"available": bool(ops), "reason": reason}
    return found
