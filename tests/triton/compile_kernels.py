"""Compiles the Triton kernels ahead of time, without a GPU; prints what each takes, as JSON.

A process of its own: where Triton's interpreter is on, its compiler is off.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
import triton.backends.nvidia
from dynprune.kernels_triton.conv2d import conv2d_kernel
from dynprune.kernels_triton.linear import TILES, linear_kernel
from dynprune.kernels_triton.lstm import lstm_kernel, options_for
from dynprune.kernels_triton.sparse_input import sparse_input_kernel
from dynprune.kernels_triton.usage import usage_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = (80, 90, 100)
# What a pointer points to where it is not the operands' type.
POINTERS = {
    "bias": "fp32", "bias_forward": "fp32", "bias_reverse": "fp32", "product": "fp32", "c": "fp32",
    "usage": "fp64", "indices": "i64", "input_indices": "i64", "lengths": "i64",
    "unit_count": "i32", "depth_count": "i32", "unit_counts": "i32",
}  # fmt: skip
OPERANDS = {"x", "w", "y", "a", "h", "last", "first", "w_forward", "w_reverse"}
BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}


def variants() -> Iterator[tuple[str, Any, str, dict[str, Any], dict[str, int]]]:
    """Name, kernel, dtype, constants (an absent tensor is None), options."""
    for dtype in ("bf16", "fp16", "fp32"):
        few, small, large, watched = TILES[BYTES[dtype]]
        gather = {"GATHER_INPUT": True}
        plain = {"GATHER_INPUT": False, "indices": None, "input_indices": None}
        eager = {"unit_count": None, "depth_count": None}
        for name, tile, more in (
            ("few", few, plain | eager),
            ("small", small, plain),
            ("gather", small, gather | eager),
            ("large", large, plain | eager | {"usage": None}),
            ("watched", watched, plain),
        ):
            if (dtype == "fp16" and name != "small") or (dtype == "fp32" and name == "large"):
                continue  # the same code as for bfloat16, and as with usage sums
            common = {"KIND": "gelu" if name == "few" else "relu", "PRECISION": "ieee", "UNITS": tile.units}
            common |= {"ROWS": tile.rows, **more}
            options = {"num_warps": tile.warps, "num_stages": tile.stages}
            strides = {"x_column": 1, "w_column": 1}
            yield f"linear {name}", linear_kernel, dtype, common | strides | {"DEPTH": tile.depth}, options
            if name not in ("few", "gather"):
                strides = {"x_channel": 1, "w_channel": 1}
                common |= {"TABLE": name == "small", "DEPTH": min(tile.depth, 64)} | strides
                yield f"conv2d {name}", conv2d_kernel, dtype, common, options
        sizes = {"ROWS": 16, "UNITS": 32, "DEPTH": 32, "PRECISION": "ieee"}
        if dtype != "fp16":
            yield "lstm", lstm_kernel, dtype, sizes, options_for(BYTES[dtype], counted=True)
            alone = sizes | {"unit_counts": None}
            yield "lstm eager", lstm_kernel, dtype, alone, options_for(BYTES[dtype], counted=False)
        rows_in_runs = {"KIND": "relu", "x_column": 1, "w_unit": 1}
        yield "sparse_input", sparse_input_kernel, dtype, sizes | rows_in_runs, {}
    usage = {"ROWS": 128, "UNITS": 32}
    yield "usage", usage_kernel, "fp32", usage, {}
    # Sizes and strides of 1 are constants of a launch: tiny problems are other programs.
    product = sizes | {"KIND": "none", "GATHER_INPUT": False}
    for name, kernel, constants in (
        ("linear", linear_kernel, product),
        ("conv2d", conv2d_kernel, product | {"TABLE": True}),
        ("lstm", lstm_kernel, sizes),
        ("sparse_input", sparse_input_kernel, sizes | {"KIND": "none"}),
        ("usage", usage_kernel, usage),
    ):
        yield f"{name} ones", kernel, "fp32", constants, {}


def ones(kernel: Any, constants: dict[str, Any]) -> dict[str, int]:
    """Every size and stride as 1 of which a kernel is made anew; not known where it is interpreted."""
    others = OPERANDS | POINTERS.keys() | constants.keys() | {"slope", "threshold"}
    others |= {param.name for param in kernel.params if param.do_not_specialize}
    return {name: 1 for name in kernel.arg_names if name not in others}


def compiled(kernel: Any, dtype: str, constants: dict[str, Any], options: dict[str, int], target: int) -> Any:
    """As a launch with sizes and addresses that are multiples of 16 compiles it."""
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name in OPERANDS:
            signature[name] = f"*{dtype}"
        elif name in POINTERS:
            signature[name] = f"*{POINTERS[name]}"
        else:
            signature[name] = "fp32" if name in ("slope", "threshold") else "i32"
        if signature[name] != "fp32" and not kernel.params[place].do_not_specialize:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of stack of a compiled kernel; what is spilled lies on the stack."""
    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    counts = dict(part.split(":") for part in said.split() if part.startswith(("REG:", "STACK:", "LOCAL:")))
    return {"registers": int(counts["REG"]), "stack": int(counts["STACK"]) + int(counts["LOCAL"])}


def main() -> None:
    """Print a JSON line for each kernel, dtype and target."""
    wanted = [int(target) for target in sys.argv[1:]] or TARGETS
    for name, kernel, dtype, constants, options in variants():
        if name.endswith("ones"):
            constants = constants | ones(kernel, constants)
        for target in wanted:
            found = compiled(kernel, dtype, constants, options, target)
            more = resources(found.asm["cubin"]) | {"shared": found.metadata.shared}
            print(json.dumps({"kernel": name, "dtype": dtype, "target": target, **more}), flush=True)


if __name__ == "__main__":
    main()
