"""Traffic: which samples arrive, in which order, and what happens to them on their way."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import islice

import pytest
import torch

from dynprune.streams import Corruption, Phase, Stream, Traffic, shuffled_rounds

LABELS = torch.arange(200) % 10


def test_traffic_of_a_text() -> None:
    assert Traffic.parse("4, 9", 10) == Traffic((4, 9))
    assert Traffic.parse("4,9", 10).name == "4,9"
    assert Traffic.parse("all", 10) == Traffic()
    assert Traffic().name == "all classes"
    assert Traffic.parse("short", 2, "text").name == "short"


@pytest.mark.parametrize("text", ["", "0,", "10", "-1", "0,0", "a", "1.0", "0 1", "01", "short"])
def test_traffic_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"traffic: expected different classes 0 to 9 .*, got '"):
        Traffic.parse(text, 10)


def test_rows_of_classes() -> None:
    labels = torch.tensor([3, 0, 1, 1, 9, 0])
    assert Traffic((0, 1)).rows(labels).tolist() == [1, 2, 3, 5]
    assert Traffic().rows(labels).tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="traffic 4,5: expected at least one sample"):
        Traffic((4, 5)).rows(labels)


def test_rows_of_lengths() -> None:
    labels, lengths = torch.zeros(6, dtype=torch.int64), torch.tensor([9, 2, 5, 1, 9, 4])
    assert Traffic(lengths="short").rows(labels, lengths).tolist() == [1, 3]
    assert Traffic(lengths="long").rows(labels, lengths).tolist() == [0, 4]
    with pytest.raises(ValueError, match="traffic short: expected the lengths of texts, got none"):
        Traffic(lengths="short").rows(labels)


def test_rounds_are_shuffled() -> None:
    rows = torch.tensor([5, 7, 11])
    order = shuffled_rounds(rows, 8, 0)
    assert order.dtype == torch.int64
    for start in (0, 3):
        assert sorted(order[start : start + 3].tolist()) == [5, 7, 11]
    assert set(order[6:].tolist()) <= {5, 7, 11}


def test_rounds_are_a_function_of_the_seeds() -> None:
    rows = torch.arange(100)
    first = shuffled_rounds(rows, 150, 1, 2)
    assert torch.equal(first, shuffled_rounds(rows, 150, 1, 2))
    assert torch.equal(first[:120], shuffled_rounds(rows, 120, 1, 2))
    for other in ((2, 1), (1, 3), (2, 2)):
        assert not torch.equal(first, shuffled_rounds(rows, 150, *other))


def test_stream_of_a_text() -> None:
    stream = Stream.parse("sudden: 0,1*40+noise=0.2+contrast=0.5>8,9>all", 10)
    corruptions = (Corruption("noise", 0.2), Corruption("contrast", 0.5))
    expected = (Phase(Traffic((0, 1)), 40, corruptions), Phase(Traffic((8, 9))), Phase(Traffic()))
    assert (stream.kind, stream.phases, stream.batches) == ("sudden", expected, 160)
    assert [phase.name for phase in stream.phases] == ["0,1+noise=0.2+contrast=0.5", "8,9", "all"]
    assert Stream.parse("recurring:0*3>1*2", 10).batches == 10
    assert Stream.parse("recurring*4:0*3>1*2", 10).batches == 20
    texts = Stream.parse("gradual:short>all+truncate=20", 2, "text")
    assert texts.phases[1].corruptions == (Corruption("truncate", 20),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected sudden, gradual, recurring or recurring*ROUNDS, then ':', got ''"),
        ("0,1>8,9", "expected sudden, gradual, recurring or recurring*ROUNDS, then ':', got '0,1>8,9'"),
        ("slow:0>1", "then ':', got 'slow'"),
        ("sudden*2:0>1", "then ':', got 'sudden*2'"),
        ("recurring*0:0>1", "expected a whole number of rounds of at least 1, got '0'"),
        ("sudden:0", "expected at least two phases separated by '>', got '0'"),
        ("sudden:0>12", "expected different classes 0 to 9 separated by commas, got '12' in '12'"),
        ("sudden:0>1*0", "expected a whole number of batches of at least 1 after '*', got '1*0'"),
        ("sudden:0>1*x", "expected a whole number of batches of at least 1 after '*', got '1*x'"),
        ("sudden:0>1+fog=1", "expected a corruption out of noise, blur, contrast, got 'fog=1'"),
        ("sudden:0>1+noise", "expected noise=STRENGTH with a number above 0 and at most 100, got 'noise'"),
        ("sudden:0>1+blur=nan", "expected blur=STRENGTH with a number above 0 and at most 100"),
        ("sudden:0>short", "expected different classes 0 to 9 separated by commas, got 'short'"),
    ],
)
def test_stream_refuses(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^stream: .*{re.escape(message)}"):
        Stream.parse(text, 10)


def test_texts_have_corruptions_of_their_own() -> None:
    with pytest.raises(ValueError, match="expected a corruption out of truncate, got 'noise=1'"):
        Stream.parse("sudden:0>1+noise=1", 2, "text")
    with pytest.raises(ValueError, match="expected truncate=STEPS with a whole number"):
        Stream.parse("sudden:0>1+truncate=0.5", 2, "text")


def test_sudden() -> None:
    stream = Stream.parse("sudden:0,1*3>8,9*2", 10)
    batches = list(stream.arrivals(LABELS, batch_size=8))
    assert [batch.number for batch in batches] == [0, 1, 2, 3, 4]
    assert [batch.phase for batch in batches] == [0, 0, 0, 1, 1]
    for batch in batches:
        allowed = {0, 1} if batch.phase == 0 else {8, 9}
        assert set(LABELS[batch.rows].tolist()) <= allowed
        assert batch.phases.tolist() == 8 * [batch.phase]


def test_a_phase_goes_through_its_samples_before_it_repeats_any() -> None:
    stream = Stream.parse("recurring*2:0*2>1*3", 10)
    rows = [b.rows for b in stream.arrivals(LABELS, batch_size=5) if b.phase == 0]
    # 20 samples of class 0, four batches of five, of which two in the second round.
    assert sorted(torch.cat(rows).tolist()) == (LABELS == 0).nonzero().flatten().tolist()


def test_gradual() -> None:
    stream = Stream.parse("gradual:0*10>1*4", 10)
    shares = [(b.phases == 1).double().mean().item() for b in stream.arrivals(LABELS, batch_size=10)]
    assert shares == pytest.approx([0, 0, 0, 0, 0, 0.1, 0.3, 0.5, 0.7, 0.9, 1, 1, 1, 1])
    for batch in stream.arrivals(LABELS, batch_size=10):
        assert torch.equal(LABELS[batch.rows], batch.phases)


def test_stream_is_a_function_of_the_seed() -> None:
    def rows(seed: int) -> torch.Tensor:
        stream = Stream.parse("gradual:all*4>0,1*4", 10, seed=seed)
        return torch.cat([batch.rows for batch in stream.arrivals(LABELS, batch_size=16)])

    assert torch.equal(rows(1), rows(1))
    assert not torch.equal(rows(1), rows(2))


def _corrupted(corruption: str, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """``images`` as they arrive in the first batch of the second phase."""
    stream = Stream.parse(f"sudden:all*1>all*1+{corruption}", 10, seed=seed)
    arrivals = list(islice(stream.arrivals(LABELS, batch_size=len(images)), 2))
    (clean,) = stream.corrupt((images,), arrivals[0])
    assert torch.equal(clean, images)
    (corrupted,) = stream.corrupt((images,), arrivals[1])
    return corrupted


def test_noise() -> None:
    images = torch.full((4, 3, 32, 32), 0.5)
    noisy = _corrupted("noise=0.1", images)
    assert (noisy - 0.5).std().item() == pytest.approx(0.1, rel=0.1)
    assert torch.equal(noisy, _corrupted("noise=0.1", images))
    assert not torch.equal(noisy, _corrupted("noise=0.1", images, seed=1))
    strong = _corrupted("noise=2", images)
    assert strong.min() == 0 and strong.max() == 1


def test_blur() -> None:
    images = torch.zeros(2, 3, 15, 15)
    images[:, 1, 7, 7] = 1
    blurred = _corrupted("blur=1.5", images)
    assert blurred.sum((2, 3))[0].tolist() == pytest.approx([0, 1, 0], abs=1e-5)
    square = (torch.arange(15) - 7).double() ** 2
    assert (blurred[0, 1].double().sum(0) * square).sum().item() == pytest.approx(1.5**2, rel=0.05)
    assert torch.allclose(blurred[0, 1], blurred[0, 1].T, atol=1e-6)
    flat = _corrupted("blur=3", torch.full((1, 1, 8, 8), 0.3))
    torch.testing.assert_close(flat, torch.full((1, 1, 8, 8), 0.3))


def test_contrast() -> None:
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    faint = _corrupted("contrast=0.5", images)
    torch.testing.assert_close(faint.mean((1, 2, 3)), images.mean((1, 2, 3)))
    torch.testing.assert_close(faint.std((1, 2, 3)), 0.5 * images.std((1, 2, 3)))


def test_only_samples_of_the_phase_are_corrupted() -> None:
    stream = Stream.parse("gradual:0*2>1*2+noise=0.5", 10)
    batch = list(stream.arrivals(LABELS, batch_size=10))[1]
    images = torch.full((10, 1, 4, 4), 0.5)
    (corrupted,) = stream.corrupt((images,), batch)
    changed = (corrupted != images).flatten(1).any(1)
    assert torch.equal(changed, batch.phases == 1)
    assert 0 < int(changed.sum()) < 10


def test_truncation() -> None:
    stream = Stream.parse("gradual:all*2>all*2+truncate=2", 2, "text")
    batch = list(stream.arrivals(LABELS % 2, batch_size=4))[1]
    lengths = torch.tensor([4, 1, 3, 4])
    tokens = torch.tensor([[5, 6, 7, 8], [5, 0, 0, 0], [5, 6, 7, 0], [5, 6, 7, 8]])
    short, left = stream.corrupt((tokens, lengths), batch)
    for row in range(4):
        expected = min(2, int(lengths[row])) if batch.phases[row] == 1 else int(lengths[row])
        assert left[row] == expected
        assert short[row].count_nonzero() == expected
    assert short.shape == (4, int(left.max()))


def test_needs_no_extra() -> None:
    program = (
        "import sys, dynprune.streams; "
        "found = {'datasets', 'tokenizers', 'torchmetrics', 'rich', 'typer'} & set(sys.modules); "
        "sys.exit(', '.join(found) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
