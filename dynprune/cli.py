"""The command ``dynprune``."""

from __future__ import annotations

import sys

import torch

# What the extras bring, by the names of the modules.
EXTRAS = {
    "experiments": {
        "datasets",
        "huggingface_hub",
        "psutil",
        "pynvml",
        "rich",
        "safetensors",
        "tokenizers",
        "torchmetrics",
        "typer",
    },
    "reports": {"jinja2", "matplotlib"},
}


def main() -> None:
    """Run the command line; where an extra is missing say so and end with status 2."""
    # Before anything starts a thread: the threads of the pool inherit the setting.
    torch.set_flush_denormal(True)
    try:
        from dynprune.experiments.commands import app

        app()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extra = next((name for name, modules in EXTRAS.items() if missing in modules), None)
        if extra is None:
            raise
        print(
            f"error: dynprune: expected {missing} to be installed, got no such module; run "
            f"pip install 'dynprune[{extra}]'",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
