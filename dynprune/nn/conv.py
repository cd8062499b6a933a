"""A drop-in for ``torch.nn.Conv2d``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dynprune.lowering.analyse import conv_padding
from dynprune.nn._active import ActiveUnits
from dynprune.nn.linear import needs_grad
from dynprune.plan.conv2d import conv2d_entry


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` that computes its active output channels only, on the compiled kernels.

    In training mode, and where a gradient is needed, it is the dense layer; so it is for grouped
    convolutions, padding modes other than zeros and inputs without a batch dimension. Arguments,
    shapes and parameters are those of ``nn.Conv2d``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._units = ActiveUnits(self, conv2d_entry, 1)
        self._lowered = self.groups == 1 and self.padding_mode == "zeros" and conv_padding(self) is not None

    @classmethod
    def from_dense(cls, module: nn.Conv2d) -> Conv2d:
        """A layer that shares the parameters of ``module``.

        Raises:
            ValueError: ``module`` is not an ``nn.Conv2d``.
        """
        if not isinstance(module, nn.Conv2d):
            raise ValueError(f"Conv2d.from_dense: expected nn.Conv2d, got {type(module).__name__}")
        new = cls(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
            module.bias is not None,
            module.padding_mode,
            device="meta",
        )
        new.weight, new.bias = module.weight, module.bias
        return new.train(module.training)

    def set_active(self, mask: Tensor, constants: Tensor | None = None) -> None:
        """Compute the channels of ``mask`` (bool ``[out]``) only; the others give ``constants`` (or 0).

        Raises:
            ValueError: the mask is not as above.
            NotImplementedError: this convolution runs dense (see the class).
        """
        if not self._lowered:
            raise NotImplementedError(
                "Conv2d.set_active: expected groups=1, zero padding and equal ends, got "
                f"groups={self.groups}, padding={self.padding!r}, padding_mode={self.padding_mode!r}"
            )
        self._units.set(mask, constants)

    @property
    def active(self) -> Tensor:
        """The active set, bool ``[out]``."""
        return self._units.mask.clone()

    def forward(self, input: Tensor) -> Tensor:
        """``[batch, in, height, width]`` to ``[batch, out, out_height, out_width]``."""
        dense = self.training or not self._lowered or input.dim() != 4
        if dense or (torch.is_grad_enabled() and needs_grad(input, self)):
            return super().forward(input)
        return self._units.run(self, input)
