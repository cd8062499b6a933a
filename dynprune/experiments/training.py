"""Training of a classifier, with checkpoints from which it goes on as if nothing had happened."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.experiments import checkpoints
from dynprune.experiments.augment import AUGMENTATIONS
from dynprune.experiments.evaluation import class_logits, predict_all, quality
from dynprune.experiments.resources import Gpu, gpu_now
from dynprune.experiments.samples import Change, Inputs, Split
from dynprune.streams import shuffled_rounds

# Batches of texts that are sorted by length together: little padding, and still random batches.
BUCKET_BATCHES = 20
# Of a unit, relative to the mean of its layer: below, the usage grows linearly, so its gradient is finite.
SMALL_USAGE = 1e-5
# Of the activations of a layer: below, they are taken for ones that nobody uses.
SMALLEST_MEAN = 1e-6


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, with Adam and cross entropy.

    ``augment``: a key of ``AUGMENTATIONS`` or None; ``buckets``: batches of samples of similar length;
    ``clip_norm``: largest norm of all gradients; ``decay``: whether the learning rate falls to zero along a
    cosine; ``validation``: so many of the last training samples are held out and choose the epoch with the
    least loss (0: the last epoch is taken); ``weight_decay``: of Adam, added to the gradient;
    ``usage_penalty``: factor of the usage of the activations (``relative_usage``, averaged over the layers),
    added to the loss; ``bf16``: whether the forward runs under autocast in bfloat16, with weights, gradients
    of weights and Adam in float32.
    """

    epochs: int = 20
    learning_rate: float = 0.001
    batch_size: int = 64
    seed: int = 0
    augment: str | None = None
    buckets: bool = False
    clip_norm: float | None = None
    decay: bool = False
    validation: int = 0
    weight_decay: float = 0.0
    usage_penalty: float = 0.0
    bf16: bool = False


@dataclass(frozen=True)
class Epoch:
    """Means over the samples of one epoch, taken while the weights change, and those held out.

    ``gpu``: the GPU at its end, where it trained there.
    """

    loss: float
    accuracy: float
    seconds: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    gpu: Gpu | None = None


