"""Random changes of training images, pixels float32 [n, channels, height, width] of 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def crop(pixels: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Each image shifted by up to ``padding`` pixels, black behind it; every second one mirrored."""
    count, _, height, width = pixels.shape
    shifts = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    rows = shifts[0] + torch.arange(height)
    across = torch.arange(width)
    columns = shifts[1] + torch.where(mirrored, across.flip(0), across)
    padded = nn.functional.pad(pixels, (padding,) * 4)
    image = torch.arange(count).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[image, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def affine(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Rotated by up to 20 degrees; shifted, sheared and zoomed by up to 0.2; every second one mirrored.

    Shifts are shares of the size, the shear is a slope. What lies outside is filled with the nearest pixel.
    """
    count = len(pixels)

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(count, generator=generator) - 1) * limit

    angle, slope, zoom = uniform(math.radians(20)), uniform(0.2), 1 + uniform(0.2)
    # grid_sample measures from -1 to 1, so a share of the size counts double.
    shift = torch.stack([2 * uniform(0.2), 2 * uniform(0.2)], 1)
    sign = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    across = torch.stack([cos, slope * cos - sin], 1) * (zoom * sign).unsqueeze(1)
    down = torch.stack([sin, slope * sin + cos], 1) * zoom.unsqueeze(1)
    matrix = torch.cat([torch.stack([across, down], 1), shift.unsqueeze(2)], 2)
    grid = nn.functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    return nn.functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


AUGMENTATIONS: dict[str, Augmentation] = {"crop": crop, "affine": affine}
