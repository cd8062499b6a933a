"""Drop-ins for ``torch.nn.Conv1d`` and ``torch.nn.Conv2d``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from dynprune import ops
from dynprune.lowering.analyse import conv_padding
from dynprune.lowering.ir import LayerSite
from dynprune.nn._active import ActiveUnits, LayerEntry
from dynprune.nn.linear import needs_grad
from dynprune.ops import reference
from dynprune.plan.conv2d import conv2d_entry
from dynprune.plan.inputs import Inputs, runs_native

if TYPE_CHECKING:
    _Convolution = nn.modules.conv._ConvNd
else:
    _Convolution = object


def _as_image(module: Any) -> nn.Conv2d:
    """The convolution over images that does the same; of a ``Conv1d`` one over images of height 1."""
    if isinstance(module, nn.Conv2d):
        return module
    assert isinstance(module, nn.Conv1d)
    padding = module.padding if isinstance(module.padding, str) else (0, module.padding[0])
    image = nn.Conv2d(
        module.in_channels,
        module.out_channels,
        (1, module.kernel_size[0]),
        (1, module.stride[0]),
        padding,
        (1, module.dilation[0]),
        module.groups,
        module.bias is not None,
        device="meta",
    )
    image.weight, image.bias = nn.Parameter(module.weight.unsqueeze(2)), module.bias
    return image


@dataclasses.dataclass(frozen=True, slots=True)
class _GroupedEntry:
    """A convolution with groups on its active units, reading all channels."""

    weight: Tensor  # packed, or the master beside indices
    bias: Tensor
    geometry: tuple[list[int], list[int], list[int], int]
    lists: dict[str, Any]  # of indices

    def __call__(self, x: Tensor, record: Any) -> Tensor:
        op = torch.ops.dynprune.conv2d.default if runs_native(self.weight) else reference.conv2d
        y: Tensor = op(x, self.weight, self.bias, *self.geometry, **self.lists)
        return y


def _grouped_entry(site: LayerSite, module: nn.Conv2d, active: Tensor) -> _GroupedEntry:
    weight, groups = site.weight, module.groups
    _, bias = site.fold()
    pack = ops.pack_conv2d if runs_native(weight) else reference.pack_conv2d
    rows = None if bool(active.all()) else active.nonzero().flatten()
    lists: dict[str, Any] = {}
    if weight.shape[1] == 1 and groups == len(weight):  # a unit takes its channel along
        weight = pack(weight, rows)
        if rows is not None:
            bias, groups, lists = bias[rows], len(rows), {"input_indices": rows}
    elif rows is not None:
        lists = {"indices": rows}
    elif weight.shape[1] > 1:
        weight = pack(weight, groups=groups)
    padding = conv_padding(module)
    assert padding is not None
    geometry = (list(module.stride), padding, list(module.dilation), groups)
    return _GroupedEntry(weight, bias, geometry, lists)


def _entry(site: LayerSite, active: Tensor, inputs: Inputs, **common: Any) -> LayerEntry:
    image = _as_image(site.module)
    site = dataclasses.replace(site, module=image)
    if image.groups != 1:
        return _grouped_entry(site, image, active)
    return conv2d_entry(site, active, inputs, **common)


class _ActiveConv(_Convolution):
    """What the convolutions share."""

    _dense: type[nn.modules.conv._ConvNd]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._units = ActiveUnits(self, _entry, 1)
        self._lowered = self.padding_mode == "zeros" and conv_padding(_as_image(self)) is not None

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
        if self._runs_dense(input):
            return super().forward(input)
        return self._units.run(self, input.unsqueeze(2)).squeeze(2)
