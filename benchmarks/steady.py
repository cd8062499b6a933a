"""What adapting costs once the traffic is steady: canary rows, statistics and decisions.

    python -m benchmarks.steady cifar10-cnn --data-dir FOLDER --traffic 0,1 --thresholds 0.2 0.3

lets the model of ``results/`` settle, then serves each batch adapting and frozen, in turn, and gives the
share of the adapting model's time that the frozen one does not take, by the wall's clock and by the
processor's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
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


def shares_of_time(
    served: Served, traffic: str, config: dynprune.Config, batch_size: int, blocks: int
) -> dict[str, float]:
    """Clock -> the median over blocks of 1 - frozen time / adapting time.

    Other programs on the machine disturb the processor time of this one less than the wall's; with one thread
    and nothing else running they are the same.
    """
    split = served.data.test
    settle = max(SETTLE_BATCHES, SETTLE_ROWS // batch_size)
    block = max(64, min(512, BLOCK_ROWS // batch_size))
    stream = served.stream(f"sudden:{traffic}*{settle + block}>all*1", config.seed)
    arrivals = stream.arrivals(split.labels, split.samples.lengths, batch_size)
    batches = [split.samples.inputs(each.rows) for each in islice(arrivals, settle + block)]
    fast = serving.accelerated(served.model, split, config)

    def serve(inputs: Inputs, spent: dict[str, float]) -> None:
        started = [clock() for clock in CLOCKS.values()]
        fast(*inputs)
        for (name, clock), start in zip(CLOCKS.items(), started, strict=True):
            spent[name] += clock() - start

    shares = []
    with torch.inference_mode():
        for inputs in batches[:settle]:
            fast(*inputs)
        for turn in range(blocks):
            spent = {frozen: dict.fromkeys(CLOCKS, 0.0) for frozen in (True, False)}
            for number, inputs in enumerate(batches[settle:], turn):
                for frozen in (number % 2 == 0, number % 2 == 1):
                    (fast.freeze if frozen else fast.unfreeze)()
                    serve(inputs, spent[frozen])
            shares.append([1 - spent[True][name] / spent[False][name] for name in CLOCKS])
    return {
        name: round(statistics.median(column), 5)
        for name, column in zip(CLOCKS, zip(*shares, strict=True), strict=True)
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
    shares: dict[str, Any] = {}
    for traffic in options.traffic:
        for size in options.batch_sizes:
            found = shares_of_time(served, traffic, config, size, options.blocks)
            shares[f"{traffic}, batch {size}"] = found
            percent = ", ".join(f"{100 * value:.2f}% of {name}" for name, value in found.items())
            print(f"{options.experiment} {traffic}, batch {size}: adapting is {percent}", flush=True)
    if options.out is not None:
        record = {
            "experiment": options.experiment,
            "thresholds": list(options.thresholds),
            "canary_interval": options.canary_interval,
            "threads": options.threads,
            "shares": shares,
            "machine": machine_record(),
            "versions": versions_record(),
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
