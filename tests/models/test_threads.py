"""Two threads serve one model while a third flips units: nobody ever sees half a choice."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import dynprune
from tests.models.masked import relative_error
from tests.models.traffic import INPUTS, Traffic, two_halves

SECONDS = float(os.environ.get("DYNPRUNE_STRESS_SECONDS", "5"))
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _one_thread_each() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def together(*works: Callable[[], None], seconds: float) -> None:
    """Repeat each work in a thread of its own; the first exception is raised here."""
    errors: list[BaseException] = []
    end = time.monotonic() + seconds

    def repeat(work: Callable[[], None]) -> None:
        try:
            while time.monotonic() < end and not errors:
                work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_every_output_is_of_one_whole_published_choice() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 17, 3, padding=1), nn.SiLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(17 * 9, 40), nn.Tanh(), nn.Linear(40, 5),
    ).eval()  # fmt: skip
    inputs = [torch.randn(rows, 2, 6, 6) for rows in (1, 3, 8)]
    fast = dynprune.accelerate(model, inputs[0])
    fast.calibrate(torch.randn(64, 2, 6, 6))
    fast.freeze()
    published: list[dict[str, Tensor]] = [fast.active()]
    fast.on_update(published.append)
    served: list[tuple[int, int, int, Tensor]] = []  # input, choices before and after it, output
    chance = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    # The callback runs after the plan is in place: an output may be of the choice about to be told.
    turn = threading.Semaphore(0)

    def serve(index: int) -> Callable[[], None]:
        draw = random.Random(index)

        def work() -> None:
            which = draw.randrange(len(inputs))
            before = len(published) - 1
            output = fast(inputs[which])
            if draw.random() < 0.2:  # keeps the check below as short as the test
                served.append((which, before, len(published), output))
            turn.release()

        return work

    def flip() -> None:
        turn.acquire(timeout=1)
        name = chance.choice(list(fast.groups))
        share = chance.choice([0.0, 0.2, 0.7, 1.0])
        fast.set_active(name, torch.rand(fast.groups[name].units, generator=generator) < share)

    together(serve(1), serve(2), flip, seconds=SECONDS)
    assert len(published) > 50 * min(1.0, SECONDS) and len(served) > 50 * min(1.0, SECONDS)
    expected: dict[tuple[int, int], Tensor] = {}
    changes = 0
    names = list(fast.groups)

    def output_of(choice: int, which: int) -> Tensor:
        if (choice, which) not in expected:
            for name in names:
                fast.set_active(name, wanted[choice][name])
            expected[choice, which] = fast(inputs[which])
        return expected[choice, which]

    wanted = list(published)
    for which, first, last, output in served[-4000:]:
        choices = range(first, min(last + 1, len(wanted)))
        changes += len(choices) > 1
        assert any(relative_error(output, output_of(c, which).double()) <= TOLERANCE for c in choices)
    assert changes > 0, "no choice was published while a request ran"


def test_adapting_in_several_threads() -> None:
    """Requests, decisions, forced sets and control at the same time; then the right answer is there."""
    fast = dynprune.accelerate(
        two_halves(), torch.zeros(2, INPUTS), dynprune.Config(evidence=128, canary_interval=2)
    )
    traffics = [Traffic(seed) for seed in range(2)]
    rows = [0, 0]

    def serve(index: int) -> Callable[[], None]:
        def work() -> None:
            assert fast(traffics[index].low(32)).isfinite().all()
            rows[index] += 32

        return work

    def control() -> None:
        fast.set_active("0", torch.rand(64) < 0.5)
        fast.stats(), fast.usage(), fast.constants(), fast.active()
        fast.release("0")
        fast.freeze()
        fast.unfreeze()

    together(serve(0), serve(1), control, seconds=min(2.0, SECONDS))
    for _ in range(8):
        fast(traffics[0].low(32))
    stats = fast.stats()
    assert stats["rows"] == sum(rows) + 8 * 32, "no report is lost"
    assert stats["batches"] == stats["rows"] // 32
    assert torch.equal(fast.active()["0"], torch.arange(64) < 32)


@pytest.mark.parametrize("background", [False, True])
def test_eight_threads_on_a_model_that_adapts(background: bool) -> None:
    """Every row of every answer is that of one published choice, with its constants, or of all units."""
    config = dynprune.Config(
        evidence=128, canary_interval=2, drift_interval=4, dwell=0, window=256, background=background
    )
    model = two_halves()
    fast = dynprune.accelerate(model, torch.zeros(2, INPUTS), config)
    choices: list[tuple[Tensor, Tensor]] = [(torch.ones(64, dtype=torch.bool), torch.zeros(64))]
    # The plan is in place when it is told of; nobody else publishes meanwhile.
    fast.on_update(lambda active: choices.append((active["0"], fast.constants()["0"])))
    served: list[tuple[Tensor, Tensor]] = []

    def serve(index: int) -> Callable[[], None]:
        traffic, draw = Traffic(index), random.Random(index)

        def work() -> None:
            # The traffic shifts when it has been learned: in the background, among eight threads, that
            # takes as long as it takes. Both kinds keep all units, so time ends that phase.
            kind = (traffic.low, traffic.high)[len(choices) % 2]
            if time.monotonic() % 1 < 0.2:
                kind = traffic.both
            x = kind(draw.choice([1, 7, 32]))
            output = fast(x)
            if len(served) < 3000 or draw.random() < 0.01:
                served.append((x, output))

        return work

    for _ in range(6):  # a busy machine may need longer to learn three times
        together(*(serve(index) for index in range(8)), seconds=SECONDS)
        fast.wait()
        if len(choices) > 3:
            break
    kept = served[:2000] + served[-1000:]
    x, output = (torch.cat(column).double() for column in zip(*kept, strict=True))
    twin = two_halves().double()
    hidden = torch.relu(twin[0](x))
    nearest = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for mask, constants in choices:
        expected = twin[2](torch.where(mask, hidden, constants.double()))
        nearest = torch.minimum(nearest, (output - expected).abs().amax(1))
    assert len(choices) > 3, "it adapted"
    assert float(nearest.max()) <= TOLERANCE * float(output.abs().max())
