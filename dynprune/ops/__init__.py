"""The ops ``torch.ops.dynprune.*``: schemas, shapes for tracing, and the functions that pack weights.

The compiled extension registers the CPU implementations when it is imported; where it is missing, the
reference ops are registered in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dynprune import _native
from dynprune.ops import backends, lstm_reference, packing, reference, schemas

_library: Any = torch.library.Library(  # type: ignore[no-untyped-call]
    schemas.NAMESPACE, "DEF"
)
for _name, _schema in schemas.SCHEMAS.items():
    _library.define(_name + _schema)

native = _native.load()
if native is None:
    _library.impl("linear", reference.linear, "CPU")
    _library.impl("conv2d", reference.conv2d, "CPU")
    _library.impl("sparse_input_linear", reference.sparse_input_linear, "CPU")
    _library.impl("lstm", lstm_reference.lstm, "CPU")
    _library.impl("max_pool2d", reference.max_pool2d, "CPU")
_library.impl("gather_into", packing.gather_into, "CPU")
on_cuda = backends.register(_library)
GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

pack_linear = packing.pack_linear if native is None else native.pack_linear
pack_input_major = packing.pack_input_major if native is None else native.pack_input_major
pack_conv2d = packing.pack_conv2d if native is None else native.pack_conv2d
tap_sums = packing.tap_sums if native is None else native.tap_sums
pack_lstm = lstm_reference.pack_lstm


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype) if t.dtype in (torch.float32, torch.bfloat16, torch.float16) else t


def _under_autocast(name: str, packed_dim: int, device: str) -> Callable[..., Tensor]:
    """What autocast does to PyTorch's own layers; but a packed weight stays as it is, and decides."""
    op: Callable[..., Tensor] = getattr(torch.ops.dynprune, name).default

    def run(input: Tensor, weight: Tensor, *rest: Any, **options: Any) -> Tensor:
        packed = weight.dim() == packed_dim
        dtype = weight.dtype if packed else torch.get_autocast_dtype(device)
        if dtype == torch.float16 and device == "cpu":  # the kernels have none there
            dtype = torch.float32
        with torch.autocast(device, enabled=False):
            return op(_cast(input, dtype), _cast(weight, dtype), *rest, **options)

    return run


for _name, _packed_dim in (("linear", 3), ("conv2d", 5)):
    _library.impl(_name, _under_autocast(_name, _packed_dim, "cpu"), "AutocastCPU")
    _library.impl(_name, _under_autocast(_name, _packed_dim, "cuda"), "AutocastCUDA")


def _units(weight: Tensor, packed_dim: int, bias: Tensor | None, indices: Tensor | None) -> int:
    if weight.dim() == packed_dim:
        assert bias is not None
        return bias.shape[-1]
    return weight.shape[0] if indices is None else indices.shape[0]


@torch.library.register_fake("dynprune::linear", lib=_library)  # type: ignore[untyped-decorator]
def _linear_fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    indices: Tensor | None = None,
    **options: object,
) -> Tensor:
    return input.new_empty((*input.shape[:-1], _units(weight, 3, bias, indices)))


@torch.library.register_fake("dynprune::conv2d", lib=_library)  # type: ignore[untyped-decorator]
def _conv2d_fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    *,
    indices: Tensor | None = None,
    **options: object,
) -> Tensor:
    kernel = weight.shape[1:3] if weight.dim() == 5 else weight.shape[2:4]
    size = [
        (input.shape[2 + i] + 2 * padding[i] - (kernel[i] - 1) * dilation[i] - 1) // stride[i] + 1
        for i in (0, 1)
    ]
    shape = (input.shape[0], _units(weight, 5, bias, indices), *size)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)


@torch.library.register_fake("dynprune::sparse_input_linear", lib=_library)  # type: ignore[untyped-decorator]
def _sparse_input_linear_fake(input: Tensor, weight: Tensor, bias: Tensor, **options: object) -> Tensor:
    return input.new_empty((input.shape[0], bias.shape[0]))


@torch.library.register_fake("dynprune::lstm", lib=_library)  # type: ignore[untyped-decorator]
def _lstm_fake(
    input: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    *,
    batch_first: bool = False,
    **options: object,
) -> tuple[Tensor, Tensor, Tensor]:
    units = sum(b.shape[2] for b in bias)
    batch = input.shape[0 if batch_first else 1]
    last = input.new_empty((batch, units))
    return input.new_empty((*input.shape[:2], units)), last, torch.empty_like(last)


@torch.library.register_fake("dynprune::gather_into", lib=_library)  # type: ignore[untyped-decorator]
def _gather_into_fake(to: Tensor, weight: Tensor, **options: object) -> None:
    pass


# The reference is made of ops that have fakes of their own.
torch.library.register_fake("dynprune::max_pool2d", reference.max_pool2d, lib=_library)
