"""Sample inputs of the ops, chosen by hand: the one list that every test of an op goes through."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Layout = Callable[[Tensor], Tensor]


def tight(x: Tensor) -> Tensor:
    return x


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def transposed(x: Tensor) -> Tensor:
    """The last two dimensions lie in the other order."""
    return x.mT.contiguous().mT


def every_other_row(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=-2)[..., ::2, :]


def sliced_features(x: Tensor) -> Tensor:
    """The inner features of a wider tensor."""
    return torch.nn.functional.pad(x, (2, 3), value=7.0)[..., 2:-3]


def sliced_channels(x: Tensor) -> Tensor:
    """The inner channels of a wider image, channels last."""
    return channels_last(torch.nn.functional.pad(x, (0, 0, 0, 0, 2, 3), value=7.0))[:, 2:-3]


def repeated_row(x: Tensor) -> Tensor:
    """One row that stands for all: stride 0."""
    return x[:1].expand_as(x)


def repeated_pixel(x: Tensor) -> Tensor:
    """One pixel that stands for all, channels last: strides 0."""
    return x[:, :, :1, :1].expand_as(x)


def overlapping_rows(x: Tensor) -> Tensor:
    """Each row begins three values after the one before."""
    return x.reshape(-1).as_strided(x.shape, (3, 1))


def unit_scale(weight: Tensor) -> Tensor:
    """Scaled so that products are about 1 in size: bounded activations then bound no rounding errors."""
    return weight / max(1, weight[:1].numel()) ** 0.5


def seeded(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def subset(total: int, count: int, generator: torch.Generator) -> Tensor:
    """A random index list: ``count`` of ``total``, strictly increasing."""
    return torch.randperm(total, generator=generator)[:count].sort().values


@dataclass(frozen=True)
class LinearCase:
    name: str
    shape: tuple[int, ...]  # of the input, features last
    units: int
    layout: Layout = tight

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Input, master weight and bias."""
        g = seeded(self.name)
        x = self.layout(torch.randn(self.shape, generator=g))
        weight = unit_scale(torch.randn(self.units, self.shape[-1], generator=g))
        return x, weight, torch.randn(self.units, generator=g)


LINEAR = [
    LinearCase("one-of-each", (1, 1), 1),
    LinearCase("no-rows", (0, 5), 3),
    LinearCase("no-units", (3, 5), 0),
    LinearCase("no-features", (3, 0), 5),
    LinearCase("1-row-16-units", (1, 130), 16),
    LinearCase("1-row-130-units", (1, 19), 130),
    LinearCase("8-rows-15-units", (8, 33), 15),
    LinearCase("8-rows-130-units", (8, 100), 130),
    LinearCase("63-rows-17-units", (63, 20), 17),
    LinearCase("64-rows-64-units", (64, 64), 64),
    LinearCase("64-rows-1-unit", (64, 257), 1),
    LinearCase("65-rows-63-units", (65, 31), 63),
    LinearCase("257-rows-65-units", (257, 19), 65),
    LinearCase("deep", (3, 2051), 48),
    LinearCase("vector", (17,), 9),
    LinearCase("3d", (5, 13, 24), 40),
    LinearCase("3d-no-rows", (2, 0, 7), 5),
    LinearCase("3d-transposed", (3, 22, 5), 33, transposed),
    LinearCase("sliced-features", (65, 30), 33, sliced_features),
    LinearCase("transposed", (64, 17), 20, transposed),
    LinearCase("one-row-transposed", (1, 17), 20, transposed),
    LinearCase("every-other-row", (9, 10), 66, every_other_row),
    LinearCase("repeated-row", (66, 12), 18, repeated_row),
    LinearCase("overlapping-rows", (70, 12), 18, overlapping_rows),
]


