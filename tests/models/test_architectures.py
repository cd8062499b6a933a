"""Architectures with groups of several layers, gates and heads, against the masked dense model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import dynprune
from dynprune.control.criteria import contribution
from tests.models.architectures import ARCHITECTURES, Architecture, build
from tests.models.masked import masked_dense, relative_error
from tests.models.test_exactness import TOLERANCE, force_random_sets, frozen


def error(got: object, expected: object) -> float:
    """The largest relative error over all outputs."""
    pairs = zip(pytree.tree_leaves(got), pytree.tree_leaves(expected), strict=True)
    return max(relative_error(a, b.double()) for a, b in pairs)


def expect_exact(fast: dynprune.AcceleratedModel, case: Architecture, *x: Tensor) -> None:
    expected = masked_dense(case.model, fast, case.readers(), *x)
    assert error(fast(*x), expected) <= TOLERANCE
    assert error(fast.materialize()(*x), expected) <= TOLERANCE
    without = masked_dense(case.model, fast, case.readers(), *x, compensate=False)
    assert error(fast.materialize(compensate=False)(*x), without) <= TOLERANCE


def choices(fast: dynprune.AcceleratedModel) -> Iterator[str]:
    """Force one choice of active units after another, and name it."""
    for share in (0.0, 0.3, 0.7):
        for seed in range(1 + 2 * (share == 0.7)):
            force_random_sets(fast, share, seed)
            yield f"share {share}, seed {seed}"
    for name, group in fast.groups.items():
        one = torch.arange(group.units) == group.units // 2
        fast.set_active(name, one)
    yield "one unit of each group"
    for name, group in fast.groups.items():
        for other, rest in fast.groups.items():
            fast.set_active(other, torch.ones(rest.units, dtype=torch.bool))
        fast.set_active(name, torch.arange(group.units) % 3 == 0)
        yield f"a third of {name}"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_groups(name: str) -> None:
    case = build(name)
    fast = dynprune.accelerate(case.model, case.inputs)
    assert {group: found.layers for group, found in fast.groups.items()} == case.groups
    inside = (":recurrent", ".l1", ".hidden", ".cell")  # what LSTMs read of each other and of themselves
    steps = {key for key in fast.constants() if key.endswith(inside)}
    assert fast.constants().keys() - steps == {reader.key or reader.group for reader in case.readers()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_forced_sets(name: str) -> None:
    case = build(name)
    fast = frozen(case.model, *case.inputs)
    with torch.no_grad():
        dense = case.model(*case.inputs)
    for choice in choices(fast):
        expect_exact(fast, case, *case.inputs)
        if choice.startswith("share"):
            assert error(fast(*case.inputs), dense) > 10 * TOLERANCE, choice
    everything = {group: torch.ones(found.units, dtype=torch.bool) for group, found in fast.groups.items()}
    for group, mask in everything.items():
        fast.set_active(group, mask)
    assert error(fast(*case.inputs), dense) <= TOLERANCE


@pytest.mark.parametrize("compensation", ["lstsq", "none"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_compensations(name: str, compensation: str) -> None:
    case = build(name)
    fast = frozen(case.model, *case.inputs, compensation=compensation)
    force_random_sets(fast, 0.6, 1)
    expect_exact(fast, case, *case.inputs)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_batch_sizes(name: str) -> None:
    case = build(name)
    fast = frozen(case.model, *case.inputs)
    force_random_sets(fast, 0.5, 2)
    for rows in (1, 5):
        repeats = -(-rows // len(case.inputs[0]))
        expect_exact(fast, case, *(torch.cat([x] * repeats)[:rows] for x in case.inputs))


def seen_by(case: Architecture, group: str, *x: Tensor) -> dict[str, Tensor]:
    """What each reader of a group sees in the dense model, ``[values, units]`` in float64."""
    seen: dict[str, Tensor] = {}
    handles = []
    for reader in case.readers():
        if reader.group == group:
            module = case.model.get_submodule(reader.module)
            note = lambda _, args, key=reader.key: seen.update({key: args[0].detach().double().clone()})  # noqa: E731
            handles.append(module.register_forward_pre_hook(note))
    with torch.no_grad():
        case.model(*x)
    for handle in handles:
        handle.remove()
    return {key: value.movedim(1, -1).reshape(-1, value.shape[1]) for key, value in seen.items()}


def test_usage_and_scores_of_a_sum_are_those_of_its_read_points() -> None:
    case = build("residual sums of identities")
    views = {}

    def spy(view: dynprune.GroupView) -> Tensor:
        views[view.name] = view
        return contribution(view)

    fast = dynprune.accelerate(case.model, case.inputs, dynprune.Config(criterion=spy))
    fast.calibrate([case.inputs])
    seen = seen_by(case, "0.0", *case.inputs)
    assert list(seen) == ["0.0:2.a.0", "0.0:3.a.0", "0.0:4.2"]
    values = torch.cat([*seen.values()])
    usage = fast.usage()["0.0"]
    torch.testing.assert_close(usage.mean_abs, values.abs().mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(usage.mean, values.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(usage.var, values.var(0, correction=0), rtol=1e-4, atol=1e-5)
    assert usage.count.tolist() == [len(values)] * 18
    norms = {
        "0.0:2.a.0": folded_columns(case.model[2].a), "0.0:3.a.0": folded_columns(case.model[3].a),
        "0.0:4.2": case.model[4][2].weight.double().square().sum(0),
    }  # fmt: skip
    shares = [value.var(0, correction=0) * norms[key] for key, value in seen.items()]
    expected = torch.stack([share / share.mean() for share in shares]).amax(0)
    torch.testing.assert_close(contribution(views["0.0"]), expected.detach(), rtol=1e-3, atol=1e-5)
    for key, value in seen.items():
        torch.testing.assert_close(fast.constants()[key].double(), value.mean(0), rtol=1e-4, atol=1e-5)


def folded_columns(layer: nn.Sequential) -> Tensor:
    """Squared columns of a convolution with its norm folded in."""
    conv, norm = layer
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (conv.weight * scale.view(-1, 1, 1, 1)).double().square().sum((0, 2, 3))


@pytest.mark.parametrize(
    "name", ["residual sums of a projection", "squeeze and excitation", "inverted residuals"]
)
def test_adapting(name: str) -> None:
    """Observes, prunes and publishes by itself; everything comes back when it is released."""
    case = build(name)
    config = dynprune.Config(evidence=64, prune_threshold=0.6, reactivate_threshold=0.8, canary_interval=4)
    fast = dynprune.accelerate(case.model, case.inputs, config)
    published = []
    fast.on_update(published.append)
    x = torch.randn(32, *case.inputs[0].shape[1:])
    with torch.no_grad():
        for batch in range(12):
            answer = fast(x + 0.01 * batch)
            assert answer.isfinite().all() and answer.shape == case.model(x[:1]).expand(32, -1).shape
    stats = fast.stats()
    assert published and stats["flips"] > 0 and not stats["observing"]
    assert stats["operations"] < stats["dense_operations"]
    several = [group for group, layers in case.groups.items() if len(layers) > 1]
    assert several
    for group in several:
        units = fast.groups[group].units
        assert all(part.shape == (units,) for part in dataclasses.astuple(fast.usage()[group]))
        assert not fast.active()[group].all()
    for reader in case.readers():
        key = reader.key or reader.group
        assert fast.constants()[key].shape == (sum(fast.groups[g].units for g in reader.group.split("+")),)
    fast.freeze()
    expect_exact(fast, case, *case.inputs)


def test_a_sum_is_calibrated_forced_and_released() -> None:
    case = build("bottlenecks")
    config = dynprune.Config(prune_threshold=0.6, reactivate_threshold=0.8)
    fast = dynprune.accelerate(case.model, case.inputs, config)
    fast.calibrate([torch.randn(64, *case.inputs[0].shape[1:])])
    chosen = fast.active()["2.c.0"]
    assert 0 < int(chosen.sum()) < 20
    fast.set_active("2.c.0", ~chosen)
    fast.freeze()
    expect_exact(fast, case, *case.inputs)
    fast.release("2.c.0")
    assert torch.equal(fast.active()["2.c.0"], chosen)
    expect_exact(fast, case, *case.inputs)


def test_live_usage_of_sums_reaches_the_drift_detector() -> None:
    """A model whose only group is a sum: other traffic has to be noticed all the same."""
    torch.manual_seed(0)
    model = nn.Sequential(Both(), nn.ReLU(), nn.Linear(24, 3)).eval()
    config = dynprune.Config(prune_threshold=0.5, reactivate_threshold=0.9, evidence=64, drift_interval=4)
    fast = dynprune.accelerate(model, torch.randn(4, 9), config)
    assert [group.layers for group in fast.groups.values()] == [["0.a", "0.b"]]
    for _ in range(120):
        fast(torch.randn(32, 9))
    assert not fast.stats()["observing"] and not fast.active()["0.a"].all()
    noticed = False
    for _ in range(40):
        fast(torch.randn(32, 9) * 4 + 3)
        noticed = noticed or fast.stats()["observing"]
    assert noticed


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(9, 24), nn.Linear(9, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("masks", ["none", "causal", "padding", "padding in between"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:enable_nested_tensor is True")
def test_encoders_as_pytorch_runs_them(batch_first: bool, norm_first: bool, masks: str) -> None:
    """On its own fast path, which leaves padding out where it is at the end."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 40, batch_first=batch_first, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16)).eval()
    x = torch.randn(3, 6, 16) if batch_first else torch.randn(6, 3, 16)
    padding = torch.arange(6) >= torch.tensor([[6], [3], [2]])
    given: dict[str, tuple[Tensor | None, ...]] = {
        "none": (), "causal": (nn.Transformer.generate_square_subsequent_mask(6),),
        "padding": (None, padding), "padding in between": (None, padding.roll(1, 1)),
    }  # fmt: skip
    fast = dynprune.accelerate(model, (x, *given[masks]))
    assert list(fast.groups) == ["layers.0.linear1", "layers.1.linear1"]
    with torch.no_grad():
        expected = model(x, *given[masks])
    torch.testing.assert_close(fast(x, *given[masks]), expected, rtol=1e-5, atol=1e-5)
    assert type(model) is nn.TransformerEncoder and type(model.layers[0]) is nn.TransformerEncoderLayer


