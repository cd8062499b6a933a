"""A wrong argument gets the same sentence from the compiled ops and from the reference ops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dynprune.ops import reference

X, W, B = torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(3)
IMAGE, KERNEL = torch.zeros(1, 4, 5, 5), torch.zeros(3, 4, 3, 3)

# name: (op, positional arguments, keyword arguments)
CASES: dict[str, tuple[str, tuple[torch.Tensor, ...], dict[str, Any]]] = {
    "linear activation": ("linear", (X, W, B), {"activation": "swish"}),
    "linear unsorted": ("linear", (X, W, B), {"indices": torch.tensor([2, 1])}),
    "linear beyond": ("linear", (X, W, B), {"indices": torch.tensor([3])}),
    "linear input beyond": ("linear", (X, W, B), {"input_indices": torch.tensor([4])}),
    "linear input threshold": ("linear", (X, W, B), {"input_threshold": -0.5}),
    "linear input threshold nan": ("linear", (X, W, B), {"input_threshold": float("nan")}),
    "linear input major": ("linear", (X, W, B), {"input_major": torch.zeros(4, 8)}),
    "conv unsorted": ("conv2d", (IMAGE, KERNEL, B), {"indices": torch.tensor([1, 1])}),
    "conv activation": ("conv2d", (IMAGE, KERNEL, B), {"activation": ""}),
    "conv groups": ("conv2d", (IMAGE, KERNEL, B), {"groups": 2}),
    "conv inputs with groups": (
        "conv2d",
        (IMAGE, torch.zeros(4, 2, 3, 3)),
        {"groups": 2, "input_indices": torch.tensor([1])},
    ),
    "packed groups": ("conv2d", (IMAGE, torch.zeros(1, 3, 3, 4, 8), B), {"groups": 2}),
    "packed depthwise groups": ("conv2d", (IMAGE, torch.zeros(1, 3, 3, 1, 8), B), {"groups": 2}),
    "conv dims": ("conv2d", (IMAGE, KERNEL[0], B), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_same_sentence(name: str) -> None:
    op, args, kwargs = CASES[name]
    with pytest.raises(ValueError, match=f"{op}: expected") as ours:
        getattr(torch.ops.dynprune, op)(*args, **kwargs)
    with pytest.raises(ValueError, match=f"{op}: expected") as theirs:
        getattr(reference, op)(*args, **kwargs)
    assert str(ours.value).splitlines()[0] == str(theirs.value)


@pytest.mark.parametrize("op", ["linear", "conv2d"])
def test_usage_of_the_wrong_shape(op: str) -> None:
    args = (X, W, B) if op == "linear" else (IMAGE, KERNEL, B)
    for function in (getattr(torch.ops.dynprune, op), getattr(reference, op)):
        with pytest.raises(
            ValueError, match=rf"{op}: expected float64 usage \[4, 3\] with contiguous rows, got"
        ):
            function(*args, usage=torch.zeros(4, 2, dtype=torch.float64))
