"""The rules between the folders, which no compiler checks."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNELS = sorted(p for p in (ROOT / "kernels").rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"})
TORCH_HEADER = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|caffe2|pybind11|Python\.h)')


def listed_sources() -> set[str]:
    return set(
        re.findall(r"\b(?:kernels|csrc|tests)/[\w/]+\.(?:cpp|cu)\b", (ROOT / "CMakeLists.txt").read_text())
    )


def tracked_files() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(name) for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_kernels_include_no_torch_header() -> None:
    assert KERNELS
    offenders = [str(p.relative_to(ROOT)) for p in KERNELS if TORCH_HEADER.search(p.read_text())]
    assert offenders == []


@pytest.mark.parametrize(
    "line", ["#include <ATen/ATen.h>", '# include "torch/all.h"', "#include <c10/util/Half.h>"]
)
def test_a_torch_header_would_be_noticed(line: str) -> None:
    assert TORCH_HEADER.search(line)


def test_triton_kernels_import_no_torch() -> None:
    sources = sorted((ROOT / "kernels" / "triton").glob("*.py"))
    assert sources
    assert [
        p.name for p in sources if re.search(r"^\s*(import|from) (torch|dynprune)", p.read_text(), re.M)
    ] == []


def test_kernels_is_no_python_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_setup_stays_small() -> None:
    assert len((ROOT / "setup.py").read_text().splitlines()) <= 100


def test_cmake_lists_every_source_and_only_those() -> None:
    folders = {
        "kernels/cpu": "*.cpp",
        "kernels/cuda": "*.cu",
        "csrc": "**/*.cpp",
        "tests/cpp": "*.cpp",
        "tests/cuda": "*.cpp",
    }
    there = {str(p.relative_to(ROOT)) for folder, glob in folders.items() for p in (ROOT / folder).glob(glob)}
    assert listed_sources() == there


def test_only_ci_names_the_folder_outside_the_repository() -> None:
    outside = b"../" + b"shared"
    naming = [str(name) for name in tracked_files() if outside in (ROOT / name).read_bytes()]
    assert naming in ([], [".ci/run"])