def test_an_encoder_with_a_hook_stays_dense() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 40, batch_first=True).eval()
    model.register_forward_hook(lambda module, args, output: output * 2)
    x = torch.randn(3, 6, 16)
    fast = dynprune.accelerate(nn.Sequential(model), x)
    torch.testing.assert_close(fast(x), model(x))
    assert fast.groups == {} and "dense: it has forward hooks" in fast.explain()


EXPLANATIONS = {
    "residual sums of identities": [
        "0.0  kernel (Conv2d + batch norm + relu); 18 units may be pruned, together with those of 2.b.0, ",
        "group 0.0: 18 of 18 units active of 0.0, 2.b.0, 3.b.0, read at 0.0:2.a.0, 0.0:3.a.0, 0.0:4.2",
    ],
    "transformer": [
        "add     reads 0 at full width: call_function add, because no layer reads the result",
        "add_1   reads 1.fc2 at full width: call_function add, because its other operand is full width",
        "1.fc1   kernel (Linear + gelu); 33 units may be pruned",
    ],
    "a gate over pixels": ["because its one unit meets all those of the other operand"],
    "three outputs, one from the middle": ["kernel; never pruned: its units reach an output of the model"],
    "PyTorch's encoder and decoder": [
        "encoder.layers.0.self_attn  dense: MultiheadAttention has no kernel",
        "decoder.linear1  kernel (Linear + relu); 25 units may be pruned",
    ],
    "stacked LSTM with two heads": ["lstm.l0  kernel (LSTM, both directions); 11 + 11 units may be pruned"],
}


@pytest.mark.parametrize("name", EXPLANATIONS)
def test_explain(name: str) -> None:
    case = build(name)
    text = dynprune.accelerate(case.model, case.inputs).explain()
    for line in EXPLANATIONS[name]:
        assert " ".join(line.split()) in " ".join(text.split()), text
