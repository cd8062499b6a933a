"""dynprune.nn.LSTM beside nn.LSTM, and its pruned units beside a step-by-step masked LSTM in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from dynprune.nn import LSTM
from tests.models.masked import relative_error

LENGTHS = torch.tensor([3, 9, 1, 9, 6])


def pair(**options: Any) -> tuple[nn.LSTM, LSTM]:
    torch.manual_seed(0)
    dense = nn.LSTM(6, 19, **options).eval().requires_grad_(False)
    return dense, LSTM.from_dense(dense)


def same(got: Any, expected: Any) -> None:
    y, (h, c) = got
    z, (hz, cz) = expected
    if isinstance(z, PackedSequence):
        assert torch.equal(y.batch_sizes, z.batch_sizes)
        for ours, theirs in ((y.sorted_indices, z.sorted_indices), (y.unsorted_indices, z.unsorted_indices)):
            assert (ours is None) == (theirs is None)
            assert ours is None or torch.equal(ours, theirs)
        y, z = y.data, z.data
    for ours, theirs in ((y, z), (h, hz), (c, cz)):
        assert relative_error(ours, theirs.double()) <= 1e-5


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bidirectional": {"bidirectional": True},
    "two layers": {"num_layers": 2, "dropout": 0.3},
    "all": {"num_layers": 3, "bidirectional": True, "batch_first": True},
    "no bias": {"bias": False, "bidirectional": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("given", [False, True], ids=["zero states", "given states"])
def test_drop_in(options: dict[str, Any], given: bool) -> None:
    dense, ours = pair(**options)
    x = torch.randn(5, 9, 6) if dense.batch_first else torch.randn(9, 5, 6)
    directions = len(ours.directions)
    hx = (torch.randn(directions, 5, 19), torch.randn(directions, 5, 19)) if given else None
    same(ours(x, hx), dense(x, hx))
    one = None if hx is None else (hx[0][:, 0], hx[1][:, 0])
    row = x[0] if dense.batch_first else x[:, 0]
    same(ours(row, one), dense(row, one))
    for packed in (
        pack_padded_sequence(x, LENGTHS, dense.batch_first, enforce_sorted=False),
        pack_padded_sequence(x, LENGTHS.sort(descending=True).values, dense.batch_first),
        pack_sequence([torch.randn(n, 6) for n in (7, 5, 2, 2, 1)]),
    ):
        same(ours(packed, hx), dense(packed, hx))


def masked(
    dense: nn.LSTM,
    ours: LSTM,
    x: Tensor,
    lengths: Tensor,
    hx: tuple[Tensor, Tensor],
    constants: dict[str, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Each step by hand: after it, pruned units are their constants. Time first, float64."""
    x = x.double()
    finals = []
    for layer in range(dense.num_layers):
        ways = [f"l{layer}", f"l{layer}_reverse"][: 2 if dense.bidirectional else 1]
        outputs = []
        for way in ways:
            w_ih, w_hh, b_ih, b_hh = (
                getattr(dense, f"{k}_{way}").double()
                for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            mask, fixed = ours.active()[way], constants[way].double()
            index = ours.directions.index(way)
            y = torch.zeros(x.shape[0], x.shape[1], dense.hidden_size, dtype=torch.float64)
            last_h = torch.zeros(x.shape[1], dense.hidden_size, dtype=torch.float64)
            last_c = last_h.clone()
            for row, length in enumerate(lengths.tolist()):
                h, c = hx[0][index, row].double(), hx[1][index, row].double()
                times = range(length)
                for t in reversed(times) if way.endswith("reverse") else times:
                    i, f, g, o = (w_ih @ x[t, row] + b_ih + w_hh @ h + b_hh).chunk(4)
                    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                    h = torch.where(mask, o.sigmoid() * c.tanh(), fixed)
                    y[t, row] = h
                last_h[row], last_c[row] = h, torch.where(mask, c, 0.0)
            outputs.append(y)
            finals.append((last_h, last_c))
        x = torch.cat(outputs, 2)
    return x, torch.stack([h for h, _ in finals]), torch.stack([c for _, c in finals])


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("given", [False, True], ids=["zero states", "given states"])
def test_pruned_units_are_constants(share: float, given: bool) -> None:
    dense, ours = pair(num_layers=2, bidirectional=True)
    g = torch.Generator().manual_seed(3)
    constants = {name: torch.randn(19, generator=g) for name in ours.directions}
    for name in ours.directions:
        ours.set_active(name, torch.rand(19, generator=g) < share, constants[name])
    x = torch.randn(9, 5, 6, generator=g)
    hx = tuple(torch.randn(4, 5, 19, generator=g) * given for _ in range(2))
    expected, h, c = masked(dense, ours, x, LENGTHS, hx, constants)  # type: ignore[arg-type]
    packed, (ours_h, ours_c) = ours(
        pack_padded_sequence(x, LENGTHS, enforce_sorted=False), hx if given else None
    )
    y, _ = pad_packed_sequence(packed)
    assert relative_error(y, expected) <= 1e-5
    assert relative_error(ours_h, h) <= 1e-5
    assert relative_error(ours_c, c) <= 1e-5
    full = torch.full((5,), 9)
    expected, h, c = masked(dense, ours, x, full, hx, constants)  # type: ignore[arg-type]
    y, (ours_h, _) = ours(x, hx if given else None)
    assert relative_error(y, expected) <= 1e-5
    assert relative_error(ours_h, h) <= 1e-5


def test_changed_weights_are_noticed() -> None:
    dense, ours = pair()
    x = torch.randn(4, 2, 6)
    before, _ = ours(x)
    with torch.no_grad():
        dense.weight_hh_l0.mul_(0.5)
    assert not torch.allclose(ours(x)[0], before)
    same(ours(x), dense(x))


def test_training_and_gradients_are_dense() -> None:
    dense = nn.LSTM(6, 19)
    ours = LSTM.from_dense(dense)
    ours.set_active("l0", torch.zeros(19, dtype=torch.bool))
    y, _ = ours.eval()(torch.randn(4, 2, 6))
    y.sum().backward()
    assert dense.weight_hh_l0.grad is not None
    assert ours.train()(torch.randn(4, 2, 6))[0].any()
