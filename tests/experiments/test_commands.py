"""The command line: what it prints, where it fails, and one small experiment from end to end."""

from __future__ import annotations

import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import dynprune
from dynprune import cli
from dynprune.experiments.catalogue import EXPERIMENTS
from dynprune.experiments.commands import app
from dynprune.experiments.models import mnist_cnn
from dynprune.experiments.options import Options
from dynprune.experiments.tables import TABLE_WIDTH

EVAL_KEYS = {
    "eval_loss",
    "eval_accuracy",
    "eval_f1",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
}


def _dynprune(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _one_line_error(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.output.strip().splitlines()
    assert len(lines) == 1, result.output
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def test_info_as_json() -> None:
    result = _dynprune("info", "--json")
    assert result.exit_code == 0
    assert json.loads(result.output) == json.loads(json.dumps(dynprune.info()))


def test_info_as_tables() -> None:
    result = _dynprune("info")
    assert result.exit_code == 0
    for backend in dynprune.info()["backends"]:
        assert backend in result.output


def test_unknown_experiment() -> None:
    error = _one_line_error(_dynprune("experiment", "mnist-rnn"))
    known = ", ".join(sorted([*EXPERIMENTS, "all"]))
    assert error == f"experiment: expected one of {known}, got mnist-rnn"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--lr", "0"], "--lr: expected a number above 0, got 0.0"),
        (["--lr", "nan"], "--lr: expected a number above 0, got nan"),
        (["--batch-size", "0"], "--batch-size: expected at least 1, got 0"),
        (["--seed", "-1"], "--seed: expected 0 to 2^63 - 1, got -1"),
        (["--threads", "0"], "--threads: expected at least 1, got 0"),
        (["--limit", "0"], "--limit: expected at least 1, got 0"),
        (["--name", "a/b"], "--name: expected the name of one folder, got 'a/b'"),
        (["--name", ".."], "--name: expected the name of one folder, got '..'"),
        (["--traffic", "0,12"], "traffic: expected different classes 0 to 9"),
        (["--traffic", "0,1", "--traffic", "0,1"], "--traffic: expected different lists"),
        (["--prune-threshold", "0.2"], "expected prune_threshold at most reactivate_threshold"),
        (["--stream", "sudden:0>12"], "stream: expected different classes 0 to 9"),
        (["--stream", "0,1"], "stream: expected sudden, gradual, recurring"),
        (["--shape", "3"], "--shape: expected one of 64, 128-64, 128-64-dropout, got 3"),
        (["--init", "zeros"], "--init: expected one of he, torch, got zeros"),
        (["--device", "tpu"], "--device: expected one of cpu, cuda, got tpu"),
        (["--weight-decay", "-1"], "--weight-decay: expected a number of at least 0, got -1.0"),
        (["--usage-penalty", "-1"], "--usage-penalty: expected a number of at least 0, got -1.0"),
        (["--max-divergence", "2"], "Config: expected max_divergence None or in (0, 1), got 2.0"),
        (["--traffic-prune-threshold", "0.9"], "expected prune_threshold"),
        (["--traffic-prune-threshold", "nan"], "expected prune_threshold"),
    ],
    ids=lambda value: "=".join(value) if isinstance(value, list) else "",
)
def test_bad_options(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = _dynprune("experiment", "mnist-cnn", "--runs-dir", tmp_path / "runs", *arguments)
    assert message in _one_line_error(result)
    assert not (tmp_path / "runs").exists()


def test_bad_data(data_dir: Path, tmp_path: Path) -> None:
    arguments = ["experiment", "mnist-cnn", "--runs-dir", tmp_path, "--data-dir"]
    missing = _one_line_error(_dynprune(*arguments, tmp_path / "none"))
    assert missing == (f"--data-dir: expected a folder {tmp_path / 'none' / 'mnist'}, got no such folder")
    (data_dir / "mnist" / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    damaged = _one_line_error(_dynprune(*arguments, data_dir))
    assert damaged.startswith("--data-dir: expected readable parquet files in ")


def test_traffic_without_images(data_dir: Path, tmp_path: Path) -> None:
    labels = pq.read_table(data_dir / "mnist" / "test-00000-of-00001.parquet")["label"]
    absent = min(set(range(10)) - set(labels.to_pylist()))
    arguments = ["--runs-dir", tmp_path, "--data-dir", data_dir, "--traffic", str(absent)]
    error = _one_line_error(_dynprune("experiment", "mnist-cnn", *arguments))
    assert error == f"traffic {absent}: expected at least one sample in each split, got none"


def test_runs_dir_that_is_a_file(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    arguments = ["--runs-dir", tmp_path / "runs", "--data-dir", data_dir]
    error = _one_line_error(_dynprune("experiment", "mnist-cnn", *arguments))
    assert error.startswith("--runs-dir: expected a folder that can be made at ")


@pytest.mark.parametrize("missing", ["typer", "rich", "datasets", "safetensors"])
def test_without_the_extra(missing: str, tmp_path: Path) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['dynprune', 'experiment', "
        f"'mnist-cnn', '--runs-dir', {str(tmp_path)!r}]; from dynprune.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: dynprune: expected {missing} to be installed, got no such module; "
        "run pip install 'dynprune[experiments]'"
    ]


def test_a_missing_module_of_somebody_else_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dynprune.experiments.commands", None)
    with pytest.raises(ModuleNotFoundError):
        cli.main()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run folder and the output of a small experiment on the embedded subset."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynprune.experiments.sources._load_hub", _unreachable)
        patch.delenv("DYNPRUNE_DATA", raising=False)
        arguments = ["--limit", "128", "--epochs", "1", "--threads", "1", "--traffic", "0,1"]
        arguments += ["--stream", "sudden:0,1*12>all*4"]
        result = _dynprune("experiment", "mnist-cnn", "--runs-dir", runs, *arguments)
    assert result.exit_code == 0, result.output
    return runs / "mnist-cnn", result.output


def _unreachable(name: str) -> Any:
    raise ConnectionError("no network in tests")


def test_results(finished: tuple[Path, str]) -> None:
    results = json.loads((finished[0] / "results.json").read_text())
    assert results["experiment"] == "mnist-cnn"
    assert results["seed"] == 0
    assert results["data"]["source"] == "embedded"
    assert (results["data"]["train"], results["data"]["test"]) == (128, 128)
    assert results["config"]["limit"] == 128
    assert {"config", "machine", "versions", "protocol", "training"} <= set(results)
    assert list(results["runs"]) == [
        "contribution",
        "mean_abs",
        "contribution lstsq",
        "contribution lstsq 0,1",
        "contribution mean 0,1",
    ]
    narrow = results["runs"]["contribution lstsq 0,1"]
    assert [narrow["prune_threshold"], narrow["reactivate_threshold"]] == [0.4, 0.5]
    assert list(narrow["return"]) == ["0.4/0.5", "0.05/0.1"]
    assert narrow["compensation"] == "lstsq"
    assert list(results["traffic_mean"]) == ["lstsq", "mean"]
    assert results["traffic_mean"]["lstsq"]["operations_share"] == narrow["operations_share"]


def test_zeros_stand_in_where_the_catalogue_says_so() -> None:
    options = Options("cifar10-cnn")
    assert options.compensations == ("none", "mean")
    assert options.traffic_config().compensation == "none"
    assert options.traffic_config("mean").compensation == "mean"
    assert Options("mnist-cnn").traffic_config().compensation == "lstsq"


def test_numbers_are_consistent(finished: tuple[Path, str]) -> None:
    results = json.loads((finished[0] / "results.json").read_text())
    dense = results["dense"]
    for record in (dense, *results["runs"].values()):
        assert set(record) >= EVAL_KEYS
        assert all(math.isfinite(record[key]) for key in EVAL_KEYS)
        samples = record["eval_samples_per_second"] * record["eval_runtime"]
        assert samples == pytest.approx(record["eval_samples"])
        steps = record["eval_steps_per_second"] * record["eval_runtime"]
        assert steps == pytest.approx(math.ceil(record["eval_samples"] / 64))
    assert dense["eval_samples"] == 128
    assert dense["parameters"] == 467_818
    for run in results["runs"].values():
        assert run["dense_operations_per_sample"] == run["dense_operations_per_sample_torch"]
        assert run["active_parameters"] <= run["parameters"]
        assert all(run["active_units"][name] <= units for name, units in run["units"].items())
        assert run["accuracy_difference"] == pytest.approx(
            run["eval_accuracy"] - run["dense"]["eval_accuracy"]
        )


def test_stream_is_recorded_batch_by_batch(finished: tuple[Path, str]) -> None:
    stream = json.loads((finished[0] / "results.json").read_text())["stream"]
    assert stream["phase"] == 12 * [0] + 4 * [1]
    assert [phase["name"] for phase in stream["phases"]] == ["0,1", "all"]
    assert list(stream["runs"]) == [
        "adapting mean 0.05/0.1",
        "frozen mean 0.05/0.1",
        "adapting lstsq 0.4/0.5",
        "frozen lstsq 0.4/0.5",
    ]
    for run in (stream["dense"], *stream["runs"].values()):
        assert len(run["accuracy"]) == len(run["time_ms"]) == 16
    frozen = stream["runs"]["frozen lstsq 0.4/0.5"]
    assert sum(frozen["flips"]) == sum(frozen["canary_rows"]) == 0
    assert len(set(frozen["active_fraction"])) == 1
    assert frozen["active_fraction"][0] < 1
    narrow = stream["runs"]["adapting lstsq 0.4/0.5"]
    # Evidence of 512 rows is gathered with everything active; then much is pruned at once.
    assert narrow["active_fraction"][0] == 1
    assert narrow["active_fraction"][9] < 1
    assert sum(narrow["flips"][:9]) > 0
    assert narrow["operations_share"][9] < 1
    assert len(narrow["active_share"]["conv1"]) == 16


def test_weights_are_those_that_were_trained(finished: tuple[Path, str]) -> None:
    model = mnist_cnn(seed=0)
    initial = model.conv1.weight.clone()
    model.load_state_dict(load_file(finished[0] / "model.safetensors"))
    assert not initial.equal(model.conv1.weight)


def test_output(finished: tuple[Path, str]) -> None:
    folder, output = finished
    assert "data: embedded (" in output
    assert "no network in tests" in " ".join(output.split())
    assert all(len(line) <= TABLE_WIDTH for line in output.splitlines())
    assert "…" not in output
    for text in ("dense, all classes", "mean_abs 0.05/0.1", "dense, 0,1", "contribution 0.4/0.5 lstsq"):
        assert text in output
    assert output.splitlines()[-1] == f"written: {folder / 'results.json'}"


def _small(data: Path, runs: Path, *arguments: str) -> Result:
    common = ["--data-dir", data, "--runs-dir", runs, "--limit", "40", "--epochs", "1", "--threads", "1"]
    return _dynprune("experiment", *map(str, common), *arguments)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist-mlp", "data_dir"),
        ("cifar10-cnn", "colour_dir"),
        ("imdb-bilstm", "text_dir"),
        ("imdb-mlp", "text_dir"),
        ("sst2-bilstm", "text_dir"),
    ],
)
def test_the_others_run_too(name: str, folder: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    narrow = {"mnist-mlp": "0,1,2,3", "cifar10-cnn": "3,5"}.get(name, "short")
    traffic = ["--traffic", narrow, "--stream", f"gradual:{narrow}*2>all*2"]
    result = _small(request.getfixturevalue(folder), tmp_path, name, *traffic)
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / name / "results.json").read_text())
    assert results["experiment"] == name
    for record in (results["dense"], *results["runs"].values()):
        assert all(math.isfinite(record[key]) for key in EVAL_KEYS)
    assert results["runs"][f"contribution {Options(name).compensations[0]} {narrow}"]["traffic"] == narrow
    assert len(results["stream"]["phase"]) == 4