@dataclass
class _State:
    """Where a training stands: what a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Adam
    history: list[Epoch]
    best: dict[str, Tensor]  # empty where nothing is held out

    def save(self, path: Path, recipe: Recipe, samples: int) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": value for name, value in values.items()}
        about = {
            "recipe": asdict(recipe),
            "samples": samples,
            "history": [asdict(epoch) for epoch in self.history],
        }
        checkpoints.save(tensors, path, about)

    def load(self, path: Path, recipe: Recipe, samples: int) -> None:
        check_resumable(path, self.model, recipe, samples)
        tensors, about = checkpoints.read(path)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "adam": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        checkpoints.load_into(self.model, parts["model"], path)
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["adam"].items():
            number, _, rest = name.partition(".")
            states.setdefault(int(number), {})[rest] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        self.best = parts["best"]
        self.history = [_epoch_of(epoch) for epoch in about["history"]]


def _epoch_of(record: dict[str, Any]) -> Epoch:
    gpu = record.pop("gpu")
    return Epoch(**record, gpu=None if gpu is None else Gpu(**gpu))


def check_resumable(checkpoint: Path, model: nn.Module, recipe: Recipe, samples: int) -> None:
    """Whether a training of ``model`` by ``recipe`` on ``samples`` samples may go on from ``checkpoint``.

    Raises:
        ValueError: it is no checkpoint of such a training.
    """
    tensors, about = checkpoints.read(checkpoint)
    expected = {**asdict(recipe), "samples": samples}
    # What a checkpoint of an older release does not name was trained as the default says.
    got = {**asdict(Recipe()), **(about.get("recipe") or {}), "samples": about.get("samples")}
    for name, value in expected.items():
        if got.get(name) != value:
            raise ValueError(f"--resume: expected {name} {value} in {checkpoint}, got {got.get(name)}")
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    checkpoints.check_fit(model, weights, checkpoint)


def train(
    model: nn.Module,
    split: Split,
    recipe: Recipe,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    resume: bool = False,
    on_batch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> list[Epoch]:
    """Train ``model`` in place; it is on the CPU, contiguous and in eval mode afterwards.

    ``on_batch`` is called with the epoch (from 0) and the loss of each batch. ``checkpoint`` is written
    after each epoch; with ``resume`` training goes on from it if it is there. The model works in
    channels-last format meanwhile, which is the faster one for convolutions. The result is a function of the
    arguments, the device and the number of threads, however often training was interrupted.

    Raises:
        ValueError: the checkpoint to resume from is of another training.
    """
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    state = _State(model, optimizer, [], {})
    if resume and checkpoint is not None and checkpoint.is_file():
        state.load(checkpoint, recipe, len(split))
    kept = len(split) - recipe.validation
    with torch.random.fork_rng(devices=[0] if device == "cuda" else []):
        for epoch in range(len(state.history), recipe.epochs):
            # Each epoch has numbers of its own, so none need be kept to go on.
            torch.manual_seed(_mixed(recipe.seed, epoch))
            state.history.append(_epoch(state, split, kept, recipe, epoch, device, on_batch))
            _judge(state, split, kept, device)
            if checkpoint is not None:
                state.save(checkpoint, recipe, len(split))
    if state.best:
        model.load_state_dict(state.best)
    model.to(device="cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return state.history


def _epoch(
    state: _State,
    split: Split,
    kept: int,
    recipe: Recipe,
    epoch: int,
    device: str,
    on_batch: Callable[[int, float], None],
) -> Epoch:
    started = time.perf_counter()
    model = state.model.train()
    loss_sum = torch.zeros((), dtype=torch.float64)
    correct = torch.zeros((), dtype=torch.int64)
    batches = _batches(split, kept, recipe, epoch)
    change = _augmentation(recipe, epoch)
    with _usage(model, watched=recipe.usage_penalty > 0) as usage:
        for number, rows in enumerate(batches):
            if recipe.decay:
                done = (epoch + number / len(batches)) / recipe.epochs
                rate = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
                state.optimizer.param_groups[0]["lr"] = rate
            labels = split.labels[rows].to(device)
            with torch.autocast(device, torch.bfloat16, enabled=recipe.bf16):
                outputs = model(*_placed(split.samples.inputs(rows, change), device))
            logits = class_logits(outputs.float())
            loss = nn.functional.cross_entropy(logits, labels)
            penalised = loss + recipe.usage_penalty * usage() if recipe.usage_penalty else loss
            state.optimizer.zero_grad()
            torch.autograd.backward(penalised)
            if recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            state.optimizer.step()
            loss_sum += loss.detach().cpu() * len(rows)
            correct += (logits.detach().argmax(1) == labels).sum().cpu()
            on_batch(epoch, loss.item())
    seconds = time.perf_counter() - started
    gpu = gpu_now() if device == "cuda" else None
    return Epoch(loss_sum.item() / kept, correct.item() / kept, seconds, gpu=gpu)


def _judge(state: _State, split: Split, kept: int, device: str) -> None:
    """Add what the samples that were held out say of the last epoch, and keep the best weights."""
    if kept == len(split):
        return
    model = state.model.eval()
    rows = split.rows[kept:]
    logits = predict_all(lambda *inputs: model(*_placed(inputs, device)).cpu(), split, rows)
    judged = quality(logits, split.labels[rows])
    before = [epoch.validation_loss for epoch in state.history[:-1]]
    if judged.loss < min((loss for loss in before if loss is not None), default=math.inf):
        state.best = copy.deepcopy(model.state_dict())
    state.history[-1] = replace(
        state.history[-1], validation_loss=judged.loss, validation_accuracy=judged.accuracy
    )


def _batches(split: Split, kept: int, recipe: Recipe, epoch: int) -> list[Tensor]:
    """Row numbers of the batches of one epoch."""
    size = recipe.batch_size
    order = shuffled_rounds(torch.arange(kept), kept, recipe.seed, epoch)
    lengths = split.samples.lengths
    if not recipe.buckets or lengths is None:
        return list(torch.split(order, size))
    buckets = torch.split(order, size * BUCKET_BATCHES)
    batches = torch.split(torch.cat([rows[lengths[rows].argsort()] for rows in buckets]), size)
    mixed = shuffled_rounds(torch.arange(len(batches)), len(batches), recipe.seed, epoch, 1)
    return [batches[number] for number in mixed.tolist()]


def _augmentation(recipe: Recipe, epoch: int) -> Change | None:
    if recipe.augment is None:
        return None
    augment = AUGMENTATIONS[recipe.augment]
    generator = torch.Generator().manual_seed(_mixed(recipe.seed, epoch))
    return lambda samples: (augment(samples[0], generator),)


def _mixed(seed: int, epoch: int) -> int:
    return (seed * 100_003 + epoch) % 2**63


def _placed(inputs: Inputs, device: str) -> Inputs:
    """Images in channels-last format; on the device all but lengths, which packing wants on the CPU."""
    placed = [
        value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value for value in inputs
    ]
    return tuple(value if value.dim() == 1 else value.to(device) for value in placed)


@contextmanager
def _usage(model: nn.Module, watched: bool) -> Iterator[Callable[[], Tensor]]:
    """A function that gives the usage in the last forward, averaged over its activations and LSTMs."""
    usages: list[Tensor] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(module, nn.LSTM) else output
        values = states.data if isinstance(states, nn.utils.rnn.PackedSequence) else states
        usages.append(relative_usage(values))

    def usage() -> Tensor:
        mean = torch.stack(usages).mean()
        usages.clear()
        return mean

    units = [m for m in model.modules() if watched and isinstance(m, (nn.ReLU, nn.LSTM))]
    handles = [module.register_forward_hook(note) for module in units]
    try:
        yield usage
    finally:
        for handle in handles:
            handle.remove()


def relative_usage(values: Tensor) -> Tensor:
    """The usage of a layer: the mean over its units of the root of their mean |a|, relative to the layer's.

    ``values``: [N, units, height, width], else [..., units]. The result is 1 where all units are used alike
    and 1 / sqrt(units) where one does all. The mean of |a| itself also falls when all units shrink alike, for
    which the next layer makes up with larger weights, and that spares none; the root pulls harder at a
    unit the less it is used, until it is not used at all.
    """
    sizes = values.float().abs()
    of_each = sizes.mean((0, 2, 3)) if sizes.dim() == 4 else sizes.flatten(0, -2).mean(0)
    relative = of_each / of_each.mean().clamp_min(SMALLEST_MEAN)
    return (relative + SMALL_USAGE).sqrt().mean()
