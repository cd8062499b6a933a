"""Thresholds swept, and static pruning to the same operations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dynprune.experiments import models, static, trade_off
from dynprune.experiments.data import Data
from dynprune.experiments.data_sets import MNIST
from dynprune.experiments.evaluation import operations_per_sample, predict_all, quality
from dynprune.experiments.options import Protocol
from dynprune.experiments.samples import Images, Split
from dynprune.experiments.sources import Source

EXAMPLE = (torch.zeros(1, 1, 28, 28),)


def _data() -> Data:
    generator = torch.Generator().manual_seed(0)

    def split() -> Split:
        labels = torch.arange(128) % 10
        pixels = torch.randint(0, 80, (128, 1, 28, 28), generator=generator, dtype=torch.uint8)
        pixels += (17 * labels).view(-1, 1, 1, 1).to(torch.uint8)
        return Split(Images(pixels, MNIST.mean, MNIST.deviation), labels)

    return Data(MNIST, split(), split(), Source("embedded", "", "", {}))


def test_masks_keep_the_largest_weights_of_each_layer() -> None:
    model = models.mlp(784, 10, "128-64", 0).eval()
    pruned = static.torch_masks(model, EXAMPLE, 0.25)
    assert pruned.operations_share == 0.25
    for dense, masked in zip(model, pruned.model, strict=True):  # type: ignore[call-overload]
        if not isinstance(dense, nn.Linear):
            continue
        kept = masked.weight != 0
        assert kept.double().mean().item() == pytest.approx(0.25, abs=1e-3)
        assert torch.equal(masked.weight[kept], dense.weight[kept])
        assert dense.weight[kept].abs().min() >= dense.weight[~kept].abs().max()
        assert dense.weight.count_nonzero() == dense.weight.numel()


def test_masks_of_an_lstm() -> None:
    pruned = static.torch_masks(models.bilstm(5, 0), (), 0.5)
    share = (pruned.model.lstm.weight_hh_l0_reverse != 0).double().mean().item()
    assert share == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(("share", "everywhere"), [(0.7, True), (0.3, False)])
def test_torch_pruning_meets_the_share(share: float, everywhere: bool) -> None:
    pytest.importorskip("torch_pruning")
    model = models.mnist_cnn(0).eval()
    pruned = static.torch_pruning(model, EXAMPLE, share, everywhere)
    assert pruned.operations_share == pytest.approx(share, abs=0.03)
    left = operations_per_sample(pruned.model, EXAMPLE) / operations_per_sample(model, EXAMPLE)
    assert left == pruned.operations_share
    assert pruned.model(*EXAMPLE).shape == (1, 10)
    assert model.conv1.out_channels == 32


def test_torch_pruning_says_what_it_cannot_do() -> None:
    message = "Torch-Pruning: expected a model without LSTM, got one with"
    with pytest.raises(NotImplementedError, match=message):
        static.torch_pruning(models.bilstm(5, 0), (), 0.5, True)


def test_trade_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trade_off, "THRESHOLDS", (0.01, 0.4))
    monkeypatch.setattr(trade_off, "SWEPT", (("residual", "lstsq"), ("mean_abs", "none")))
    monkeypatch.setattr(trade_off, "TIMED_PASSES", 1)

    def unwilling(*_: object) -> static.Pruned:
        raise NotImplementedError("not today")

    monkeypatch.setattr(static, "METHODS", {"no": unwilling, "torch masks": static.torch_masks})
    data, model = _data(), models.mnist_cnn(0).eval()
    seen: list[tuple[int, int]] = []
    protocol = Protocol.for_limit(128)
    record = trade_off.trade_off(
        model, "contiguous", data, protocol, 0, lambda done, total: seen.append((done, total))
    )
    points = record["points"]
    swept = [(p["method"], p["compensation"], p["threshold"]) for p in points[:4]]
    assert swept == [
        ("residual", "lstsq", 0.01),
        ("residual", "lstsq", 0.4),
        ("mean_abs", "none", 0.01),
        ("mean_abs", "none", 0.4),
    ]
    assert points[1]["operations_share"] < 0.8 < points[0]["operations_share"] <= 1
    # Masks stand at the operations of the criterion they are compared with.
    shares = [p["operations_share"] for p in points]
    assert shares[4:] == shares[:2]
    assert record["not_compared"] == {"no": "not today"}
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5, 6]
    dense = quality(predict_all(model, data.test), data.test.labels)
    assert record["dense_accuracy"] == pytest.approx(dense.accuracy)
    for point in points:
        assert point["time_ms"] > 0 and point["time_share"] > 0
        assert 0 <= point["accuracy"] <= 1
