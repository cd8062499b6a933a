"""The masked dense model: the definition that every accelerated model is held to.

The dense model in float64, with the pruned units of each group replaced by its constants at each read
point. It is written with module hooks on the original model and knows nothing of the lowering: a read
point is given by the name of the module that reads.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def masked_dense(
    model: nn.Module,
    readers: dict[str, tuple[str, Tensor, Tensor]],
    x: Tensor,
    flatten: dict[str, int] | None = None,
) -> Tensor:
    """Run ``model`` in float64 with constants in place.

    Args:
        readers: module that reads -> (its group, active mask [units], constants [units]).
        flatten: reader -> pixels of the flattened image it reads.
    """
    dense = copy.deepcopy(model).double().eval()
    handles = []
    for reader, (_, mask, constants) in readers.items():
        pixels = (flatten or {}).get(reader, 1)

        def hook(module, args, mask=mask, constants=constants, pixels=pixels):
            (value,) = args
            keep, fixed = mask.repeat_interleave(pixels), constants.double().repeat_interleave(pixels)
            dim = value.dim() - 1 if isinstance(module, nn.Linear) else 1
            shape = [1] * value.dim()
            shape[dim] = len(keep)
            return (torch.where(keep.view(shape), value, fixed.view(shape)),)

        handles.append(dense.get_submodule(reader).register_forward_pre_hook(hook))
    with torch.no_grad():
        result = dense(x.double())
    for handle in handles:
        handle.remove()
    return result


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value."""
    if expected.numel() == 0:
        return 0.0
    return float((got.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
