"""max_pool2d against PyTorch's, which it equals bit for bit."""

from __future__ import annotations

import pytest
import torch

from dynprune.ops import reference

# name: (shape, kernel, stride, padding, dilation, ceil_mode)
CASES = {
    "plain": ((2, 20, 28, 28), (2, 2), (2, 2), (0, 0), (1, 1), False),
    "one channel, ceil": ((1, 1, 5, 7), (3, 3), (2, 2), (1, 1), (1, 1), True),
    "dilated": ((3, 33, 9, 8), (3, 3), (1, 1), (1, 1), (2, 2), False),
    "uneven, ceil": ((2, 17, 13, 11), (3, 2), (2, 3), (1, 1), (1, 1), True),
    "overlapping": ((1, 64, 6, 6), (3, 3), (1, 1), (0, 0), (1, 1), False),
    "no channel": ((2, 0, 4, 4), (2, 2), (2, 2), (0, 0), (1, 1), False),
    "no image": ((0, 4, 4, 4), (2, 2), (2, 2), (0, 0), (1, 1), False),
    "two panels": ((1, 65, 4, 4), (2, 2), (2, 2), (0, 0), (1, 1), False),
}


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CASES)
def test_equals_reference(name: str, last: bool) -> None:
    shape, *geometry = CASES[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    got = torch.ops.dynprune.max_pool2d(x, *map(list, geometry[:4]), geometry[4])
    expected = reference.max_pool2d(x, *geometry)
    assert got.shape == expected.shape
    assert torch.equal(got, expected)


def test_nan_wins_and_infinity_stays() -> None:
    x = torch.tensor([[1.0, float("nan")], [float("-inf"), 2.0]]).reshape(1, 1, 2, 2)
    y = torch.ops.dynprune.max_pool2d(x, [2, 1], [2, 1])
    assert y[0, 0, 0, 0] == 1.0
    assert y[0, 0, 0, 1].isnan()
    assert torch.ops.dynprune.max_pool2d(x[:, :, 1:, :1], [1, 1], [1, 1]).item() == float("-inf")


@pytest.mark.parametrize("name", ["plain", "uneven, ceil"])
def test_opcheck(name: str) -> None:
    shape, *geometry = CASES[name]
    args = (torch.randn(shape), *map(list, geometry[:4]), geometry[4])
    torch.library.opcheck(torch.ops.dynprune.max_pool2d.default, args)


def test_bad_input() -> None:
    pool = torch.ops.dynprune.max_pool2d
    with pytest.raises(
        ValueError, match=r"max_pool2d: expected an input \[batch, channels, height, width\], got"
    ):
        pool(torch.zeros(1, 4, 4), [2, 2], [2, 2])
    with pytest.raises(ValueError, match="max_pool2d: expected a padded input at least 5 high, got 4"):
        pool(torch.zeros(1, 1, 4, 4), [5, 5], [1, 1])
    with pytest.raises(ValueError, match="padding of at most half the kernel, got 2, 2, 1, 2"):
        pool(torch.zeros(1, 1, 4, 4), [2, 2], [2, 2], [2, 2])
    with pytest.raises(ValueError, match="max_pool2d: expected a float32 input, got Double"):
        pool(torch.zeros(1, 1, 4, 4, dtype=torch.double), [2, 2], [2, 2])
