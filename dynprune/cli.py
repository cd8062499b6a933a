"""The command ``dynprune``."""

from __future__ import annotations

import sys

import torch

# What the extra `experiments` brings, by the names of the modules.
EXTRA_MODULES = frozenset(
    {
        "datasets",
        "huggingface_hub",
        "psutil",
        "pynvml",
        "rich",
        "safetensors",
        "tokenizers",
        "torchmetrics",
        "typer",
    }
)


def main() -> None:
    """Run the command line; without the extra ``experiments`` say so and end with status 2."""
    # Before anything starts a thread: the threads of the pool inherit the setting.
    torch.set_flush_denormal(True)
    try:
        from dynprune.experiments.commands import app

        app()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA_MODULES:
            raise
        print(
            f"error: dynprune: expected {missing} to be installed, got no such module; run "
            "pip install 'dynprune[experiments]'",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
