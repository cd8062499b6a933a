"""Bad input: one clear message, and a model that works as before."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dynprune
from dynprune import Config
from tests.models.traffic import INPUTS, LOW, UNITS, Traffic, two_halves

EXAMPLE = torch.zeros(2, INPUTS)


@pytest.fixture
def fast() -> dynprune.AcceleratedModel:
    fast, traffic = dynprune.accelerate(two_halves(), EXAMPLE, Config(evidence=128)), Traffic()
    for _ in range(5):
        fast(traffic.low(32))
    return fast


def state(fast: dynprune.AcceleratedModel) -> list[Any]:
    """All that can be asked, comparable; the output is that of the plan."""
    usage = [v.tolist() for s in fast.usage().values() for v in vars(s).values()]
    tensors = [fast.active(), fast.constants()]
    output = fast.materialize()(torch.linspace(-1, 1, 4 * INPUTS).view(4, INPUTS))
    return [fast.stats(), usage, *({k: v.tolist() for k, v in t.items()} for t in tensors), output.tolist()]


def fails(
    fast: dynprune.AcceleratedModel, call: Callable[[], Any], message: str, kind: type[Exception] = ValueError
) -> None:
    before = state(fast)
    with pytest.raises(kind, match=message):
        call()
    assert state(fast) == before
    assert fast(Traffic().low(8)).shape == (8, 3)


CONFIGS = {
    "NaN prune": ({"prune_threshold": math.nan}, "expected prune_threshold a finite number.*got nan"),
    "NaN reactivate": ({"reactivate_threshold": math.nan}, "expected reactivate_threshold a finite.*got nan"),
    "infinite": ({"reactivate_threshold": math.inf}, "expected reactivate_threshold a finite.*got inf"),
    "negative": ({"prune_threshold": -0.1}, "expected prune_threshold .* of at least 0, got -0.1"),
    "text": ({"prune_threshold": "low"}, "expected prune_threshold a finite number.*got 'low'"),
    "prune above": (
        {"prune_threshold": 0.2},
        r"expected prune_threshold at most reactivate_threshold \(0.1\)",
    ),
    "compensation": (
        {"compensation": "median"},
        "expected compensation one of mean, lstsq, none, auto, got 'median'",
    ),
    "criterion": (
        {"criterion": "size"},
        "expected criterion one of budget, contribution, mean_abs, residual or a callable",
    ),
    "residual": (
        {"criterion": "residual"},
        "expected compensation 'lstsq' with criterion='residual', got 'mean'",
    ),
    "interval": ({"canary_interval": 0}, "expected canary_interval a whole number of at least 1, got 0"),
    "looks": ({"drift_interval": 1.5}, "expected drift_interval a whole number of at least 1, got 1.5"),
    "rows": ({"canary_rows": 2.5}, "expected canary_rows a whole number of at least 1, got 2.5"),
    "dwell": ({"dwell": -1}, "expected dwell a whole number of batches, got -1"),
    "min_active": ({"min_active": 0}, "expected min_active a whole number"),
    "max_flips": ({"max_flips": 0}, r"expected max_flips in \(0, 1\], got 0"),
    "drift": ({"drift_threshold": math.nan}, "expected drift_threshold above 1, got nan"),
    "divergence": ({"max_divergence": 1.0}, r"expected max_divergence None or in \(0, 1\), got 1.0"),
    "dtype": ({"dtype": torch.int8}, "expected dtype None or a floating torch.dtype, got torch.int8"),
    "input threshold": ({"input_threshold": -1}, "expected input_threshold a finite number.*got -1"),
    "infinite inputs": ({"input_threshold": math.inf}, "expected input_threshold a finite number.*got inf"),
    "input major": ({"input_major": 1}, "expected input_major True or False, got 1"),
    "seed": ({"seed": None}, "expected seed a whole number, got None"),
    "max_flips text": ({"max_flips": "all"}, "expected max_flips .*got 'all'"),
    "drift None": ({"drift_threshold": None}, "expected drift_threshold .*got None"),
    "divergence text": ({"max_divergence": "1%"}, "expected max_divergence .*got '1%'"),
    "unhashable criterion": ({"criterion": ["mean_abs"]}, "expected criterion one of"),
}


@pytest.mark.parametrize("case", CONFIGS.values(), ids=CONFIGS)
def test_config(case: tuple[dict[str, Any], str]) -> None:
    with pytest.raises(ValueError, match="^Config: " + case[1]):
        Config(**case[0])


MASKS = {
    "empty": (torch.ones(0, dtype=torch.bool), r"torch.bool \[0\]"),
    "length": (torch.ones(UNITS + 1, dtype=torch.bool), r"torch.bool \[65\]"),
    "dimensions": (torch.ones(1, UNITS, dtype=torch.bool), r"torch.bool \[1, 64\]"),
    "float": (torch.ones(UNITS), r"torch.float32 \[64\]"),
    "int": (torch.ones(UNITS, dtype=torch.int64), r"torch.int64 \[64\]"),
    "list": ([True] * UNITS, "list"),
    "None": (None, "NoneType"),
    "device": (torch.ones(UNITS, dtype=torch.bool, device="meta"), r"torch.bool \[64\] on meta"),
}


@pytest.mark.parametrize("case", MASKS.values(), ids=MASKS)
def test_masks(fast: dynprune.AcceleratedModel, case: tuple[Any, str]) -> None:
    message = rf"^set_active: expected a BoolTensor \[64\] on the CPU for '0', got {case[1]}"
    fails(fast, lambda: fast.set_active("0", case[0]), message)


@pytest.mark.parametrize("name", ["1", "2", "", None])
def test_unknown_groups(fast: dynprune.AcceleratedModel, name: Any) -> None:
    message = f"expected a group out of 0, got {name!r}"
    fails(fast, lambda: fast.set_active(name, LOW), f"^set_active: {message}")
    fails(fast, lambda: fast.release(name), f"^release: {message}")


def failing_batches() -> Any:
    yield torch.zeros(8, INPUTS)
    raise OSError("the disk is gone")


BATCHES = {
    "none": (list, ValueError, "^calibrate: expected at least one batch with rows, got none"),
    "empty": (lambda: [torch.zeros(0, INPUTS)], ValueError, "^calibrate: expected at least one batch"),
    "shape": (
        lambda: [torch.zeros(4, INPUTS), torch.zeros(4, 5)], ValueError,
        r"^calibrate: expected batches that the model accepts, got \(torch.float32 \[4, 5\] on cpu\)",
    ),
    "dtype": (
        lambda: torch.zeros(4, INPUTS, dtype=torch.int64), ValueError,
        r"^calibrate: expected batches that the model accepts, got \(torch.int64 \[4, 16\] on cpu\)",
    ),
    "more arguments": (lambda: [(EXAMPLE, EXAMPLE)], ValueError, "^calibrate: expected batches that"),
    "source fails": (failing_batches, OSError, "the disk is gone"),
    "None": (lambda: None, ValueError, "^calibrate: expected an iterable of batches, got NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("case", BATCHES.values(), ids=BATCHES)
def test_calibrate(
    fast: dynprune.AcceleratedModel, case: tuple[Callable[[], Any], type[Exception], str]
) -> None:
    fails(fast, lambda: fast.calibrate(case[0]()), case[2], case[1])


def test_calibrate_of_a_frozen_model(fast: dynprune.AcceleratedModel) -> None:
    fast.freeze()
    fails(fast, lambda: fast.calibrate(EXAMPLE), "^calibrate: expected a model that is not frozen")


WRONG = {
    "shape": torch.zeros(4, 5),
    "integers": torch.zeros(4, INPUTS, dtype=torch.int64),
    "float64": torch.zeros(4, INPUTS).double(),
}


@pytest.mark.parametrize("bad", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("frozen", [False, True])
def test_inputs_of_the_wrong_shape_or_dtype(
    fast: dynprune.AcceleratedModel, bad: Tensor, frozen: bool
) -> None:
    if frozen:
        fast.freeze()
    fails(fast, lambda: fast(bad), "^linear: expected .*, got ")


def test_an_input_that_requires_a_gradient(fast: dynprune.AcceleratedModel) -> None:
    x = torch.zeros(4, INPUTS, requires_grad=True)
    fails(fast, lambda: fast(x), "^forward: expected inputs that need no gradient", NotImplementedError)
    with torch.no_grad():
        assert fast(x).shape == (4, 3)


def test_training(fast: dynprune.AcceleratedModel) -> None:
    fails(fast, fast.train, "^train: expected mode False, got True", NotImplementedError)
    assert fast.eval() is fast and not fast.training


def test_a_callback_that_is_none(fast: dynprune.AcceleratedModel) -> None:
    fails(fast, lambda: fast.on_update(None), "^on_update: expected a callable, got NoneType")


def test_a_criterion_with_the_wrong_shape() -> None:
    fast = dynprune.accelerate(two_halves(), EXAMPLE, Config(criterion=lambda view: view.usage.mean[:3]))
    fails(fast, lambda: fast.calibrate(EXAMPLE), r"^criterion: expected scores \[64\] of 0, got \[3\]")


def test_a_callback_that_fails(fast: dynprune.AcceleratedModel) -> None:
    def broken(choice: dict[str, Tensor]) -> None:
        raise OSError("the log is full")

    fast.on_update(broken)
    fails(fast, lambda: fast.set_active("0", ~LOW), "the log is full", OSError)
    fails(fast, lambda: fast.calibrate(Traffic().high(64)), "the log is full", OSError)


# accelerate -----------------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line
            return self.fc(x)
        return x


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


MODELS = {
    "not a model": (lambda: torch.relu, EXAMPLE, "expected a torch.nn.Module, got builtin_function"),
    "another device": (
        lambda: nn.Sequential(nn.Linear(4, 4, device="meta")), EXAMPLE,
        "expected a model and inputs on the CPU or a GPU, got 0.weight on meta",
    ),
    "buffers elsewhere": (
        lambda: nn.BatchNorm1d(4, affine=False, device="meta"), EXAMPLE,
        "expected a model and inputs on the CPU or a GPU, got running_mean on meta",
    ),
    "inputs elsewhere": (two_halves, EXAMPLE.to("meta"), r"CPU or a GPU, got example_inputs\[0\] on meta"),
    "shape": (
        two_halves, torch.zeros(2, 5),
        r"example_inputs that the model accepts, got \(torch.float32 \[2, 5\] on cpu\), which ends in",
    ),
    "dtype": (two_halves, EXAMPLE.long(), r"that the model accepts, got \(torch.int64 \[2, 16\] on cpu\)"),
    "too many": (two_halves, (EXAMPLE, EXAMPLE), "expected example_inputs that the model accepts"),
    "too few": (two_halves, (), r"expected example_inputs that the model accepts, got \(\)"),
    "nothing": (two_halves, None, r"expected example_inputs that the model accepts, got \(NoneType\)"),
    "random": (Noisy, EXAMPLE, "expected the lowered model to agree with the model .* random in eval mode"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS)
def test_accelerate(case: tuple[Callable[[], Any], Any, str]) -> None:
    with pytest.raises(ValueError, match="^accelerate: .*" + case[2]):
        dynprune.accelerate(case[0](), case[1])


X4 = torch.linspace(-1, 1, 8).view(2, 4)


def test_untraceable() -> None:
    with pytest.raises(dynprune.TraceError) as caught:
        dynprune.accelerate(Branching(), torch.zeros(2, 4))
    message = str(caught.value)
    line = Branching.forward.__code__.co_firstlineno + 1
    assert message.startswith("accelerate: expected a model that torch.fx can trace, got TraceError")
    assert f"{__file__}:{line}: if x.sum() > 0:  # the line" in message
    assert "Accelerate a submodule without that line" in message
    assert issubclass(dynprune.TraceError, ValueError)


def test_untraceable_submodule() -> None:
    with pytest.raises(dynprune.TraceError) as caught:
        dynprune.accelerate(nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"gate": Branching()})["gate"]), X4)
    message = str(caught.value)
    assert "if x.sum() > 0:  # the line, in the submodule 1 (Branching). Accelerate a submodule" in message


class Optional(nn.Module):
    """Chooses by arguments that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 9), nn.Linear(9, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None, double: bool = False) -> Tensor:
        x = torch.relu(self.a(x))
        if mask is not None:
            x = x * mask
        return self.b(x * 2 if double else x)