def test_all_asks_for_everything_before_any_work(text_dir: Path, tmp_path: Path) -> None:
    error = _one_line_error(_small(text_dir, tmp_path / "runs", "all"))
    assert error == f"--data-dir: expected a folder {text_dir / 'mnist'}, got no such folder"
    assert not list(tmp_path.rglob("results.json"))


def test_all_pretrained_leaves_out_what_has_no_weights(data_dir: Path, tmp_path: Path) -> None:
    assert _small(data_dir, tmp_path, "mnist-mlp").exit_code == 0
    weights = tmp_path / "results"
    _export(tmp_path / "mnist-mlp" / "model.safetensors", "mnist-mlp", weights)
    result = _small(data_dir, tmp_path / "again", "all", "--pretrained", "--weights-dir", weights)
    assert result.exit_code == 0, result.output
    assert "left out: cifar10-vgg16, no weights at" in result.output
    assert [path.parent.name for path in (tmp_path / "again").rglob("results.json")] == ["mnist-mlp"]
    error = _one_line_error(_dynprune("experiment", "all", "--pretrained", "--weights-dir", tmp_path))
    assert error == f"--pretrained: expected weights in {tmp_path}, got none"


def test_a_name_is_for_one_experiment(tmp_path: Path) -> None:
    error = _one_line_error(_dynprune("experiment", "all", "--name", "x", "--runs-dir", tmp_path / "runs"))
    assert error == "--name: expected it with one experiment, got it with all"


