"""Steps of a long measurement, each a process with its own budget; a failure ends one step only."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

TAIL = 20_000  # characters of output that are kept
GRACE = 8.0  # seconds that a step has to end by itself, and again when it was killed


@dataclasses.dataclass(frozen=True)
class Step:
    """A command and what it may take.

    Attributes:
        name: of the step.
        command: its program and arguments.
        seconds: its budget.
        environment: variables to set.
        only_after_failure_of: the step runs only where that one has failed.
    """

    name: str
    command: Sequence[str]
    seconds: float
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    only_after_failure_of: str | None = None


def run_step(step: Step, seconds: float, folder: Path) -> dict[str, Any]:
    """Run a step for at most ``seconds``.

    Lines of its output that are JSON objects are its results, those before a failure too.

    Returns:
        ``status`` ("ok", "failed", "out of time" or "not started"), ``seconds``, ``results``, and what else
        it printed at its end.
    """
    begin, status = time.monotonic(), "ok"
    try:
        process = _start(step, folder)
    except OSError as error:
        return {"status": "not started", "seconds": 0.0, "results": [], "output": str(error)}
    try:
        output, _ = process.communicate(timeout=seconds)
        status = "ok" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        status, output = "out of time", _stop(process)
    results, rest = [], []
    for line in output.splitlines():
        found = _result(line)
        if found is None:
            rest.append(line)
        else:
            results.append(found)
    elapsed = round(time.monotonic() - begin, 1)
    return {"status": status, "seconds": elapsed, "results": results, "output": "\n".join(rest)[-TAIL:]}


def _start(step: Step, folder: Path) -> subprocess.Popen[str]:
    """The step's process, which heads a session of its own, so that all it starts can be ended with it.

    It heeds an interrupt, by which it is ended, also where this program was told not to, as a shell tells
    what it starts in the background.
    """
    return subprocess.Popen(
        list(step.command),
        cwd=folder,
        env={**os.environ, **step.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def _stop(process: subprocess.Popen[str]) -> str:
    """End a process and what it has started, and give what it printed."""
    output: str | bytes = ""
    for number in (signal.SIGINT, signal.SIGKILL):  # interrupted, pytest still says which tests have failed
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            output = process.communicate(timeout=GRACE)[0]
            break
        except subprocess.TimeoutExpired as late:
            # Waits for a driver that waits for the device, or something that left the session holds the pipe.
            output = late.output or b""
    with contextlib.suppress(ProcessLookupError):  # what closed the pipe and lives on
        os.killpg(process.pid, signal.SIGKILL)
    return output if isinstance(output, str) else output.decode(errors="replace")


def _result(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def run_steps(
    steps: Sequence[Step], seconds: float, folder: Path, report: Callable[[str, dict[str, Any]], None]
) -> dict[str, dict[str, Any]]:
    """Run steps one after the other, within ``seconds`` for all of them.

    Args:
        steps: to run.
        seconds: of all of them together; what is over is "left out".
        folder: they run in.
        report: called with each step's name and record when it has ended.
    """
    end, records = time.monotonic() + seconds, {}
    for step in steps:
        before = records.get(step.only_after_failure_of or "")
        if step.only_after_failure_of is not None and (before is None or before["status"] == "ok"):
            continue
        left = end - time.monotonic() - 2 * GRACE
        if left < 1:
            record: dict[str, Any] = {"status": "left out", "seconds": 0.0, "results": [], "output": ""}
        else:
            record = run_step(step, min(step.seconds, left), folder)
        records[step.name] = record
        report(step.name, record)
    return records
