"""The kernels compile for aarch64 as well, by another compiler (clang, as zig brings it along)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "kernels" / "cpu").glob("*.cpp"))

if importlib.util.find_spec("ziglang") is None:
    pytest.skip("ziglang is not installed", allow_module_level=True)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_for_aarch64(source: Path, tmp_path: Path) -> None:
    flags = ["-std=c++20", "-O0", "-Wno-psabi", "-DDYNPRUNE_ISA=plain", f"-I{source.parent}"]
    done = subprocess.run(
        [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu", *flags, "-c", source,
         "-o", tmp_path / "object.o"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    # e_machine of the ELF header: 183 is aarch64.
    assert int.from_bytes((tmp_path / "object.o").read_bytes()[18:20], "little") == 183