def test_short_and_long_are_for_texts(tmp_path: Path) -> None:
    arguments = ["experiment", "mnist-mlp", "--runs-dir", tmp_path / "runs", "--traffic", "short"]
    assert "got 'short'" in _one_line_error(_dynprune(*arguments))
    arguments = ["experiment", "sst2-bilstm", "--runs-dir", tmp_path / "runs", "--augment"]
    message = "--augment: expected an experiment on images, got sst2-bilstm"
    assert _one_line_error(_dynprune(*arguments)) == message


def test_a_checkpoint_of_another_training_is_an_error(data_dir: Path, tmp_path: Path) -> None:
    traffic = ["--traffic", "0,1,2,3,4"]
    assert _small(data_dir, tmp_path, "mnist-mlp", *traffic).exit_code == 0
    error = _one_line_error(_small(data_dir, tmp_path, "mnist-mlp", *traffic, "--resume", "--lr", "0.01"))
    expected = f"--resume: expected learning_rate 0.01 in {tmp_path / 'mnist-mlp' / 'checkpoint.safetensors'}"
    assert error == f"{expected}, got 0.001"
    error = _one_line_error(_small(data_dir, tmp_path, "mnist-mlp", *traffic, "--resume", "--shape", "64"))
    assert error.startswith("weights: expected fc1.bias [64] in ")
    error = _one_line_error(_small(data_dir, tmp_path, "mnist-mlp", *traffic, "--resume", "--limit", "20"))
    assert error.startswith("--resume: expected samples 20 in ")


