"""Loading the compiled extension, and saying why where it cannot be loaded."""

from __future__ import annotations

import importlib
import os
import warnings
from types import ModuleType

REQUIRE = "DYNPRUNE_REQUIRE_NATIVE"

_CAUSES = (
    "likely causes: (1) dynprune was installed without a C++ compiler; (2) torch was changed after "
    "the build (reinstall with pip install --no-build-isolation); (3) DYNPRUNE_CPU_ISA names an "
    "instruction set this CPU lacks"
)

failure: str | None = None


def load() -> ModuleType | None:
    """The module ``dynprune._C``, or None after one warning (an ImportError if REQUIRE is set)."""
    global failure
    try:
        module = importlib.import_module("dynprune._C")
        module.isa()  # raises if DYNPRUNE_CPU_ISA is wrong
        return module
    except ValueError:
        raise
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    sentence = f"dynprune: the compiled kernels could not be loaded ({failure}); {_CAUSES}"
    if os.environ.get(REQUIRE, "0") not in ("", "0"):
        raise ImportError(sentence)
    warnings.warn(f"{sentence}. Slow reference ops serve instead.", RuntimeWarning, stacklevel=2)
    return None
