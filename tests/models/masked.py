"""The masked dense model: the definition that every accelerated model is held to.

The dense model in float64, with the pruned units of each group replaced by its constants at each read
point. It is written with module hooks on the original model and knows nothing of the lowering: a read
point is given by the name of the module that reads.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dynprune import AcceleratedModel
from dynprune.rows import cast
from tests.models.masked_lstm import MaskedLSTM


@dataclasses.dataclass(frozen=True)
class Reader:
    """A module that reads units of a group.

    Attributes:
        module: its qualified name.
        group: whose units it reads; several joined by "+" where they lie one behind the other.
        key: in ``constants()``; the group's name where it is read once.
        argument: which of the module's arguments holds the units.
        pixels: of a flattened image.
        dim: of the units; the last one of a Linear, else 1.
        call: which call of the module, for one that is called several times.
    """

    module: str
    group: str
    key: str | None = None
    argument: int = 0
    pixels: int = 1
    dim: int | None = None
    call: int = 0


def masked_dense(
    model: nn.Module,
    fast: AcceleratedModel,
    readers: Iterable[Reader],
    *inputs: Any,
    compensate: bool = True,
) -> Tensor:
    """Run ``model`` in float64 with the choice and the constants of ``fast`` (or zeros) in place."""
    dense = copy.deepcopy(model).double().eval()
    active, constants, mixing = fast.active(), fast.constants(), fast.mixing()
    for name, module in list(dense.named_modules()):
        if isinstance(module, nn.LSTM) and f"{name}.l0" in active:
            masked = MaskedLSTM(module, name, active, constants, mixing if compensate else None)
            dense.set_submodule(name, masked)
    for reader in readers:
        key = reader.key or reader.group
        mask = torch.cat([active[name] for name in reader.group.split("+")])
        fixed = constants[key].double()
        shares = mixing[key].double() if key in mixing else fixed.new_zeros(len(fixed), len(fixed))
        if not compensate:
            fixed, shares = torch.zeros_like(fixed), torch.zeros_like(shares)
        _replace_pruned(dense.get_submodule(reader.module), reader, mask, fixed, shares)
    with torch.no_grad():
        return dense(*cast(inputs, torch.float64))


def _replace_pruned(module: nn.Module, reader: Reader, mask: Tensor, fixed: Tensor, shares: Tensor) -> None:
    calls = 0

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal calls
        calls += 1
        if calls - 1 != reader.call:
            return args
        value = args[reader.argument]
        last = value.dim() - 1 if isinstance(module, nn.Linear) else 1
        dim = last if reader.dim is None else reader.dim
        units = value.unflatten(dim, (len(mask), reader.pixels)).movedim(dim, -1)
        units = torch.where(mask, units, fixed + units @ shares.T)
        changed = units.movedim(-1, dim).flatten(dim, dim + 1)
        return (*args[: reader.argument], changed, *args[reader.argument + 1 :])

    module.register_forward_pre_hook(hook)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value; infinite for NaN or another shape."""
    if got.shape != expected.shape or got.isnan().any():
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    return float((got.detach().double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
