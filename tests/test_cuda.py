"""The CUDA kernels without a GPU: emulated on the CPU with sanitizers, and compiled for every target."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch.utils.cpp_extension import include_paths

from tests.test_cpp import ROOT, SANITIZE, run, tool

KERNELS = sorted((ROOT / "kernels" / "cuda").glob("*.cu"))
TARGETS = ("80", "90", "100")
NVCC = shutil.which("nvcc", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/local/cuda/bin")


@pytest.mark.skipif(not any(map(tool, ("c++", "g++", "clang++"))), reason="no C++ compiler")
@pytest.mark.skipif(not (tool("cmake") and tool("ninja")), reason="no cmake and ninja")
def test_emulated_kernels(tmp_path: Path) -> None:
    cmake = tool("cmake")
    assert cmake is not None
    run(
        cmake, "-G", "Ninja", "-S", ROOT, "-B", tmp_path, f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        "-DDYNPRUNE_BUILD_EMULATION=ON", "-DDYNPRUNE_BUILD_EXTENSION=OFF", f"-DCMAKE_CXX_FLAGS={SANITIZE}",
        "-DCMAKE_BUILD_TYPE=",
    )  # fmt: skip
    run(cmake, "--build", tmp_path, "-j", "2", "--target", "cuda_tests")
    options = "max_malloc_fill_size=100000000:malloc_fill_byte=255:detect_leaks=1"
    output = run(tmp_path / "cuda_tests", ASAN_OPTIONS=options)
    assert re.search(r"^\d{3,} passed, 0 failed$", output, re.MULTILINE), output


class Usage(NamedTuple):
    """What ptxas says a kernel takes."""

    kernel: str
    target: str
    registers: int
    stack: int
    spills: int


REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<target>\d+)'\n"
    r".*\n"
    r" *(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers"
)


def parse(report: str) -> list[Usage]:
    found = []
    for m in REPORT.finditer(report):
        spills = int(m["stores"]) + int(m["loads"])
        found.append(Usage(m["name"], m["target"], int(m["registers"]), int(m["stack"]), spills))
    return found


# Registers of a thread, by what the mangled name of a kernel holds. Times a block's threads, and the blocks
# that are meant to share a multiprocessor, they fit its 65,536.
BUDGET = {
    r"(Linear|Conv2d)KernelI\w*?4TileILi128E": 200,  # 256 threads, 1 block
    r"(Linear|Conv2d)KernelI\w*?4TileILi64E": 160,  # 128 threads, 2 blocks
    r"(Linear|Conv2d)KernelI\w*?4TileILi16E": 96,  # 128 threads, 3 blocks
    r"LstmKernelI\w*?4TileILi64E": 248,  # 128 threads, 2 blocks at most
    r"LstmKernelI\w*?4TileILi16E\w*?ProductE0E": 112,  # 128 threads, 3 blocks at most
    r"LstmKernelI\w*?4TileILi16E\w*?ProductE2E": 128,  # 128 threads, 4 blocks
    r"DepthwiseKernel": 112,  # 128 threads, 4 blocks
    r"SparseKernel": 96,  # 128 threads, 4 blocks
    r"GatherKernel": 48,  # 256 threads, 4 blocks
    r"UsageKernel": 64,  # 256 threads, 2 blocks
}


def budget_of(kernel: str) -> int:
    fitting = [most for part, most in BUDGET.items() if re.search(part, kernel)]
    assert len(fitting) == 1, f"a kernel needs one entry in BUDGET, {kernel} has {len(fitting)}"
    return fitting[0]


@pytest.mark.skipif(NVCC is None, reason="no nvcc: the CUDA kernels are not compiled here")
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_compiles_within_its_budget(source: Path, tmp_path: Path) -> None:
    assert NVCC is not None
    targets = [f"-gencode=arch=compute_{t},code=sm_{t}" for t in TARGETS]
    report = run(
        NVCC, "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Werror", "all-warnings", "-Xptxas=-v",
        "-fatbin", "--threads", "2", *targets, "-o", tmp_path / "kernels.fatbin", source,
    )  # fmt: skip
    kernels = parse(report)
    assert {k.target for k in kernels} == set(TARGETS), report[-3000:]
    assert len(kernels) == report.count("Compiling entry function"), "the report was not understood"
    for k in kernels:
        assert k.spills == 0 and k.stack == 0, k
        assert k.registers <= budget_of(k.kernel), k


@pytest.mark.skipif(NVCC is None, reason="no nvcc, and so no CUDA headers")
def test_registration_is_sound(tmp_path: Path) -> None:
    """What registers the kernels needs a CUDA build of torch to be linked; its syntax and types do not."""
    assert NVCC is not None
    compiler = next(filter(None, map(tool, ("c++", "g++", "clang++"))))
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cpp"))
    assert sources
    together = tmp_path / "all.cpp"  # torch's headers take most of the time
    together.write_text("".join(f'#include "{source}"\n' for source in sources))
    folders = [*include_paths(), str(Path(NVCC).resolve().parents[1] / "include"), "/usr/local/cuda/include"]
    # The file that this leaves out is part of CUDA builds of torch only.
    missing = [] if torch.version.cuda else ["-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE"]
    run(
        compiler, "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", *missing,
        *(f"-isystem{folder}" for folder in folders), f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'kernels'}", together,
    )  # fmt: skip


def test_spills_would_be_noticed() -> None:
    report = (
        "ptxas info    : Compiling entry function '_Z1kPf' for 'sm_90'\n"
        "ptxas info    : Function properties for _Z1kPf\n"
        "    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers\n"
    )
    assert parse(report) == [Usage("_Z1kPf", "90", 255, 16, 20)]
