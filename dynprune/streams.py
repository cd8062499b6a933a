"""Reproducible traffic from a labelled data set: subsets, shifts between them, recurring phases, corruptions.

A stream is written as ``KIND:PHASE>PHASE>...``, for instance ``sudden:0,1>8,9>all``:

* KIND is ``sudden``; ``gradual``: over the second half of each phase but the last, samples of the next one
  take over; or ``recurring``: the phases come round again, ``recurring*4`` four times (twice if not given).
* PHASE is a subset, then ``*BATCHES`` (60 if not given), then any number of ``+CORRUPTION=STRENGTH``:
  ``0,1*40+noise=0.2+contrast=0.5``.
* A subset is ``all``, classes such as ``0,1``, or for texts ``short`` or ``long``: the shortest and the
  longest third.
* CORRUPTION is for images, whose pixels are 0 to 1, ``noise`` (standard deviation), ``blur`` (standard
  deviation in pixels) or ``contrast`` (factor about the image's mean, below 1 for less); for texts
  ``truncate`` (steps that are left).

Needs nothing but what the core install brings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

KINDS = ("sudden", "gradual", "recurring")
LENGTHS = ("short", "long")
CORRUPTIONS = {"image": ("noise", "blur", "contrast"), "text": ("truncate",)}
DEFAULT_BATCHES = 60
DEFAULT_ROUNDS = 2


@dataclass(frozen=True)
class Traffic:
    """The samples that arrive: those of some classes, or texts of some lengths, or all.

    ``classes``: their numbers, None for all; ``lengths``: ``"short"`` or ``"long"``, None for all.
    """

    classes: tuple[int, ...] | None = None
    lengths: str | None = None

    @classmethod
    def parse(cls, text: str, classes: int, kind: str = "image") -> Traffic:
        """Traffic of a text such as ``"0,1"``, ``"all"`` or, where ``kind`` is ``"text"``, ``"short"``.

        ``classes`` is the number of classes of the data set.

        Raises:
            ValueError: the text is none of these.
        """
        if text.strip() == "all":
            return cls()
        if kind == "text" and text.strip() in LENGTHS:
            return cls(lengths=text.strip())
        numbers = [part.strip() for part in text.split(",")]
        known = {str(number) for number in range(classes)}
        if not set(numbers) <= known or len(set(numbers)) < len(numbers):
            lengths = f", or one of {', '.join(LENGTHS)}" if kind == "text" else ""
            raise ValueError(
                f"traffic: expected different classes 0 to {classes - 1} separated by commas{lengths}, "
                f"got {text!r}"
            )
        return cls(tuple(int(number) for number in numbers))

    @property
    def name(self) -> str:
        """``"all classes"``, or as it is parsed: ``"0,1"``."""
        if self.lengths is not None:
            return self.lengths
        return "all classes" if self.classes is None else ",".join(map(str, self.classes))

    def rows(self, labels: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Row numbers int64 [n] of these samples; ``labels`` and ``lengths`` (steps): int64 [N].

        Raises:
            ValueError: there is no such sample, or lengths are asked for and not given.
        """
        if self.lengths is not None:
            if lengths is None:
                raise ValueError(f"traffic {self.name}: expected the lengths of texts, got none")
            low, high = _thirds(lengths)
            chosen = (lengths <= low if self.lengths == "short" else lengths >= high).nonzero().flatten()
        elif self.classes is None:
            chosen = torch.arange(len(labels))
        else:
            chosen = torch.isin(labels, torch.tensor(self.classes)).nonzero().flatten()
        if len(chosen) == 0:
            raise ValueError(f"traffic {self.name}: expected at least one sample in each split, got none")
        return chosen


