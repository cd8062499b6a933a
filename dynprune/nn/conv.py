"""Drop-ins for ``torch.nn.Conv1d`` and ``torch.nn.Conv2d``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from dynprune.lowering.convolution import as_image, conv_padding
from dynprune.lowering.ir import LayerSite
from dynprune.nn._active import ActiveUnits, LayerEntry
from dynprune.nn.linear import needs_grad
from dynprune.plan.conv2d import conv2d_entry
from dynprune.plan.inputs import Inputs

if TYPE_CHECKING:
    _Convolution = nn.Conv2d  # or nn.Conv1d
else:
    _Convolution = object


def _entry(site: LayerSite, active: Tensor, inputs: Inputs, **common: Any) -> LayerEntry:
    # The layer's own class is no concern of the plan's: it takes images.
    assert isinstance(site.module, (nn.Conv1d, nn.Conv2d))
    image = as_image(site.module)
    sequence = isinstance(site.module, nn.Conv1d)
    return conv2d_entry(dataclasses.replace(site, module=image, sequence=sequence), active, inputs, **common)


class _ActiveConv(_Convolution):
    """What the convolutions share."""

    _dense: type[nn.modules.conv._ConvNd]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._units = ActiveUnits(self, _entry, 1)
        self._lowered = self.padding_mode == "zeros" and conv_padding(as_image(self)) is not None

    @classmethod
    def from_dense(cls, module: nn.Module) -> Self:
        """A layer that shares the parameters of ``module``.

        Raises:
            ValueError: ``module`` is not the ``torch.nn`` layer of the same name.
        """
        if not isinstance(module, cls._dense):
            name = cls._dense.__name__
            raise ValueError(f"{name}.from_dense: expected nn.{name}, got {type(module).__name__}")
        options: list[Any] = [
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
            module.bias is not None,
            module.padding_mode,
        ]
        new = cls(*options, device="meta")
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
                f"{self._dense.__name__}.set_active: expected zero padding of equal ends, got "
                f"padding={self.padding!r}, padding_mode={self.padding_mode!r}"
            )
        self._units.set(mask, constants)

    @property
    def active(self) -> Tensor:
        """The active set, bool ``[out]``."""
        return self._units.mask.clone()

    def _runs_dense(self, input: Tensor) -> bool:
        if self.training or not self._lowered or input.dim() != self.weight.dim():
            return True
        return torch.is_grad_enabled() and needs_grad(input, self)


class Conv2d(_ActiveConv, nn.Conv2d):
    """``nn.Conv2d`` that computes its active output channels only, on the compiled kernels.

    In training mode, and where a gradient is needed, it is the dense layer; so it is for padding modes
    other than zeros and inputs without a batch dimension. Arguments, shapes and parameters are those of
    ``nn.Conv2d``.
    """

    _dense = nn.Conv2d

    def forward(self, input: Tensor) -> Tensor:
        """``[batch, in, height, width]`` to ``[batch, out, out_height, out_width]``."""
        return super().forward(input) if self._runs_dense(input) else self._units.run(self, input)


class Conv1d(_ActiveConv, nn.Conv1d):
    """``nn.Conv1d`` that computes its active output channels only, on the compiled kernels.

    It is the dense layer where :class:`Conv2d` is. Arguments, shapes and parameters are those of
    ``nn.Conv1d``.
    """

    _dense = nn.Conv1d

    def forward(self, input: Tensor) -> Tensor:
        """``[batch, in, length]`` to ``[batch, out, out_length]``."""
        return super().forward(input) if self._runs_dense(input) else self._units.run(self, input)
