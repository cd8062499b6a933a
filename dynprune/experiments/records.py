"""The contents of ``results.json``.

The ``eval_*`` keys are those of the Hugging Face trainer. ``eval_runtime`` (seconds) is the number
of judged samples times the median time per sample at batch 64, so that it stands on the same
interleaved passes for every model.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

import dynprune
from dynprune.experiments.catalogue import Experiment
from dynprune.experiments.data import Data
from dynprune.experiments.evaluation import BATCH_SIZE, Quality
from dynprune.experiments.measuring import DenseRow, PrunedRow, Times
from dynprune.experiments.options import Options
from dynprune.experiments.serving import Return

Record = dict[str, Any]


def machine_record() -> Record:
    """What the times depend on."""
    return {
        "platform": platform.platform(),
        "processor": _processor_name(),
        "logical_cores": psutil.cpu_count(logical=True),
        "physical_cores": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "torch_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def versions_record() -> Record:
    """Versions of what takes part."""
    packages = ("numpy", "datasets", "tokenizers", "torchmetrics", "safetensors", "psutil")
    return {
        "python": platform.python_version(),
        "dynprune": dynprune.__version__,
        "torch": torch.__version__,
        **{package: version(package) for package in packages},
    }


def options_record(options: Options) -> Record:
    """The options as given or chosen, with paths and traffic as texts."""
    record = asdict(options)
    config = options.traffic_config()
    record["epochs"] = options.recipe(0).epochs
    record["traffic"] = [traffic.name for traffic in options.traffics]
    record["traffic_prune_threshold"] = config.prune_threshold
    record["traffic_reactivate_threshold"] = config.reactivate_threshold
    record["init"] = options.choices.init
    record["name"] = options.run_dir.name
    record["data_dir"] = None if options.data_dir is None else str(options.data_dir)
    record["runs_dir"] = str(options.runs_dir)
    record["weights_dir"] = str(options.weights_dir)
    return record


def data_record(data: Data) -> Record:
    """Where the samples came from, and how many there are."""
    return {
        "name": data.data_set.name,
        "classes": list(data.data_set.classes),
        "source": data.source.kind,
        "location": data.source.location,
        "note": data.source.note,
        "train": len(data.train),
        "test": len(data.test),
    }


def dense_record(row: DenseRow, operations: float) -> Record:
    """The dense model in its faster memory format; ``operations``: multiply-adds per sample."""
    by_batch = row.times[row.batch_format]
    times = Times(by_batch.batch, row.times[row.single_format].single, by_batch.memory)
    return {
        **_common_record(row.quality, times, row.samples),
        "traffic": row.traffic.name,
        "memory_format": row.batch_format,
        "memory_format_batch1": row.single_format,
        "formats": {name: asdict(each) for name, each in row.times.items()},
        "parameters": row.size.parameters,
        "parameter_bytes": row.size.bytes,
        "file_bytes": row.size.file_bytes,
        "operations_per_sample": operations,
    }


def pruned_record(row: PrunedRow, counted: int | None) -> Record:
    """An adapting model beside its dense row; ``counted``: the dense operations by torch's counter."""
    judged = row.judged
    activity = judged.activity
    dense_operations = activity.dense_operations / activity.rows
    return {
        **_common_record(judged.quality, row.times, row.dense.samples),
        "traffic": row.dense.traffic.name,
        "criterion": row.config.criterion,
        "compensation": row.config.compensation,
        "prune_threshold": row.config.prune_threshold,
        "reactivate_threshold": row.config.reactivate_threshold,
        "parameters": row.dense.size.parameters,
        "active_parameters": judged.active.parameters,
        "parameter_bytes": row.dense.size.bytes,
        "active_parameter_bytes": judged.active.bytes,
        "materialized_file_bytes": judged.materialized.file_bytes,
        "units": {name: total for name, (_, total) in judged.units.items()},
        "active_units": {name: active for name, (active, _) in judged.units.items()},
        "operations_per_sample": activity.operations / activity.rows,
        "dense_operations_per_sample": dense_operations,
        "dense_operations_per_sample_torch": counted,
        "operations_share": activity.operations_share,
        "canary_rows": activity.canary_rows,
        "flips": judged.flips,
        "flips_while_judged": activity.flips,
        "accuracy_difference": row.accuracy_difference,
        "time_share": row.batch_time_share,
        "time_share_batch1": row.single_time_share,
        "dense": dense_record(row.dense, dense_operations),
    }


def return_record(returned: Return, config: dynprune.Config) -> Record:
    """All classes after the traffic of a few."""
    return {
        "compensation": config.compensation,
        "prune_threshold": config.prune_threshold,
        "reactivate_threshold": config.reactivate_threshold,
        "samples": returned.activity.rows,
        "accuracy": returned.accuracy,
        "dense_accuracy": returned.dense_accuracy,
        "accuracy_difference": returned.accuracy - returned.dense_accuracy,
        "operations_share": returned.activity.operations_share,
        "flips": returned.activity.flips,
    }


def traffic_mean_record(rows: Sequence[PrunedRow]) -> Record:
    """Means over the runs on the traffic of a few classes, each beside its own dense row."""
    operations = statistics.fmean(row.judged.activity.operations_share for row in rows)
    time = statistics.fmean(row.batch_time_share for row in rows)
    return {
        "operations_share": operations,
        "time_share": time,
        "time_share_per_operations_share": time / operations,
        "accuracy_difference": statistics.fmean(row.accuracy_difference for row in rows),
    }


def bars_record(experiment: Experiment, dense: Record) -> Record:
    """What the dense model has to reach on the full data, and whether it does."""
    record: Record = {}
    if experiment.bar is not None:
        accuracy = dense["eval_accuracy"]
        record["accuracy"] = {"least": experiment.bar, "got": accuracy, "met": accuracy >= experiment.bar}
    if experiment.loss_bar is not None:
        loss = dense["eval_loss"]
        record["loss"] = {"most": experiment.loss_bar, "got": loss, "met": loss <= experiment.loss_bar}
    return record


def write_json(record: Mapping[str, Any], path: Path) -> None:
    """Write ``record`` to ``path``; a reader finds the old file or the new one, never a part."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=2, allow_nan=False)
            file.write("\n")
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def _common_record(quality: Quality, times: Times, samples: int) -> Record:
    runtime = samples * times.batch.per_sample_ms / 1e3
    return {
        "eval_loss": quality.loss,
        "eval_accuracy": quality.accuracy,
        "eval_f1": quality.f1,
        "eval_precision": quality.precision,
        "eval_recall": quality.recall,
        "eval_class_accuracy": list(quality.class_accuracy),
        "eval_runtime": runtime,
        "eval_samples_per_second": samples / runtime,
        "eval_steps_per_second": -(-samples // BATCH_SIZE) / runtime,
        "eval_samples": samples,
        "eval_batch_size": BATCH_SIZE,
        "time_per_sample_ms": times.batch.per_sample_ms,
        "time_per_sample_ms_p95": times.batch.per_sample_ms_p95,
        "time_per_sample_ms_batch1": times.single.per_sample_ms,
        "time_per_sample_ms_batch1_p95": times.single.per_sample_ms_p95,
        "cpu_utilisation_percent": times.batch.cpu_percent,
        "cpu_seconds_per_1000_samples": times.batch.cpu_seconds_per_1000,
        "peak_memory_bytes": times.memory.peak,
        "memory_rise_bytes": times.memory.rise,
    }


def _processor_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
