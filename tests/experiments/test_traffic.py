"""Traffic: which images, in which order."""

from __future__ import annotations

import pytest
import torch

from dynprune.experiments.traffic import Traffic, stream


def test_parse() -> None:
    assert Traffic.parse("4, 9") == Traffic((4, 9))
    assert Traffic.parse("4,9").name == "4,9"
    assert Traffic().name == "all classes"


@pytest.mark.parametrize("text", ["", "0,", "10", "-1", "0,0", "a", "1.0", "0 1", "01"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"traffic: expected different classes 0 to 9 .*, got '"):
        Traffic.parse(text)


def test_rows() -> None:
    labels = torch.tensor([3, 0, 1, 1, 9, 0])
    assert Traffic((0, 1)).rows(labels).tolist() == [1, 2, 3, 5]
    assert Traffic().rows(labels).tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="traffic 4,5: expected at least one image"):
        Traffic((4, 5)).rows(labels)


def test_stream_repeats_in_shuffled_rounds() -> None:
    rows = torch.tensor([5, 7, 11])
    order = stream(rows, 8, 0)
    assert order.dtype == torch.int64
    for start in (0, 3):
        assert sorted(order[start : start + 3].tolist()) == [5, 7, 11]
    assert set(order[6:].tolist()) <= {5, 7, 11}


def test_stream_is_a_function_of_the_seeds() -> None:
    rows = torch.arange(100)
    first = stream(rows, 150, 1, 2)
    assert torch.equal(first, stream(rows, 150, 1, 2))
    assert torch.equal(first[:120], stream(rows, 120, 1, 2))
    for other in ((2, 1), (1, 3), (2, 2)):
        assert not torch.equal(first, stream(rows, 150, *other))
