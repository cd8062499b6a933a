"""The kernels' C++ tests: built without torch, with the sanitizers on, and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all"


def tool(name: str) -> str | None:
    return shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,  # two cores that others use too need ten minutes
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.mark.skipif(not any(map(tool, ("c++", "g++", "clang++"))), reason="no C++ compiler")
@pytest.mark.skipif(not (tool("cmake") and tool("ninja")), reason="no cmake and ninja")
def test_kernels(tmp_path: Path) -> None:
    cmake, ninja = tool("cmake"), tool("ninja")
    assert cmake is not None
    run(
        cmake, "-G", "Ninja", "-S", ROOT, "-B", tmp_path, f"-DCMAKE_MAKE_PROGRAM={ninja}",
        "-DDYNPRUNE_BUILD_TESTS=ON", "-DDYNPRUNE_BUILD_EXTENSION=OFF", "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_CXX_FLAGS={SANITIZE}",
    )  # fmt: skip
    run(cmake, "--build", tmp_path, "-j", "2")
    # Fresh memory is filled with 0xff, which reads as NaN: what is used before it is written shows.
    options = "max_malloc_fill_size=100000000:malloc_fill_byte=255:detect_leaks=1"
    output = run(tmp_path / "kernel_tests", ASAN_OPTIONS=options)
    assert re.search(r"^\d{3,} passed, 0 failed$", output, re.MULTILINE), output
