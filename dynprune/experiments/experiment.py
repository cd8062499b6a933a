"""One experiment: train a model, then serve it dense and adapting to its traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

import dynprune
from dynprune.experiments import checkpoints, records
from dynprune.experiments.data import Data, load
from dynprune.experiments.evaluation import counts_all_operations, operations_per_sample, predict_all
from dynprune.experiments.measuring import DenseRow, PrunedRow, compare, dense_in_each_format
from dynprune.experiments.options import Options, Protocol
from dynprune.experiments.serving import (
    Return,
    accelerated,
    adapt,
    calibrated,
    return_of_all_classes,
    traffic_rows,
    warmup_rows,
)
from dynprune.experiments.sources import first_line
from dynprune.experiments.streaming import serve_stream
from dynprune.experiments.trade_off import trade_off
from dynprune.experiments.training import Epoch, check_resumable, train
from dynprune.streams import Traffic


@dataclass(frozen=True)
class Prepared:
    """Checked options, loaded data and weights: all that can fail through the fault of the user.

    ``model`` has its initial weights, or those that come with the project.
    """

    options: Options
    protocol: Protocol
    data: Data
    model: nn.Module


def prepare(options: Options) -> Prepared:
    """Load data and weights and make the run's folder.

    Raises:
        ValueError: a file is damaged or holds other weights, a split has no sample of some traffic, or the
            checkpoint to go on from is of another training.
        OSError: a file or folder is missing or cannot be made.
    """
    try:
        options.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"--runs-dir: expected a folder that can be made at {options.run_dir}, got {first_line(error)}"
        ) from error
    about = options.about
    path = options.pretrained_path
    weights, facts = checkpoints.read(path) if options.pretrained else ({}, {})
    vocabulary = facts.get("vocabulary") or None
    data = load(about.data_set, options.data_dir, options.limit, about.reading, vocabulary)
    model = about.build(options.choices, data)
    if options.pretrained:
        checkpoints.load_into(model, weights, path)
        model.eval()
    if options.resume and options.checkpoint.is_file():
        samples = len(data.train)
        check_resumable(options.checkpoint, model, options.recipe(samples), samples)
    stream = options.parsed_stream()
    phases = [] if stream is None else [phase.traffic for phase in stream.phases]
    for traffic in (*options.traffics, *phases):
        for split in (data.train, data.test):
            traffic_rows(split, traffic)
    return Prepared(options, Protocol.for_limit(options.limit, about.heavy), data, model)


def run(prepared: Prepared, console: Console) -> Mapping[str, Any]:
    """Run the experiment; returns what it wrote to ``results.json``."""
    options, protocol, data, model = prepared.options, prepared.protocol, prepared.data, prepared.model
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    noun = "images" if data.data_set.kind == "image" else "texts"
    console.print(f"data: {data.source.describe()}: {len(data.train)} training, {len(data.test)} test {noun}")
    recipe = options.recipe(len(data.train))
    history = _train(prepared, console) if recipe.epochs else []
    about = {"experiment": options.experiment, "shape": options.shape, "vocabulary": data.vocabulary}
    checkpoints.save(model.state_dict(), options.run_dir / "model.safetensors", about)

    counted = None
    if counts_all_operations(model):
        counted = operations_per_sample(model, data.test.samples.inputs(data.test.rows[:1]))
    answers = predict_all(model, data.test).argmax(1)
    with _quiet_progress(console) as progress:
        task = progress.add_task("serving", total=1 + len(options.traffics))
        uniform = _uniform_runs(prepared)
        progress.update(task, advance=1, refresh=True)
        narrow = []
        for traffic in options.traffics:
            narrow.append(_narrow_runs(traffic, answers, prepared))
            progress.update(task, advance=1, refresh=True)

    runs = {name: records.pruned_record(row, counted) for name, row in uniform.items()}
    for rows, returned in narrow:
        for compensation, row in rows.items():
            runs[f"contribution {compensation} {row.dense.traffic.name}"] = records.pruned_record(
                row, counted
            )
        runs[f"contribution {options.compensations[0]} {row.dense.traffic.name}"]["return"] = returned
    results = {
        "experiment": options.experiment,
        "seed": options.seed,
        "config": records.options_record(options),
        "recipe": asdict(recipe),
        "protocol": asdict(protocol),
        "machine": records.machine_record(),
        "versions": records.versions_record(),
        "data": records.data_record(data),
        "training": [asdict(epoch) for epoch in history],
        "dense": runs["contribution"]["dense"],
        "runs": runs,
    }
    if options.limit is None and data.source.kind != "embedded":
        results["bars"] = records.bars_record(options.about, results["dense"])
    if narrow:
        results["traffic_mean"] = {
            compensation: records.traffic_mean_record([rows[compensation] for rows, _ in narrow])
            for compensation in options.compensations
        }
    if options.stream is not None:
        results["stream"] = _stream(uniform["contribution"].dense, prepared, console)
    if options.trade_off:
        results["trade_off"] = _trade_off(uniform["contribution"].dense, prepared, console)
    records.write_json(results, options.run_dir / "results.json")
    return results


def _train(prepared: Prepared, console: Console) -> list[Epoch]:
    options, split = prepared.options, prepared.data.train
    recipe = options.recipe(len(split))
    batches = -(-(len(split) - recipe.validation) // options.batch_size)
    with Progress(console=console, refresh_per_second=2) as progress:
        task = progress.add_task("training", total=batches * recipe.epochs)

        def on_batch(epoch: int, loss: float) -> None:
            text = f"training, epoch {epoch + 1} of {recipe.epochs}, loss {loss:.3f}"
            progress.update(task, advance=1, description=text)

        return train(
            prepared.model,
            split,
            recipe,
            device=options.device,
            checkpoint=options.checkpoint,
            resume=options.resume,
            on_batch=on_batch,
        )


def _quiet_progress(console: Console) -> Progress:
    """A bar that is drawn only when asked: a thread that redraws it would disturb the times."""
    return Progress(console=console, auto_refresh=False)


def _uniform_runs(prepared: Prepared) -> dict[str, PrunedRow]:
    """All classes, under their own thresholds and under those for the traffic of a few."""
    options, model = prepared.options, prepared.model
    configs = {criterion: options.uniform_config(criterion) for criterion in ("contribution", "mean_abs")}
    configs[f"contribution {options.compensations[0]}"] = options.traffic_config()
    return compare(model, prepared.data, Traffic(), configs, prepared.protocol, options.seed)


def _narrow_runs(
    traffic: Traffic, dense_answers: Tensor, prepared: Prepared
) -> tuple[dict[str, PrunedRow], dict[str, records.Record]]:
    """The traffic of a few classes, then the return of all under each pair of thresholds."""
    options, model = prepared.options, prepared.model

    def returned(config: dynprune.Config) -> Return:
        arguments = (prepared.protocol, options.seed)
        fast = adapt(model, prepared.data, traffic, config, *arguments)
        return return_of_all_classes(fast, prepared.data.test, dense_answers, *arguments)

    adapting = {name: options.traffic_config(name) for name in options.compensations}
    rows = compare(model, prepared.data, traffic, adapting, prepared.protocol, options.seed)
    configs = (options.traffic_config(), options.uniform_config())
    return rows, {
        f"{config.prune_threshold:g}/{config.reactivate_threshold:g}": records.return_record(
            returned(config), config
        )
        for config in configs
    }


def _stream(dense: DenseRow, prepared: Prepared, console: Console) -> records.Record:
    """The stream of the options, under the thresholds of uniform and of narrow traffic.

    Beside each adapting model stands one that was calibrated on all classes once and is frozen.
    """
    options, data, model = prepared.options, prepared.data, prepared.model
    stream = options.parsed_stream()
    assert stream is not None
    served = {}
    warmup = warmup_rows(data, Traffic(), prepared.protocol, options.seed)
    for config in (options.uniform_config(), options.traffic_config()):
        name = f"{config.compensation} {config.prune_threshold:g}/{config.reactivate_threshold:g}"
        served[f"adapting {name}"] = accelerated(model, data.train, config)
        served[f"frozen {name}"] = calibrated(model, data.train, config, warmup)
    with _quiet_progress(console) as progress:
        task = progress.add_task("stream", total=stream.batches)

        def on_batch() -> None:
            progress.update(task, advance=1, refresh=progress.tasks[0].completed % 20 == 0)

        predict = dense_in_each_format(model)[dense.batch_format]
        record = serve_stream(predict, served, data.test, stream, on_batch)
    return {"spec": options.stream, **record}


def _trade_off(dense: DenseRow, prepared: Prepared, console: Console) -> records.Record:
    """What thresholds cost and save, beside static pruning at the same operations."""
    options, data, model = prepared.options, prepared.data, prepared.model
    with _quiet_progress(console) as progress:
        task = progress.add_task("trade-off", total=None)

        def on_point(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, refresh=True)

        return trade_off(model, dense.batch_format, data, prepared.protocol, options.seed, on_point)