@dataclass(frozen=True)
class ConvCase:
    name: str
    shape: tuple[int, int, int, int]  # of the input: batch, channels, height, width
    units: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    layout: Layout = tight

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Input, master weight and bias."""
        g = seeded(self.name)
        x = self.layout(torch.randn(self.shape, generator=g))
        weight = torch.randn(self.units, self.shape[1] // self.groups, *self.kernel, generator=g)
        return x, unit_scale(weight), torch.randn(self.units, generator=g)

    @property
    def geometry(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        return self.stride, self.padding, self.dilation


CONV2D = [
    ConvCase("one-of-each", (1, 1, 1, 1), 1, (1, 1)),
    ConvCase("batch-0", (0, 3, 5, 5), 4, (3, 3), padding=(1, 1)),
    ConvCase("no-units", (2, 3, 5, 5), 0, (3, 3), padding=(1, 1)),
    ConvCase("no-channels", (2, 0, 5, 5), 4, (3, 3), padding=(1, 1)),
    ConvCase("no-channels-1x1", (2, 0, 5, 5), 4, (1, 1), layout=channels_last),
    ConvCase("1x1", (2, 17, 5, 7), 15, (1, 1)),
    ConvCase("1x1-channels-last", (2, 17, 9, 8), 65, (1, 1), layout=channels_last),
    ConvCase("1x1-one-pixel", (3, 17, 1, 1), 20, (1, 1)),
    ConvCase("1x1-sliced-channels", (2, 17, 5, 5), 16, (1, 1), layout=sliced_channels),
    ConvCase("1x1-repeated-pixel", (2, 17, 9, 9), 16, (1, 1), layout=repeated_pixel),
    ConvCase("1x1-stride-2", (2, 17, 6, 7), 17, (1, 1), stride=(2, 2), layout=channels_last),
    ConvCase("1x1-padding-1", (1, 17, 4, 3), 16, (1, 1), padding=(1, 1), layout=channels_last),
    ConvCase("2x2", (2, 2, 5, 6), 16, (2, 2)),
    ConvCase("2x2-padding-3", (1, 2, 3, 3), 17, (2, 2), padding=(3, 3)),
    ConvCase("3x3-1-channel", (3, 1, 9, 7), 15, (3, 3), padding=(1, 1)),
    ConvCase("3x3-2-channels-channels-last", (2, 2, 8, 9), 1, (3, 3), padding=(1, 1), layout=channels_last),
    ConvCase("3x3-3-channels-stride-2", (2, 3, 9, 11), 16, (3, 3), stride=(2, 2), padding=(1, 1)),
    ConvCase("3x3-17-channels", (2, 17, 8, 8), 63, (3, 3), padding=(1, 1)),
    ConvCase("3x3-17-channels-last", (2, 17, 7, 9), 64, (3, 3), padding=(1, 1), layout=channels_last),
    ConvCase("3x3-no-padding", (1, 17, 10, 10), 130, (3, 3), layout=channels_last),
    ConvCase("3x3-stride-2", (1, 17, 11, 9), 65, (3, 3), (2, 2), (1, 1), layout=channels_last),
    ConvCase("3x3-stride-3", (2, 17, 10, 12), 17, (3, 3), (3, 3), (1, 1), layout=channels_last),
    ConvCase("3x3-dilation-2", (1, 17, 9, 9), 17, (3, 3), (1, 1), (2, 2), (2, 2), layout=channels_last),
    ConvCase("3x3-stride-3-dilation-2", (1, 17, 13, 12), 16, (3, 3), (3, 3), (2, 2), (2, 2)),
    ConvCase("3x3-uneven", (1, 17, 12, 11), 20, (3, 3), (2, 3), (0, 3), (2, 1), layout=channels_last),
    ConvCase("3x3-one-pixel", (2, 3, 1, 1), 16, (3, 3), padding=(1, 1)),
    ConvCase("3x3-one-column", (2, 17, 9, 1), 16, (3, 3), padding=(1, 1), layout=channels_last),
    ConvCase("3x3-rows-longer-than-a-tile", (1, 17, 3, 70), 16, (3, 3), padding=(1, 1), layout=channels_last),
    ConvCase("3x3-many-blocks", (1, 17, 48, 40), 20, (3, 3), padding=(1, 1), layout=channels_last),
    ConvCase("3x3-sliced-channels", (2, 17, 6, 6), 16, (3, 3), padding=(1, 1), layout=sliced_channels),
    ConvCase("3x3-transposed", (2, 17, 6, 8), 16, (3, 3), padding=(1, 1), layout=transposed),
    ConvCase("3x3-every-other-row", (2, 17, 6, 8), 16, (3, 3), padding=(1, 1), layout=every_other_row),
    ConvCase("5x5-image-smaller", (2, 2, 2, 3), 17, (5, 5), padding=(2, 2)),
    ConvCase("5x5-stride-2-1", (1, 17, 9, 8), 15, (5, 5), (2, 1), (2, 2), layout=channels_last),
    ConvCase("5x5-dilation-2-image-smaller", (1, 17, 4, 5), 16, (5, 5), (1, 1), (3, 3), (2, 2)),
    ConvCase("7x7-stride-2-3-channels", (1, 3, 20, 17), 64, (7, 7), (2, 2), (3, 3)),
    ConvCase("7x7-stride-3-1-channel", (2, 1, 13, 14), 17, (7, 7), (3, 3), (3, 3)),
    ConvCase("1x7", (1, 17, 4, 9), 16, (1, 7), padding=(0, 3), layout=channels_last),
    ConvCase("7x1", (1, 2, 9, 4), 16, (7, 1), padding=(3, 0)),
    ConvCase("groups-2", (2, 4, 6, 6), 6, (3, 3), padding=(1, 1), groups=2),
    ConvCase("groups-2-wide", (2, 34, 8, 9), 150, (3, 3), padding=(1, 1), groups=2, layout=channels_last),
    ConvCase("groups-4-1x1", (2, 20, 5, 6), 68, (1, 1), groups=4, layout=channels_last),
    ConvCase("groups-3-5x5-stride-2", (1, 9, 9, 8), 12, (5, 5), (2, 2), (2, 2), groups=3),
    ConvCase("groups-32", (2, 128, 6, 5), 128, (3, 3), padding=(1, 1), groups=32, layout=channels_last),
    ConvCase("groups-2-batch-0", (0, 4, 6, 6), 6, (3, 3), padding=(1, 1), groups=2),
    ConvCase("groups-2-no-channels", (2, 0, 6, 6), 6, (3, 3), padding=(1, 1), groups=2),
    ConvCase("depthwise-1x1", (2, 17, 5, 5), 17, (1, 1), groups=17, layout=channels_last),
    ConvCase("depthwise-2-channels-nchw", (2, 2, 9, 12), 2, (3, 3), padding=(1, 1), groups=2),
    ConvCase("depthwise-3x3", (2, 33, 9, 21), 33, (3, 3), padding=(1, 1), groups=33, layout=channels_last),
    ConvCase(
        "depthwise-3x3-two-panels", (2, 130, 7, 7), 130, (3, 3), (1, 1), (1, 1), (1, 1), 130, channels_last
    ),
    ConvCase("depthwise-3x3-nchw", (2, 19, 9, 11), 19, (3, 3), padding=(1, 1), groups=19),
    ConvCase("depthwise-3x3-sliced", (2, 7, 6, 6), 7, (3, 3), (1, 1), (1, 1), (1, 1), 7, sliced_channels),
    ConvCase("depthwise-3x3-repeated", (2, 7, 9, 9), 7, (3, 3), (1, 1), (1, 1), (1, 1), 7, repeated_pixel),
    ConvCase("depthwise-3x3-one-pixel", (2, 17, 1, 1), 17, (3, 3), padding=(1, 1), groups=17),
    ConvCase("depthwise-stride-2", (2, 17, 5, 5), 17, (3, 3), (2, 2), (1, 1), (1, 1), 17, channels_last),
    ConvCase("depthwise-stride-2-long", (1, 9, 8, 70), 9, (3, 3), (2, 2), (1, 1), (1, 1), 9, channels_last),
    ConvCase("depthwise-stride-3", (1, 9, 13, 14), 9, (3, 3), (3, 3), (1, 1), (1, 1), 9, channels_last),
    ConvCase("depthwise-dilation-2", (2, 17, 9, 12), 17, (3, 3), (1, 1), (2, 2), (2, 2), 17, channels_last),
    ConvCase(
        "depthwise-stride-2-dilation-2", (1, 8, 12, 15), 8, (3, 3), (2, 2), (2, 2), (2, 2), 8, channels_last
    ),
    ConvCase("depthwise-5x5", (2, 15, 9, 12), 15, (5, 5), padding=(2, 2), groups=15, layout=channels_last),
    ConvCase(
        "depthwise-5x5-stride-2", (2, 65, 14, 14), 65, (5, 5), (2, 2), (2, 2), (1, 1), 65, channels_last
    ),
    ConvCase(
        "depthwise-5x5-collides",
        (1, 512, 9, 10),
        512,
        (5, 5),
        padding=(2, 2),
        groups=512,
        layout=channels_last,
    ),
    ConvCase("depthwise-5x5-image-smaller", (2, 9, 2, 3), 9, (5, 5), padding=(2, 2), groups=9),
    ConvCase("depthwise-1x7", (1, 17, 4, 20), 17, (1, 7), padding=(0, 3), groups=17, layout=channels_last),
    ConvCase("depthwise-7x7", (1, 24, 14, 14), 24, (7, 7), padding=(3, 3), groups=24, layout=channels_last),
    ConvCase("depthwise-no-padding", (2, 17, 6, 9), 17, (3, 3), groups=17, layout=channels_last),
    ConvCase(
        "depthwise-many-blocks", (1, 17, 48, 40), 17, (3, 3), padding=(1, 1), groups=17, layout=channels_last
    ),
    ConvCase(
        "depthwise-multiplier-3", (2, 7, 6, 5), 21, (3, 3), padding=(1, 1), groups=7, layout=channels_last
    ),
]
UNGROUPED = [case for case in CONV2D if case.groups == 1]
DEPTHWISE = [case for case in CONV2D if case.groups == case.shape[1] == case.units > 1]
PACKABLE = [case for case in CONV2D if "multiplier" not in case.name]


@dataclass(frozen=True)
class ActiveCase:
    """How many outputs and inputs are active."""

    name: str
    units: int
    active_units: int
    inputs: int
    active_inputs: int

    def index_lists(self) -> tuple[Tensor, Tensor]:
        g = seeded(self.name)
        units = subset(self.units, self.active_units, g)
        return units, subset(self.inputs, self.active_inputs, g)


ACTIVE = [
    ActiveCase("all", 20, 20, 17, 17),
    ActiveCase("one-of-each", 20, 1, 17, 1),
    ActiveCase("no-units", 20, 0, 17, 5),
    ActiveCase("no-inputs", 20, 7, 17, 0),
    ActiveCase("odd-counts", 33, 19, 29, 13),
    ActiveCase("more-than-a-panel", 150, 131, 40, 33),
    ActiveCase("units-only", 70, 65, 17, 17),
    ActiveCase("inputs-only", 33, 33, 40, 3),
]


@dataclass(frozen=True)
class TableCase:
    """A convolution with a bias for each way in which the border cuts taps off."""

    conv: ConvCase
    zones: tuple[int, int, int, int]  # low and high, of the height and of the width

    @property
    def name(self) -> str:
        return f"{self.conv.name}-{'x'.join(map(str, self.zones))}"

    def table(self) -> Tensor:
        return torch.randn(*self.zones, self.conv.units, generator=seeded(self.name))


_NAMED = {case.name: case for case in CONV2D}
TABLES = [
    TableCase(_NAMED["3x3-17-channels-last"], (2, 2, 2, 2)),
    TableCase(_NAMED["3x3-17-channels-last"], (1, 1, 1, 1)),
    TableCase(_NAMED["3x3-no-padding"], (2, 2, 2, 2)),
    TableCase(_NAMED["3x3-one-pixel"], (2, 2, 2, 2)),
    TableCase(_NAMED["3x3-uneven"], (1, 3, 4, 2)),
    TableCase(_NAMED["3x3-many-blocks"], (2, 2, 2, 2)),
    TableCase(_NAMED["3x3-stride-3-dilation-2"], (2, 3, 2, 3)),
    TableCase(_NAMED["2x2-padding-3"], (3, 3, 3, 3)),
    TableCase(_NAMED["1x1-padding-1"], (2, 2, 2, 2)),
    TableCase(_NAMED["5x5-image-smaller"], (3, 4, 3, 2)),
    TableCase(_NAMED["7x7-stride-2-3-channels"], (4, 4, 4, 3)),
    TableCase(_NAMED["no-units"], (2, 2, 2, 2)),
    TableCase(_NAMED["depthwise-3x3"], (2, 2, 2, 2)),
    TableCase(_NAMED["depthwise-3x3-two-panels"], (2, 1, 2, 3)),
    TableCase(_NAMED["depthwise-5x5-image-smaller"], (3, 4, 3, 2)),
    TableCase(_NAMED["groups-2-wide"], (2, 2, 2, 2)),
]


def names(cases: list) -> list[str]:
    return [case.name for case in cases]