def _export(weights: Path, name: str, output: Path) -> None:
    tool = Path(__file__).parents[2] / "tools" / "export_weights.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(tool), str(weights), "--experiment", name, "--output", str(output)])
        runpy.run_path(str(tool), run_name="__main__")


def test_pretrained_starts_from_the_weights_of_the_project(text_dir: Path, tmp_path: Path) -> None:
    traffic = ["--traffic", "short"]
    assert _small(text_dir, tmp_path, "sst2-bilstm", *traffic).exit_code == 0
    trained = load_file(tmp_path / "sst2-bilstm" / "model.safetensors")
    _export(tmp_path / "sst2-bilstm" / "model.safetensors", "sst2-bilstm", tmp_path / "results")
    smaller = (tmp_path / "results" / "sst2-bilstm.safetensors").stat().st_size
    assert smaller < 0.6 * (tmp_path / "sst2-bilstm" / "model.safetensors").stat().st_size
    common = ["--data-dir", text_dir, "--runs-dir", tmp_path, "--limit", "20", "--threads", "1", *traffic]
    pretrained = [*common, "--pretrained", "--weights-dir", tmp_path / "results", "--name", "again"]
    result = _dynprune("experiment", "sst2-bilstm", *pretrained)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "again" / "results.json").read_text())["training"] == []
    for name, weight in load_file(tmp_path / "again" / "model.safetensors").items():
        assert torch.equal(weight, trained[name].half().float()), name


def test_pretrained_weights_that_are_missing_or_of_another_model(data_dir: Path, tmp_path: Path) -> None:
    arguments = ["experiment", "mnist-cnn", "--data-dir", data_dir, "--runs-dir", tmp_path / "runs"]
    arguments += ["--pretrained", "--weights-dir", tmp_path]
    path = tmp_path / "mnist-cnn.safetensors"
    error = _one_line_error(_dynprune(*arguments))
    assert error == f"weights: expected a file {path}, got no such file"
    path.write_bytes(b"not weights")
    error = _one_line_error(_dynprune(*arguments))
    assert error.startswith(f"weights: expected a safetensors file of dynprune at {path}, got ")
    save_file({"conv1.weight": torch.zeros(2)}, path)
    error = _one_line_error(_dynprune(*arguments))
    assert error == f"weights: expected conv1.bias [32] in {path}, got None"
