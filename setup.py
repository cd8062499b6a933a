"""Builds the extension by driving CMakeLists.txt; everything else stands in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def tool(name: str) -> str:
    """Path of a build tool: next to this Python (a wheel's script), or on the PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise SystemExit(
            f"dynprune: expected {name} for the build, found none; "
            "pip install setuptools pybind11 ninja cmake"
        )
    return found


def has_compiler() -> bool:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return any(shutil.which(name.split()[0]) for name in names)


class CMakeBuild(build_ext):
    """Configures and builds with CMake and ninja; without a compiler the package is pure Python."""

    def build_extension(self, ext: Extension) -> None:
        if not has_compiler():
            print(
                "dynprune: warning: no C++ compiler found; installing without compiled kernels, slow "
                "reference ops will serve",
                file=sys.stderr,
            )
            return
        try:
            import torch  # noqa: F401
        except ImportError:
            raise SystemExit(
                "dynprune: expected torch in the build environment, found none. The extension is built "
                "for the torch that is installed: install torch first, then run "
                "pip install --no-build-isolation ."
            ) from None
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        configure = [
            tool("cmake"), "-G", "Ninja", "-S", str(ROOT), "-B", str(build),
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            "-DCMAKE_BUILD_TYPE=Release",
        ]  # fmt: skip
        targets = os.environ.get("DYNPRUNE_CUDA_TARGETS")  # "80;90"; CMakeLists.txt has a default
        if targets:
            configure.append(f"-DDYNPRUNE_CUDA_TARGETS={targets}")
        subprocess.run(configure, check=True)
        subprocess.run([tool("cmake"), "--build", str(build), "-j", jobs], check=True)


setup(
    # The Triton kernels lie beside the others, and are installed inside the package.
    packages=[*find_packages(include=["dynprune", "dynprune.*"]), "dynprune.kernels_triton"],
    package_dir={"dynprune.kernels_triton": "kernels/triton"},
    # Optional, so that an install without a compiler may leave it out.
    ext_modules=[Extension("dynprune._C", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
