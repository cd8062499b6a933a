"""One bidirectional LSTM layer with usage sums, against ``nn.LSTM`` of the same (compact) size.

"packed" rows have lengths from a tenth to all of the steps and go in and out as ``PackedSequence``, on the
drop-in layer (which pads and packs, without usage); the others are padded batches on the op.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from benchmarks.common import contestants, cpu_only, device, measure, usage_of
from dynprune.nn import LSTM
from dynprune.plan.lstm import packed_gates


@dataclass(frozen=True)
class Shape:
    hidden: int  # also the size of the input
    batch: int
    steps: int
    packed: bool = False

    @property
    def name(self) -> str:
        return f"h{self.hidden}-b{self.batch}-t{self.steps}{'-packed' * self.packed}"


SHAPES = [
    Shape(hidden, batch, steps, packed)
    for hidden in (32, 51, 64, 128, 256)
    for batch, packed in ((1, False), (64, False), (64, True))
    for steps in (50, 200)
]


@contestants("ours", "eager")
@pytest.mark.parametrize("shape", SHAPES, ids=[shape.name for shape in SHAPES])
def bench_lstm(benchmark: Any, shape: Shape, contestant: str) -> None:
    torch.manual_seed(0)
    dense = nn.LSTM(shape.hidden, shape.hidden, bidirectional=True, batch_first=True).eval()
    dense.requires_grad_(False)
    x = torch.randn(shape.batch, shape.steps, shape.hidden).to(device())
    dense.to(device())
    if shape.packed:
        cpu_only()  # on a GPU the layer is nn.LSTM
        lengths = torch.randint(max(1, shape.steps // 10), shape.steps + 1, (shape.batch,))
        sequence: Any = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        fast = LSTM.from_dense(dense)

        def ours() -> Tensor:
            return fast(sequence)[0].data  # type: ignore[no-any-return]

        def eager() -> Tensor:
            return dense(sequence)[0].data
    else:
        weights, biases = [], []
        for name in ("l0", "l0_reverse"):
            weights.append(
                packed_gates(getattr(dense, f"weight_ih_{name}"), getattr(dense, f"weight_hh_{name}"))
            )
            bias = (getattr(dense, f"bias_ih_{name}") + getattr(dense, f"bias_hh_{name}")).view(4, -1)
            biases.append(torch.stack([bias, bias]))
        usage = usage_of(2 * shape.hidden)

        def ours() -> Tensor:
            y: Tensor = torch.ops.dynprune.lstm.default(x, weights, biases, batch_first=True, usage=usage)[0]
            return y

        def eager() -> Tensor:
            return dense(x)[0]

    measure(benchmark, "lstm", shape.name, contestant, {"ours": ours, "eager": eager})
