"""The experiment ``mnist-cnn``: train a CNN, then serve it dense and adapting to its traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor, nn

import dynprune
from dynprune.experiments import records
from dynprune.experiments.data import Mnist, load_mnist
from dynprune.experiments.evaluation import count_parameters, operations_per_sample, predict_all
from dynprune.experiments.measuring import PrunedRow, compare
from dynprune.experiments.models import mnist_cnn
from dynprune.experiments.options import Options, Protocol
from dynprune.experiments.serving import Return, adapt, return_of_all_classes
from dynprune.experiments.sources import first_line
from dynprune.experiments.traffic import Traffic
from dynprune.experiments.training import Epoch, train

# Of the runs on the traffic of a few classes; the first is the one whose return is judged as well.
COMPENSATIONS = ("lstsq", "mean")


@dataclass(frozen=True)
class Prepared:
    """Checked options and loaded data: all that can fail through the fault of the user."""

    options: Options
    protocol: Protocol
    data: Mnist


def prepare(options: Options) -> Prepared:
    """Load the data and make the run's folder.

    Raises:
        ValueError: a file is damaged, or a split has no image of the classes of some traffic.
        OSError: a file or folder is missing or cannot be made.
    """
    try:
        options.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"--runs-dir: expected a folder that can be made at {options.run_dir}, got {first_line(error)}"
        ) from error
    data = load_mnist(options.data_dir, options.limit)
    for traffic in options.traffic:
        for split in (data.train, data.test):
            traffic.rows(split.labels)
    return Prepared(options, Protocol.for_limit(options.limit), data)


def run(prepared: Prepared, console: Console) -> Mapping[str, Any]:
    """Run the experiment; returns what it wrote to ``results.json``."""
    options, protocol, data = prepared.options, prepared.protocol, prepared.data
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console.print(f"data: {data.source.describe()}: {len(data.train)} training, {len(data.test)} test images")
    model = mnist_cnn(options.seed, options.init)
    history = _train(model, prepared, console)
    _save_weights(model, options.run_dir / "model.safetensors")

    parameters = count_parameters(model)
    operations = operations_per_sample(model, data.test.images[0])
    answers = predict_all(model, data.test.images).argmax(1)
    with _quiet_progress(console) as progress:
        task = progress.add_task("serving", total=1 + len(options.traffic))
        uniform = _uniform_runs(model, prepared)
        progress.update(task, advance=1, refresh=True)
        narrow = []
        for traffic in options.traffic:
            narrow.append(_narrow_runs(model, traffic, answers, prepared))
            progress.update(task, advance=1, refresh=True)

    runs = {name: records.pruned_record(row, parameters, operations) for name, row in uniform.items()}
    for rows, returned in narrow:
        for compensation, row in rows.items():
            record = records.pruned_record(row, parameters, operations)
            runs[f"contribution {compensation} {row.dense.traffic.name}"] = record
        runs[f"contribution {COMPENSATIONS[0]} {row.dense.traffic.name}"]["return"] = returned
    results = {
        "experiment": "mnist-cnn",
        "seed": options.seed,
        "config": records.options_record(options),
        "protocol": asdict(protocol),
        "machine": records.machine_record(),
        "versions": records.versions_record(),
        "data": records.data_record(data),
        "training": [asdict(epoch) for epoch in history],
        "dense": runs["contribution"]["dense"],
        "runs": runs,
    }
    if narrow:
        results["traffic_mean"] = {
            compensation: records.traffic_mean_record([rows[compensation] for rows, _ in narrow])
            for compensation in COMPENSATIONS
        }
    records.write_json(results, options.run_dir / "results.json")
    return results


def _train(model: nn.Module, prepared: Prepared, console: Console) -> list[Epoch]:
    options = prepared.options
    batches = -(-len(prepared.data.train) // options.batch_size)
    with Progress(console=console, refresh_per_second=2) as progress:
        task = progress.add_task("training", total=batches * options.epochs)

        def on_batch(epoch: int, loss: float) -> None:
            text = f"training, epoch {epoch + 1} of {options.epochs}, loss {loss:.3f}"
            progress.update(task, advance=1, description=text)

        return train(
            model,
            prepared.data.train,
            epochs=options.epochs,
            learning_rate=options.lr,
            batch_size=options.batch_size,
            seed=options.seed,
            on_batch=on_batch,
        )


def _quiet_progress(console: Console) -> Progress:
    """A bar that is drawn only when asked: a thread that redraws it would disturb the times."""
    return Progress(console=console, auto_refresh=False)


def _save_weights(model: nn.Module, path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def _uniform_runs(model: nn.Module, prepared: Prepared) -> dict[str, PrunedRow]:
    options = prepared.options
    criteria = ("contribution", "mean_abs")
    configs = {criterion: options.uniform_config(criterion) for criterion in criteria}
    return compare(model, prepared.data, Traffic(), configs, prepared.protocol, options.seed)


def _narrow_runs(
    model: nn.Module, traffic: Traffic, dense_answers: Tensor, prepared: Prepared
) -> tuple[dict[str, PrunedRow], dict[str, records.Record]]:
    """The traffic of a few classes, then the return of all under each pair of thresholds."""
    options = prepared.options

    def returned(config: dynprune.Config) -> Return:
        arguments = (prepared.protocol, options.seed)
        fast = adapt(model, prepared.data, traffic, config, *arguments)
        return return_of_all_classes(fast, prepared.data.test, dense_answers, *arguments)

    adapting = {name: options.traffic_config(name) for name in COMPENSATIONS}
    rows = compare(model, prepared.data, traffic, adapting, prepared.protocol, options.seed)
    configs = (options.traffic_config(), options.uniform_config())
    return rows, {
        f"{config.prune_threshold:g}/{config.reactivate_threshold:g}": records.return_record(
            returned(config), config
        )
        for config in configs
    }
