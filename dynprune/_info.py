"""What this installation is made of."""

from __future__ import annotations

import platform
from typing import Any

import torch

from dynprune import _native
from dynprune._version import __version__
from dynprune.ops import native, on_cuda
from dynprune.ops.backends import describe


def info() -> dict[str, Any]:
    """Versions and backends of this installation, as plain data.

    Returns:
        A dict with ``dynprune``, ``torch``, ``python``, ``platform``, ``threads`` and ``backends``:
        for each backend ``{"available": bool, "reason": str}``.
    """
    backends: dict[str, dict[str, Any]] = {
        "reference": {"available": True, "reason": "plain torch, always there"}
    }
    if native is None:
        backends["cpu"] = {"available": False, "reason": _native.failure or "not compiled"}
    else:
        own = {"avx2": "a micro-kernel"}
        product = "brgemm" if native.has_brgemm() else own.get(native.isa(), "BLAS")
        reason = (
            f"{native.isa()} kernels on {product}, {native.threads()} thread(s), "
            f"built for torch {native.TORCH_VERSION}"
        )
        backends["cpu"] = {"available": True, "reason": reason}
    backends |= describe(on_cuda)
    return {
        "dynprune": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "backends": backends,
    }