def test_arguments_by_which_a_forward_chooses_are_those_of_the_example() -> None:
    model, mask = Optional().eval(), torch.rand(2, 1)
    plain, masked = dynprune.accelerate(model, X4), dynprune.accelerate(model, (X4, mask, True))
    torch.testing.assert_close(plain(X4), model(X4))
    torch.testing.assert_close(plain(X4, mask=None), model(X4))
    torch.testing.assert_close(masked(X4, mask, True), model(X4, mask, True))
    with pytest.raises(
        ValueError, match="forward: expected mask to be None, as in example_inputs, got Tensor"
    ):
        plain(X4, mask)
    with pytest.raises(
        ValueError, match="forward: expected double to be True, as in example_inputs, got False"
    ):
        masked(X4, mask)


def test_the_way_out_of_an_untraceable_model() -> None:
    model = Branching()
    model.fc = dynprune.accelerate(model.fc, torch.zeros(2, 4))
    assert model(torch.ones(2, 4)).shape == (2, 4)


def test_accelerate_twice(fast: dynprune.AcceleratedModel) -> None:
    message = "^accelerate: expected a model that is not accelerated yet, got one that is"
    fails(fast, lambda: dynprune.accelerate(fast, EXAMPLE), message)
    dynprune.accelerate(fast.restore(), EXAMPLE)


def test_not_a_config() -> None:
    with pytest.raises(ValueError, match=r"^accelerate: expected a dynprune.Config, got dict"):
        dynprune.accelerate(two_halves(), EXAMPLE, {"seed": 1})


def test_a_failed_accelerate_leaves_the_model_alone() -> None:
    model = two_halves().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="accelerate: "):
        dynprune.accelerate(model, torch.zeros(2, 5))
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model._forward_hooks


def test_a_model_in_training_mode_is_accelerated_as_in_eval_mode() -> None:
    model = nn.Sequential(
        nn.Linear(4, 9), nn.BatchNorm1d(9), nn.Dropout(0.9), nn.ReLU(), nn.Linear(9, 2)
    ).train()
    x = torch.randn(6, 4)
    fast = dynprune.accelerate(model, x)
    assert model.training and not model[1].num_batches_tracked
    torch.testing.assert_close(fast(x), model.eval()(x))
