"""A drop-in for ``torch.nn.Linear``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dynprune.nn._active import ActiveUnits
from dynprune.plan.linear import linear_entry


class Linear(nn.Linear):
    """``nn.Linear`` that computes its active output units only, on the compiled kernels.

    In training mode, and where a gradient is needed, it is the dense layer. Arguments, shapes and
    parameters are those of ``nn.Linear``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._units = ActiveUnits(self, linear_entry, -1)

    @classmethod
    def from_dense(cls, module: nn.Linear) -> Linear:
        """A layer that shares the parameters of ``module``.

        Raises:
            ValueError: ``module`` is not an ``nn.Linear``.
        """
        if not isinstance(module, nn.Linear):
            raise ValueError(f"Linear.from_dense: expected nn.Linear, got {type(module).__name__}")
        new = cls(module.in_features, module.out_features, module.bias is not None, device="meta")
        new.weight, new.bias = module.weight, module.bias
        return new.train(module.training)

    def set_active(self, mask: Tensor, constants: Tensor | None = None) -> None:
        """Compute the units of ``mask`` (bool ``[out]``) only; the others give ``constants`` (or 0)."""
        self._units.set(mask, constants)

    @property
    def active(self) -> Tensor:
        """The active set, bool ``[out]``."""
        return self._units.mask.clone()

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        if self.training or (torch.is_grad_enabled() and needs_grad(input, self)):
            return super().forward(input)
        return self._units.run(self, input)


def needs_grad(x: Tensor, module: nn.Module) -> bool:
    """Whether the input or a parameter asks for a gradient."""
    return x.requires_grad or any(p.requires_grad for p in module.parameters(recurse=False))
