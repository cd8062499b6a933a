"""What thresholds and compensation cost in accuracy, over several seeds and kinds of traffic.

``python -m benchmarks.thresholds --data-dir FOLDER`` trains the MNIST CNN of the experiment on the embedded
subset, once per seed, adapts it to each kind of traffic, and judges it on the full test set of FOLDER:
the 400 images that the subset has of a pair of classes are too few to tell thresholds apart.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import dynprune
from dynprune.experiments import serving
from dynprune.experiments.data import Data, load
from dynprune.experiments.data_sets import MNIST
from dynprune.experiments.evaluation import predict_all
from dynprune.experiments.models import mnist_cnn
from dynprune.experiments.options import Protocol
from dynprune.experiments.training import Recipe, train
from dynprune.streams import Traffic

THRESHOLDS = ((0.05, 0.1), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (0.6, 0.7))
TRAFFIC = (Traffic(), Traffic((0, 1)), Traffic((4, 9)), Traffic((3, 5)), Traffic((2, 7)))


def rows_of(seed: int, subset: Data, full: Data) -> list[dict[str, object]]:
    """One record per choice, for the model of one seed."""
    protocol, model = Protocol(), mnist_cnn(seed)
    train(model, subset.train, Recipe(epochs=4, seed=seed))
    rows: list[dict[str, object]] = []
    for compensation in ("mean", "lstsq"):
        for prune, reactivate in THRESHOLDS:
            config = dynprune.Config(prune, reactivate, compensation=compensation, seed=seed)
            for traffic in TRAFFIC:
                fast = serving.adapt(model, subset, traffic, config, protocol, seed)
                judged = serving.judged_rows(full.test, traffic, seed)
                labels = full.test.labels[judged]
                dense = predict_all(model, full.test, judged).argmax(1)
                with serving.watch(fast) as activity:
                    answers = predict_all(fast, full.test, judged).argmax(1)
                rows.append(
                    {
                        "seed": seed,
                        "compensation": compensation,
                        "prune": prune,
                        "reactivate": reactivate,
                        "traffic": traffic.name,
                        "operations_share": activity.operations_share,
                        "accuracy": (answers == labels).double().mean().item(),
                        "dense_accuracy": (dense == labels).double().mean().item(),
                        "changed": (answers != dense).double().mean().item(),
                    }
                )
    return rows


def main() -> None:
    """Write the records as JSON and print their means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/thresholds-mnist.json"))
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    subset, full = load(MNIST), load(MNIST, options.data_dir)
    rows = [row for seed in options.seeds for row in rows_of(seed, subset, full)]
    options.out.write_text(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=1) + "\n")
    print("compensation thresholds | all classes: operations, accuracy | pairs of classes | worst pair")
    for compensation in ("mean", "lstsq"):
        for prune, reactivate in THRESHOLDS:
            chosen = [r for r in rows if (r["compensation"], r["prune"]) == (compensation, prune)]
            text = f"{compensation:5} {prune:g}/{reactivate:g}"
            for uniform in (True, False):
                some = [r for r in chosen if (r["traffic"] == Traffic().name) == uniform]
                operations = torch.tensor([r["operations_share"] for r in some]).mean()
                points = torch.tensor([100 * (r["accuracy"] - r["dense_accuracy"]) for r in some])  # type: ignore[operator]
                text += f" | {100 * operations:.1f}%, {points.mean():+.2f}"
            print(f"{text} | {points.min():+.2f}")


if __name__ == "__main__":
    main()
