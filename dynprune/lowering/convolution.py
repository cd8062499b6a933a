"""Convolutions over images and sequences in one form."""

from __future__ import annotations

from torch import nn


def conv_padding(module: nn.Conv2d) -> list[int] | None:
    """Pixels of zero padding at each end of both dimensions; None if the ends differ."""
    if module.padding == "valid":
        return [0, 0]
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [t // 2 for t in total] if all(t % 2 == 0 for t in total) else None
    assert not isinstance(module.padding, str)
    return list(module.padding)


def as_image(module: nn.Conv1d | nn.Conv2d) -> nn.Conv2d:
    """The convolution over images that does the same; of a ``Conv1d`` one over images of height 1.

    It shares the parameters.
    """
    if isinstance(module, nn.Conv2d):
        return module
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


def is_depthwise(module: nn.Module) -> bool:
    """Whether every unit of a convolution reads the one channel of its own number."""
    if not isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return False
    return module.groups == module.in_channels == module.out_channels and module.groups > 1
