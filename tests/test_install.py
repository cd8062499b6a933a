"""What an install does where torch or a compiler is missing; nothing is compiled here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (
    "setup.py",
    "pyproject.toml",
    "CMakeLists.txt",
    "MANIFEST.in",
    "LICENSE",
    "csrc",
    "kernels",
    "dynprune",
)
DOCUMENTS = ("README.md", "CHANGELOG.md")

needed = ("pip", "setuptools", "wheel", "pybind11")
missing = [name for name in needed if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what an install reads, with nothing built in it."""
    tree = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "*.parquet")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=ignore)
        else:
            shutil.copy(source, tree / name)
    for name in DOCUMENTS:
        (tree / name).write_text(name)
    return tree


def run(*command: str | Path, cwd: Path, **changes: str | None) -> tuple[int, str]:
    """Exit status and output, with variables of the environment set or (None) removed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "DYNPRUNE_"))}
    environment.update({k: v for k, v in changes.items() if v is not None})
    for name in (k for k, v in changes.items() if v is None):
        environment.pop(name, None)
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout


def pip_wheel(tree: Path, target: Path, **environment: str | None) -> tuple[int, str]:
    return run(
        sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps", "--no-index",
        "--disable-pip-version-check", "--no-cache-dir", "-w", target, tree,
        cwd=tree, **environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def without_compiler(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The wheel that is built where no compiler can be found, and what was printed."""
    folder = tmp_path_factory.mktemp("wheel")
    nothing = tmp_path_factory.mktemp("nothing")
    status, output = pip_wheel(tree, folder, PATH=str(nothing), CXX=None)
    assert status == 0, output[-4000:]
    (wheel,) = folder.glob("dynprune-*.whl")
    return wheel, output


def test_without_torch_the_error_names_the_way_out(tree: Path, tmp_path: Path) -> None:
    """A torch that cannot be imported stands for none, this Python for a compiler."""
    stub = tmp_path / "torch"
    stub.mkdir()
    (stub / "__init__.py").write_text("raise ImportError('none')")
    status, output = pip_wheel(tree, tmp_path / "wheel", PYTHONPATH=str(tmp_path), CXX=sys.executable)
    assert status != 0
    assert "dynprune: expected torch in the build environment, found none" in output
    assert "pip install --no-build-isolation ." in output
    assert not list(tmp_path.glob("wheel/*.whl"))


def test_without_a_compiler_there_is_one_warning(without_compiler: tuple[Path, str]) -> None:
    assert without_compiler[1].count("dynprune: warning: no C++ compiler found") == 1


def test_wheel_contents(without_compiler: tuple[Path, str]) -> None:
    names = zipfile.ZipFile(without_compiler[0]).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"dynprune"}
    assert not [name for name in names if "_C" in name or name.endswith((".so", ".pyd", ".cpp", ".h"))]
    packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "dynprune").rglob("__init__.py")}
    assert packages <= {os.path.dirname(name) for name in names}
    assert "dynprune/py.typed" in names
    kernels = {f"dynprune/kernels_triton/{path.name}" for path in (ROOT / "kernels" / "triton").glob("*.py")}
    assert kernels and kernels <= set(names)


def test_an_install_without_kernels_works_and_warns_once(
    without_compiler: tuple[Path, str], tmp_path: Path
) -> None:
    zipfile.ZipFile(without_compiler[0]).extractall(tmp_path)
    # An editable install in this environment would lend the package its compiled part.
    alone = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'ditable' not in repr(f)];"
    script = alone + (
        "import torch, dynprune; from torch import nn; print(dynprune.__file__);"
        "m = nn.Sequential(nn.Conv2d(1, 9, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)).eval();"
        "x = torch.randn(3, 1, 4, 4); fast = dynprune.accelerate(m, x);"
        "torch.testing.assert_close(fast(x), m(x)); print(fast.stats()['operations'] > 0)"
    )
    status, output = run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert status == 0, output
    assert str(tmp_path / "dynprune") in output and output.rstrip().endswith("True")
    assert output.count("the compiled kernels could not be loaded") == 1
    assert "Slow reference ops serve instead" in output
    command = (sys.executable, "-c", alone + "import dynprune")
    status, output = run(*command, cwd=tmp_path, PYTHONPATH=str(tmp_path), DYNPRUNE_REQUIRE_NATIVE="1")
    assert status != 0
    assert "ImportError: dynprune: the compiled kernels could not be loaded" in output