def _thirds(lengths: Tensor) -> tuple[int, int]:
    ordered = lengths.sort().values
    return int(ordered[(len(ordered) - 1) // 3]), int(ordered[2 * len(ordered) // 3])


def shuffled_rounds(rows: Tensor, count: int, *seed: int) -> Tensor:
    """The first ``count`` of endless rounds over ``rows``, each round shuffled anew.

    ``rows``: int64 [n]; the result: int64 [count]. The numbers of ``seed`` determine
    the order.
    """
    generator = np.random.default_rng(seed)
    rounds = -(-count // len(rows))
    order = np.concatenate([generator.permutation(len(rows)) for _ in range(rounds)])
    return rows[torch.from_numpy(order[:count])]


@dataclass(frozen=True)
class Corruption:
    """What happens to samples on their way; strengths as in the text at the top of this module."""

    name: str
    strength: float

    def images(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """``pixels`` float [n, channels, height, width], 0 to 1, corrupted."""
        if self.name == "noise":
            noise = torch.randn(pixels.shape, generator=generator, dtype=pixels.dtype)
            return (pixels + self.strength * noise).clamp(0, 1)
        if self.name == "blur":
            return _blurred(pixels, self.strength)
        mean = pixels.mean((1, 2, 3), keepdim=True)
        return (mean + self.strength * (pixels - mean)).clamp(0, 1)


def _blurred(pixels: Tensor, deviation: float) -> Tensor:
    """A Gaussian blur, along the height and then along the width; the border is repeated."""
    channels = pixels.shape[1]
    radius = max(1, math.ceil(3 * deviation))
    taps = torch.arange(-radius, radius + 1, dtype=pixels.dtype)
    kernel = torch.exp(-0.5 * (taps / deviation) ** 2)
    kernel = (kernel / kernel.sum()).repeat(channels, 1, 1)
    padded = nn.functional.pad(pixels, (radius, radius, radius, radius), mode="replicate")
    tall = nn.functional.conv2d(padded, kernel.unsqueeze(3), groups=channels)
    return nn.functional.conv2d(tall, kernel.unsqueeze(2), groups=channels)


@dataclass(frozen=True)
class Phase:
    """``batches`` batches of one kind of traffic, corrupted one way."""

    traffic: Traffic
    batches: int = DEFAULT_BATCHES
    corruptions: tuple[Corruption, ...] = ()

    @property
    def name(self) -> str:
        """The phase as it is written, without its length."""
        subset = "all" if self.traffic == Traffic() else self.traffic.name
        return subset + "".join(f"+{each.name}={each.strength:g}" for each in self.corruptions)


@dataclass(frozen=True)
class Arrival:
    """One batch: ``rows`` int64 [n] of the data set, and the ``phases`` int64 [n] they belong to.

    ``number`` counts batches from 0; ``phase`` is the one that the stream is in.
    """

    number: int
    phase: int
    rows: Tensor
    phases: Tensor


@dataclass(frozen=True)
class Stream:
    """Phases of traffic, one after the other; ``seed`` determines rows, order and noise."""

    kind: str
    phases: tuple[Phase, ...]
    rounds: int = 1
    seed: int = 0

    @classmethod
    def parse(cls, text: str, classes: int, kind: str = "image", seed: int = 0) -> Stream:
        """The stream written as ``text``, see the top of this module.

        ``classes``: the number of classes of the data set; ``kind``: ``"image"`` or ``"text"``, what its
        samples are.

        Raises:
            ValueError: the text is not a stream of such samples; the message says what was expected.
        """
        shift, colon, rest = text.partition(":")
        name, star, rounds = shift.strip().partition("*")
        if not colon or name not in KINDS or (star and name != "recurring"):
            raise _unexpected(f"{', '.join(KINDS[:-1])}, recurring or recurring*ROUNDS, then ':'", shift)
        if star and not _is_count(rounds):
            raise _unexpected("a whole number of rounds of at least 1", rounds)
        phases = tuple(_parse_phase(part, classes, kind) for part in rest.split(">"))
        if len(phases) < 2:
            raise _unexpected("at least two phases separated by '>'", rest)
        times = (int(rounds) if star else DEFAULT_ROUNDS) if name == "recurring" else 1
        return cls(name, phases, times, seed)

    @property
    def batches(self) -> int:
        """Batches of the whole stream."""
        return self.rounds * sum(phase.batches for phase in self.phases)

    def arrivals(
        self, labels: Tensor, lengths: Tensor | None = None, batch_size: int = 64
    ) -> Iterator[Arrival]:
        """The stream on a data set with ``labels`` (and ``lengths`` of texts), both int64 [N].

        Each phase goes through its samples in shuffled rounds, on and on when it recurs.

        Raises:
            ValueError: a phase has no sample.
        """
        sources = [
            _endless(phase.traffic.rows(labels, lengths), self.seed, number)
            for number, phase in enumerate(self.phases)
        ]
        order = np.random.default_rng((self.seed, len(sources)))
        for number, (phase, share) in enumerate(self._course()):
            incoming = round(share * batch_size)
            phases = torch.full((batch_size,), phase)
            phases[batch_size - incoming :] += 1
            phases = phases[torch.from_numpy(order.permutation(batch_size))]
            rows = torch.tensor([next(sources[each]) for each in phases.tolist()])
            yield Arrival(number, phase, rows, phases)

    def _course(self) -> Iterator[tuple[int, float]]:
        """Of each batch its phase and the share of samples that come from the next one."""
        for _ in range(self.rounds):
            for number, phase in enumerate(self.phases):
                fades = self.kind == "gradual" and number + 1 < len(self.phases)
                half = phase.batches / 2
                for batch in range(phase.batches):
                    yield number, max(0.0, (batch + 0.5 - half) / half) if fades else 0.0

    def corrupt(self, samples: Sequence[Tensor], arrival: Arrival) -> tuple[Tensor, ...]:
        """The samples of ``arrival`` as they reach the model.

        ``samples``: images as one float tensor [n, channels, height, width], 0 to 1; texts as int64
        [n, steps], 0 where a row has ended, and their lengths int64 [n].
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + arrival.number)
        for number in sorted(set(arrival.phases.tolist())):
            affected = arrival.phases == number
            for corruption in self.phases[number].corruptions:
                if corruption.name == "truncate":
                    samples = _truncated(samples[0], samples[1], affected, int(corruption.strength))
                else:
                    pixels = samples[0].clone()
                    pixels[affected] = corruption.images(pixels[affected], generator)
                    samples = (pixels,)
        return tuple(samples)


def _truncated(tokens: Tensor, lengths: Tensor, affected: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    lengths = torch.where(affected, lengths.clamp(max=steps), lengths)
    longest = int(lengths.max())
    ended = torch.arange(longest) >= lengths.unsqueeze(1)
    return tokens[:, :longest].masked_fill(ended, 0), lengths


def _endless(rows: Tensor, *seed: int) -> Iterator[int]:
    generator = np.random.default_rng(seed)
    while True:
        yield from rows[torch.from_numpy(generator.permutation(len(rows)))].tolist()


def _parse_phase(text: str, classes: int, kind: str) -> Phase:
    head, *corruptions = text.split("+")
    subset, star, batches = head.partition("*")
    if star and not _is_count(batches):
        raise _unexpected("a whole number of batches of at least 1 after '*'", text)
    try:
        traffic = Traffic.parse(subset, classes, kind)
    except ValueError as error:
        raise ValueError(f"stream: {str(error).removeprefix('traffic: ')} in {text!r}") from error
    return Phase(
        traffic,
        int(batches) if star else DEFAULT_BATCHES,
        tuple(_parse_corruption(each, kind) for each in corruptions),
    )


def _parse_corruption(text: str, kind: str) -> Corruption:
    name, _, strength = text.strip().partition("=")
    known = CORRUPTIONS[kind]
    if name not in known:
        raise _unexpected(f"a corruption out of {', '.join(known)}", text)
    if name == "truncate":
        if not _is_count(strength):
            raise _unexpected("truncate=STEPS with a whole number of at least 1", text)
        return Corruption(name, int(strength))
    try:
        value = float(strength)
    except ValueError:
        value = math.nan
    if not 0 < value <= 100:
        raise _unexpected(f"{name}=STRENGTH with a number above 0 and at most 100", text)
    return Corruption(name, value)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) >= 1


def _unexpected(expected: str, got: str) -> ValueError:
    return ValueError(f"stream: expected {expected}, got {got!r}")
