"""Write the weights of a finished experiment to the folder that --pretrained reads, in float16.

    python tools/export_weights.py runs/cifar10-cnn/model.safetensors --experiment cifar10-cnn
    python tools/export_weights.py weights.safetensors --experiment imdb-bilstm --tokenizer tokenizer.json

The second form is for weights from elsewhere: the tokenizer, a file of the library of that name, gives the
vocabulary that `model.safetensors` of an experiment carries with it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import Tokenizer

from dynprune.experiments import checkpoints, texts
from dynprune.experiments.catalogue import DEFAULT_SHAPE, find_experiment


def main() -> None:
    parser = argparse.ArgumentParser(description="Write weights for --pretrained.")
    parser.add_argument("weights", type=Path, help="a safetensors file")
    parser.add_argument("--experiment", required=True, help="name of the experiment")
    parser.add_argument("--tokenizer", type=Path, help="vocabulary of weights from elsewhere")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder to write to")
    arguments = parser.parse_args()
    find_experiment(arguments.experiment)
    tensors, about = checkpoints.read(arguments.weights)
    about = {"shape": DEFAULT_SHAPE, "vocabulary": [], **about, "experiment": arguments.experiment}
    if arguments.tokenizer is not None:
        about["vocabulary"] = texts.words(Tokenizer.from_file(str(arguments.tokenizer)))
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"{arguments.experiment}.safetensors"
    checkpoints.save(checkpoints.halved(tensors), path, about)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
