"""What ``benchmarks/gpu.py`` does beside a GPU: steps and their budgets, the record, the table."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_cases
from benchmarks import steps as benchmark_steps
from benchmarks.steps import Step, run_step, run_steps


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_step_that_ends_well() -> None:
    code = "print('hello'); print('{\"suite\": \"linear\"}'); print('{no json'); print('[1]')"
    record = run_step(Step("one", python(code), 60), 60, Path.cwd())
    assert record["status"] == "ok"
    assert record["results"] == [{"suite": "linear"}]
    assert record["output"] == "hello\n{no json\n[1]"


def test_a_step_that_fails_keeps_its_results() -> None:
    record = run_step(Step("one", python("print('{}'); raise SystemExit('broken')"), 60), 60, Path.cwd())
    assert (record["status"], record["results"], record["output"]) == ("failed", [{}], "broken")


def test_a_step_out_of_time_ends_with_what_it_has_started() -> None:
    code = "import subprocess, sys; print('{\"a\": 1}', flush=True); subprocess.run(['sleep', '60'])"
    begin = time.monotonic()
    record = run_step(Step("one", python(code), 60), 3, Path.cwd())
    assert (record["status"], record["results"]) == ("out of time", [{"a": 1}])
    assert time.monotonic() - begin < 30


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["heeds", "ignores"])
def interrupts(request: pytest.FixtureRequest) -> Iterator[None]:
    """This program heeds interrupts, or ignores them as one in the background of a shell does."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupted_pytest_still_says_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine is, it is the interrupt that ends it, and only once a test has failed.
    monkeypatch.setattr(benchmark_steps, "GRACE", 120.0)
    (tmp_path / "test_two.py").write_text(
        "import pathlib, time\ndef test_one():\n    assert 1 == 2\n"
        "def test_two():\n    pathlib.Path('reached').touch()\n    time.sleep(600)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)]
    process = benchmark_steps._start(Step("one", command, 60), tmp_path)
    while not (tmp_path / "reached").exists():
        assert process.poll() is None
        time.sleep(0.05)
    assert "assert 1 == 2" in benchmark_steps._stop(process)


def test_a_pipe_that_stays_open_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_steps, "GRACE", 0.5)
    code = "import subprocess as s; print('{}', flush=True); s.Popen(['sleep', '9'], start_new_session=True)"
    record = run_step(Step("one", python(code), 60), 2, Path.cwd())
    assert (record["status"], record["results"]) == ("out of time", [{}])


def test_a_program_that_is_not_there() -> None:
    record = run_step(Step("one", ["no-such-program"], 60), 60, Path.cwd())
    assert record["status"] == "not started"
    assert "no-such-program" in record["output"]


def test_steps_go_on_after_a_failure_and_stop_at_the_end_of_time() -> None:
    said: list[str] = []
    steps = [
        Step("bad", python("raise SystemExit(1)"), 60),
        Step("instead", python("pass"), 60, only_after_failure_of="bad"),
        Step("unneeded", python("pass"), 60, only_after_failure_of="instead"),
        Step(
            "told", python("import os; print(os.environ['DYNPRUNE_BACKEND'])"), 60, {"DYNPRUNE_BACKEND": "x"}
        ),
        Step("long", python("import time; time.sleep(60)"), 60),
        Step("late", python("pass"), 60),
    ]
    records = run_steps(steps[:4], 60, Path.cwd(), lambda name, record: said.append(name))
    assert said == ["bad", "instead", "told"]
    assert [record["status"] for record in records.values()] == ["failed", "ok", "ok"]
    assert records["told"]["output"] == "x"
    records = run_steps(steps[4:], 2 + 2 * benchmark_steps.GRACE, Path.cwd(), lambda name, record: None)
    assert [record["status"] for record in records.values()] == ["out of time", "left out"]


def test_record_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"suite": "linear", "case": "a", "ms": {"dense": 4.0, "compact": 2.0, "ours": 1.0}},
        {"suite": "linear", "case": "b", "ms": {"compact": 1.0, "ours": 2.0, "ours, graph": 1.0}},
        {"suite": "lstm", "case": "c", "ms": {"dense": 1.0, "compact": 1.0, "ours": 2.0}},
        {"suite": "models", "case": "m, batch 1", "ms": {"dense": 9.0, "ours": 1.0}},
        {"suite": "models", "case": "m, batch 256", "ms": {"dense": 2.0, "ours": 1.0}},
        {"suite": "conv2d", "case": "number 0", "error": "ValueError: wrong"},
    ]
    code = "".join(f"print({json.dumps(json.dumps(row))});" for row in rows)
    steps = [Step("linear triton", python(code), 60), Step("tests cuda", python("raise SystemExit(3)"), 60)]
    assert gpu.main(["--out", str(tmp_path)], steps) == 1
    (file,) = tmp_path.iterdir()
    record = json.loads(file.read_text())
    assert record["steps"]["linear triton"]["results"] == rows
    assert file.name == gpu.file_name(record["device"])
    said = capsys.readouterr().out
    assert "tests cuda: failed" in said
    lines = {tuple(line.split()[:2]): line.split() for line in said.splitlines() if line.startswith("triton")}
    assert lines["triton", "linear"][5:] == ["2", "1.00", "0.50", "0.95"]
    assert lines["triton", "lstm"][-1] == "misses"
    assert lines["triton", "models"][5:] == ["(batch", "256)", "1", "2.00", "2.00", "1.60"]
    assert "wrong" in " ".join(lines["triton", "conv2d"])


def test_choice_of_steps(tmp_path: Path) -> None:
    codes = {"build": "pass", "a": "pass", "b": "raise SystemExit(1)"}
    steps = [Step(name, python(code), 60) for name, code in codes.items()]
    assert gpu.main(["--out", str(tmp_path), "--only", "a"], steps) == 0
    (file,) = tmp_path.iterdir()
    assert list(json.loads(file.read_text())["steps"]) == ["build", "a"]
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path), "--only", "c"], steps)


def test_the_steps_name_what_is_there() -> None:
    steps = gpu.all_steps(sys.executable)
    assert len({step.name for step in steps}) == len(steps)
    # The build and the timings of the compiled kernels always come to be run.
    first = sum(s.seconds for s in steps if s.name in ("build", "info") or s.name.startswith("times of"))
    of_triton = sum(s.seconds for s in steps if s.name.startswith("times of") and s.name.endswith("triton"))
    assert first - of_triton <= 60 * gpu.MINUTES
    for step in steps:
        for part in step.command:
            if part.startswith("tests/"):
                assert (gpu.ROOT / part).exists()
            if part in gpu_cases.SUITES:
                assert step.name.startswith(f"times of {part} ")
    assert gpu.file_name("NVIDIA H100 80GB HBM3") == "gpu-nvidia-h100-80gb-hbm3.json"


def test_the_cases_run_small_on_the_cpu() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_cases", "linear", "conv2d", "lstm", "models", "flips"]
    done = subprocess.run(
        [*command, "--device", "cpu", "--small"], cwd=gpu.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["suite"] for row in rows] == ["linear"] * 3 + ["conv2d"] * 2 + ["lstm", "models", "flips"]
    for row in rows:
        assert "error" not in row, row
        assert row["difference"] <= gpu_cases.TOLERANCE[gpu_cases.torch.float32]
        timed = {"flip", "forward"} if row["suite"] == "flips" else {"dense", "compact", "ours"}
        assert timed <= row["ms"].keys()
