"""What adapting costs once the traffic is steady: canary rows, statistics and decisions.

    python -m benchmarks.steady cifar10-cnn --data-dir FOLDER --traffic 0,1 --thresholds 0.2 0.3

lets the model of ``results/`` settle, then serves each batch adapting, frozen and by the dense model on eager
PyTorch, in turn, and gives the share of the adapting model's time that the frozen one does not take, and both
beside the dense model's, by the wall's clock and by the processor's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import dynprune
from benchmarks.streams import Served, clear_errors, count
from dynprune.experiments import serving
from dynprune.experiments.records import machine_record, versions_record
from dynprune.experiments.samples import Inputs

SETTLE_BATCHES, SETTLE_ROWS = 200, 4096  # at least, before anything is timed
BLOCK_ROWS = 4096  # and 64 to 512 batches; four of 64 carry canary rows under the default interval
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def measure(
    served: Served, traffic: str, config: dynprune.Config, batch_size: int, blocks: int, batches: int
) -> dict[str, dict[str, float]]:
    """Clock -> medians over ``blocks`` blocks of ``batches`` batches.

    ``share`` is 1 - frozen time / adapting time; ``adapting`` and ``frozen`` are times over that of dense.
    Other programs on the machine disturb the processor time of this one less than the wall's; with one
    thread and nothing else running they are the same.
    """
    split = served.data.test
    settle = max(SETTLE_BATCHES, SETTLE_ROWS // batch_size)
    stream = served.stream(f"sudden:{traffic}*{settle + batches}>all*1", config.seed)
    arrivals = stream.arrivals(split.labels, split.samples.lengths, batch_size)
    inputs = [split.samples.inputs(each.rows) for each in islice(arrivals, settle + batches)]
    fast = serving.accelerated(served.model, split, config)
    kinds = ("dense", "frozen", "adapting")

    def serve(kind: str, some: Inputs, spent: dict[str, float]) -> None:
        (fast.freeze if kind == "frozen" else fast.unfreeze)()
        model = served.model if kind == "dense" else fast
        started = [clock() for clock in CLOCKS.values()]
        model(*some)
        for (name, clock), start in zip(CLOCKS.items(), started, strict=True):
            spent[name] += clock() - start

    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in CLOCKS}
    with torch.inference_mode():
        for some in inputs[:settle]:
            fast(*some)
        for turn in range(blocks):
            spent = {kind: dict.fromkeys(CLOCKS, 0.0) for kind in kinds}
            for number, some in enumerate(inputs[settle:], turn):
                first = number % len(kinds)
                for kind in (*kinds[first:], *kinds[:first]):
                    serve(kind, some, spent[kind])
            for name, columns in found.items():
                dense, frozen, adapting = (spent[kind][name] for kind in kinds)
                columns["share"].append(1 - frozen / adapting)
                columns["frozen"].append(frozen / dense)
                columns["adapting"].append(adapting / dense)
    return {
        name: {key: round(statistics.median(values), 4) for key, values in columns.items()}
        for name, columns in found.items()
    }


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="default: results/EXPERIMENT.safetensors")
    parser.add_argument("--traffic", nargs="+", default=["all"])
    parser.add_argument("--thresholds", type=float, nargs=2, default=(0.05, 0.10))
    parser.add_argument("--canary-interval", type=count, default=dynprune.Config.canary_interval)
    parser.add_argument("--batch-sizes", type=count, nargs="+", default=[64, 1])
    parser.add_argument("--blocks", type=count, default=12)
    parser.add_argument("--batches", type=count, help="of a block, default: 4096 rows in 64 to 512 batches")
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.set_num_threads(options.threads)
    weights = options.weights or Path("results") / f"{options.experiment}.safetensors"
    with clear_errors(parser):
        config = dynprune.Config(*options.thresholds, canary_interval=options.canary_interval)
        served = Served(options.experiment, options.data_dir, weights)
        for traffic in options.traffic:
            served.stream(f"sudden:{traffic}>all", 0)
    results: dict[str, Any] = {}
    for traffic in options.traffic:
        for size in options.batch_sizes:
            batches = options.batches or max(64, min(512, BLOCK_ROWS // size))
            found = measure(served, traffic, config, size, options.blocks, batches)
            results[f"{traffic}, batch {size}"] = found
            for clock, values in found.items():
                print(
                    f"{options.experiment} {traffic}, batch {size}, {clock}: "
                    f"{100 * values['share']:.2f}% of the time is adapting; beside dense "
                    f"{values['adapting']:.3f}, frozen {values['frozen']:.3f}",
                    flush=True,
                )
    if options.out is not None:
        record = {
            "experiment": options.experiment,
            "thresholds": list(options.thresholds),
            "canary_interval": options.canary_interval,
            "blocks": options.blocks,
            "threads": options.threads,
            "results": results,
            "machine": machine_record(),
            "versions": versions_record(),
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
