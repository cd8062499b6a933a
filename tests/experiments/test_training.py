"""Training is repeatable and learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dynprune.experiments import checkpoints, models
from dynprune.experiments.models import mnist_cnn
from dynprune.experiments.samples import Images, Split, Texts
from dynprune.experiments.training import Epoch, Recipe, check_resumable, relative_usage, train


def _two_kinds() -> Split:
    """48 images: a bright upper half for class 0, a bright lower half for class 1."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 30, (48, 1, 28, 28), generator=generator, dtype=torch.uint8)
    labels = torch.arange(48) % 2
    pixels[labels == 0, :, :14] += 200
    pixels[labels == 1, :, 14:] += 200
    return Split(Images(pixels, (0.4,), (0.4,)), labels)


def _trained(seed: int) -> tuple[nn.Module, list[Epoch], list[tuple[int, float]]]:
    model = mnist_cnn(0)
    calls: list[tuple[int, float]] = []
    history = train(
        model,
        _two_kinds(),
        Recipe(epochs=3, learning_rate=0.002, batch_size=20, seed=seed),
        on_batch=lambda epoch, loss: calls.append((epoch, loss)),
    )
    return model, history, calls


def test_training() -> None:
    model, history, calls = _trained(seed=1)
    again, _, same_calls = _trained(seed=1)
    _, _, other_calls = _trained(seed=2)
    assert calls == same_calls
    assert calls != other_calls
    weights: dict[str, Tensor] = again.state_dict()
    for name, weight in model.state_dict().items():
        assert weight.is_contiguous()
        assert torch.equal(weight, weights[name])
    assert not model.training
    assert [epoch for epoch, _ in calls] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert history[-1].loss < history[0].loss
    assert history[-1].accuracy > 0.9


def _texts() -> Split:
    """60 texts of one word, 2 for class 0 and 3 for class 1, said one to seven times."""
    lengths = torch.arange(60) % 7 + 1
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    labels = torch.arange(60) % 2
    return Split(Texts((labels + 2).repeat_interleave(lengths).int(), starts), labels)


TEXT_RECIPE = Recipe(epochs=4, batch_size=4, buckets=True, clip_norm=1.0, decay=True, validation=12)


def test_interrupted_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole, parts = models.bilstm(4, 0), models.bilstm(4, 0)
    history = train(whole, _texts(), TEXT_RECIPE)
    path = tmp_path / "checkpoint.safetensors"

    def interrupt(epoch: int, loss: float) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(parts, _texts(), TEXT_RECIPE, checkpoint=path, on_batch=interrupt)
    again = models.bilstm(4, 1)
    resumed = train(again, _texts(), TEXT_RECIPE, checkpoint=path, resume=True)
    assert [epoch.loss for epoch in resumed] == [epoch.loss for epoch in history]
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"--resume: expected batch_size 8 in .*, got 4"):
        train(again, _texts(), replace(TEXT_RECIPE, batch_size=8), checkpoint=path, resume=True)


def test_a_checkpoint_of_a_recipe_with_fewer_fields_was_trained_by_the_defaults(tmp_path: Path) -> None:
    model, path = models.bilstm(4, 0), tmp_path / "checkpoint.safetensors"
    train(model, _texts(), TEXT_RECIPE, checkpoint=path)
    tensors, about = checkpoints.read(path)
    del about["recipe"]["bf16"]
    checkpoints.save(tensors, path, about)
    check_resumable(path, model, TEXT_RECIPE, 60)
    with pytest.raises(ValueError, match=r"--resume: expected bf16 True in .*, got False"):
        check_resumable(path, model, replace(TEXT_RECIPE, bf16=True), 60)


def test_bf16_trains_in_bfloat16_and_keeps_float32(tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()
    recipe = Recipe(epochs=3, learning_rate=0.002, batch_size=8, bf16=True, usage_penalty=0.1)
    model = mnist_cnn(0)
    model[0].register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    history = train(model, _two_kinds(), recipe, checkpoint=tmp_path / "checkpoint.safetensors")
    assert seen == {torch.bfloat16}
    assert history[-1].accuracy > 0.9
    tensors, _ = checkpoints.read(tmp_path / "checkpoint.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}


def test_the_epoch_with_the_least_validation_loss_is_kept() -> None:
    model = models.bilstm(4, 0)
    kept: dict[float, Tensor] = {}

    def on_batch(epoch: int, loss: float) -> None:
        kept[epoch] = model.fc2.bias.detach().clone()

    # So large a rate that later epochs are worse than earlier ones.
    history = train(model, _texts(), replace(TEXT_RECIPE, learning_rate=0.3, decay=False), on_batch=on_batch)
    losses = [epoch.validation_loss for epoch in history]
    assert None not in losses
    best = min(range(len(losses)), key=lambda i: losses[i] or 0.0)
    assert best < len(losses) - 1
    assert torch.equal(model.fc2.bias, kept[best])


def test_usage_penalty_leaves_units_unused() -> None:
    def unused(penalty: float) -> int:
        model = models.mlp(784, 10, "64", 0)
        train(model, _two_kinds(), Recipe(epochs=3, batch_size=8, usage_penalty=penalty))
        (images,) = _two_kinds().samples.inputs(torch.arange(48))
        with torch.no_grad():
            of_each = model[:3](images).mean(0)
        return int((of_each < 0.01 * of_each.mean()).sum())

    assert unused(3.0) > unused(0.0) + 8


def test_relative_usage() -> None:
    alike, one = torch.ones(5, 16), torch.zeros(5, 16)
    one[:, 3] = -2.0
    assert relative_usage(alike).item() == pytest.approx(1.0, abs=1e-4)
    assert relative_usage(one).item() == pytest.approx(1 / 4, abs=0.01)
    mixed = torch.rand(5, 16, generator=torch.Generator().manual_seed(0))
    usage = relative_usage(mixed)
    assert relative_usage(1000 * mixed).item() == pytest.approx(usage.item())
    # Units are the channels of images and the last axis of anything else.
    maps = mixed.view(5, 16, 1, 1).expand(5, 16, 2, 3)
    assert relative_usage(maps).item() == pytest.approx(usage.item())
    assert relative_usage(mixed.expand(7, 5, 16)).item() == pytest.approx(usage.item())


@pytest.mark.parametrize("value", [0.0, 1e-20])
def test_relative_usage_of_a_layer_nobody_uses_has_a_gradient(value: float) -> None:
    values = torch.full((4, 8), value, requires_grad=True)
    torch.autograd.backward(relative_usage(values))
    assert values.grad is not None
    assert values.grad.isfinite().all()


@pytest.mark.parametrize("name", ["crop", "affine"])
def test_augmented_training_learns_and_is_repeatable(name: str) -> None:
    recipe = Recipe(epochs=3, learning_rate=0.002, batch_size=16, augment=name)
    runs = [train(models.mlp(784, 10, "128-64-dropout", 0), _two_kinds(), recipe) for _ in range(2)]
    assert [epoch.loss for epoch in runs[0]] == [epoch.loss for epoch in runs[1]]
    plain = train(models.mlp(784, 10, "128-64-dropout", 0), _two_kinds(), replace(recipe, augment=None))
    assert plain[0].loss != runs[0][0].loss
    assert runs[0][-1].loss < runs[0][0].loss
