"""Models that are not a plain sequence: functional style, several readers, ops the lowering does not know."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynprune
from tests.models.masked import Reader
from tests.models.networks import random_norms
from tests.models.test_exactness import expect_exact, force_random_sets, frozen

IMAGES = (3, 2, 8, 6)


class Net(nn.Module):
    """Two convolutions and two linear layers; each case has a forward of its own."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], features: int = 13 * 4 * 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 17, 3, padding=1)
        self.conv2 = nn.Conv2d(17, 13, 3, padding=1)
        self.norm = nn.BatchNorm2d(17)
        self.norm1d = nn.BatchNorm1d(features)
        self.fc1 = nn.Linear(features, 21)
        self.fc2 = nn.Linear(21, 5)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def convolve(m: Net, x: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(m.conv2(F.relu(m.conv1(x)))), 2)


def finish(m: Net, x: Tensor) -> Tensor:
    return m.fc2(torch.tanh(m.fc1(x)))


CONV = [Reader("conv2", "conv1")]
TAIL = [Reader("fc1", "conv2", pixels=12), Reader("fc2", "fc1")]
MEAN_TAIL = [Reader("fc1", "conv2"), Reader("fc2", "fc1")]

Style = tuple[Callable[[Net, Tensor], Tensor], int, list[Reader]]

STYLES: dict[str, Style] = {
    "view by size": (lambda m, x: finish(m, convolve(m, x).view(x.size(0), -1)), 156, TAIL),
    "view by shape": (lambda m, x: finish(m, convolve(m, x).reshape(x.shape[0], -1)), 156, TAIL),
    "reshape -1": (lambda m, x: finish(m, torch.reshape(convolve(m, x), (-1, 156))), 156, TAIL),
    "flatten function": (lambda m, x: finish(m, torch.flatten(convolve(m, x), 1)), 156, TAIL),
    "flatten method": (lambda m, x: finish(m, convolve(m, x).flatten(1)), 156, TAIL),
    "mean": (lambda m, x: finish(m, convolve(m, x).mean([2, 3])), 13, MEAN_TAIL),
    "mean, negative, kept": (
        lambda m, x: finish(m, torch.mean(convolve(m, x), (-1, -2), keepdim=True).flatten(1)), 13, MEAN_TAIL,
    ),
    "adaptive pool": (
        lambda m, x: finish(m, F.adaptive_avg_pool2d(convolve(m, x), 1).flatten(1)), 13, MEAN_TAIL,
    ),
    "activation behind the max pool": (
        lambda m, x: finish(m, F.relu(F.max_pool2d(m.conv2(F.gelu(m.conv1(x))), 2)).flatten(1)), 156, TAIL,
    ),
    "activation behind the average pool": (
        lambda m, x: finish(m, F.silu(F.avg_pool2d(m.conv2(m.conv1(x).sigmoid()), 2)).flatten(1)), 156, TAIL,
    ),
    "batch norm after the activation": (
        lambda m, x: finish(m, m.norm1d(F.max_pool2d(m.conv2(m.norm(F.relu(m.conv1(x)))), 2).flatten(1))),
        156,
        [Reader("conv2", "conv1"), Reader("norm1d", "conv2", pixels=12), Reader("fc2", "fc1")],
    ),
    "elementwise functions": (
        lambda m, x: finish(m, torch.exp(-convolve(m, x).abs() * 2 + 1).flatten(1)), 156, TAIL,
    ),
    "two activations": (
        lambda m, x: finish(m, F.elu(F.leaky_relu(convolve(m, x), 0.3)).flatten(1)), 156, TAIL,
    ),
    "pool with named arguments": (
        lambda m, x: finish(m, torch.flatten(F.avg_pool2d(input=F.relu(m.conv2(F.relu(input=m.conv1(x)))),
                                                          kernel_size=2), start_dim=1)), 156, TAIL,
    ),
    "dropout": (lambda m, x: finish(m, F.dropout(convolve(m, x), 0.9, m.training).flatten(1)), 156, TAIL),
}  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_functional_styles(style: Style, share: float) -> None:
    forward, features, tail = style
    torch.manual_seed(0)
    x, model = torch.randn(IMAGES), Net(forward, features)
    random_norms(model)
    fast = frozen(model, x)
    assert list(fast.groups) == ["conv1", "conv2", "fc1"]
    force_random_sets(fast, share, 1)
    readers = tail if tail[0].module == "conv2" else CONV + tail
    expect_exact(fast, model, readers, x)
    expect_exact(fast, model, readers, torch.randn(5, *IMAGES[1:]))


class Cat(nn.Module):
    def forward(self, *x: Tensor) -> Tensor:
        return torch.cat(x, 1)


class Sum(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Matmul(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(a.transpose(1, 2).softmax(-1), b)


class ChannelSum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True)


class ByChannelSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sum = ChannelSum()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.sum(x)


class Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], 3, 6, x.size(2), x.size(3)).transpose(1, 2).reshape(x.shape)


@dataclasses.dataclass
class Graph:
    """Layers by name, a forward, and who reads what."""

    layers: dict[str, nn.Module]
    forward: Callable[[nn.Module, Tensor], Tensor]
    shape: tuple[int, ...]
    readers: list[Reader]

    def build(self) -> nn.Module:
        model = nn.Module()
        for name, layer in self.layers.items():
            model.add_module(name, layer)
        forward = self.forward

        class Built(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                for name, layer in model.named_children():
                    self.add_module(name, layer)

            def forward(self, x: Tensor) -> Tensor:
                return forward(self, x)

        built = Built()
        random_norms(built)
        return built


def mixed(unknown: nn.Module) -> Graph:
    """conv1 -> relu -> an op that mixes channels -> conv2."""
    return Graph(
        {"conv1": nn.Conv2d(2, 18, 3, padding=1), "op": unknown, "conv2": nn.Conv2d(18, 3, 3, padding=1)},
        lambda m, x: m.conv2(m.op(F.relu(m.conv1(x)))),
        IMAGES,
        [Reader("op", "conv1")],
    )


def two_linears(**more: nn.Module) -> dict[str, nn.Module]:
    return {"a": nn.Linear(9, 16), "b": nn.Linear(9, 16), **more}


def two_readers(m: nn.Module, x: Tensor) -> Tensor:
    h = m.a(x).relu()
    return m.out(m.add(m.b(h), m.c(h * 2).relu()))


def read_by_layer_and_sum(m: nn.Module, x: Tensor) -> Tensor:
    h = m.a(x).relu()
    return m.out(m.add(h, m.b(h).relu()))


def call_twice(m: nn.Module, x: Tensor) -> Tensor:
    return m.out(torch.tanh(m.fc(torch.relu(m.fc(x)))))


def both_states(m: nn.Module, x: Tensor) -> Tensor:
    _, (h, _) = m.lstm(x)
    return m.add(h[0], h[1])


GRAPHS = {
    "softmax over channels": lambda: mixed(nn.Softmax(1)),
    "group norm": lambda: mixed(nn.GroupNorm(3, 18)),
    "layer norm over everything": lambda: mixed(nn.LayerNorm([18, 8, 6])),
    "local response norm": lambda: mixed(nn.LocalResponseNorm(3)),
    "prelu": lambda: mixed(nn.PReLU(18)),
    "grouped convolution": lambda: mixed(nn.Conv2d(18, 18, 3, padding=1, groups=3)),
    "convolution in groups": lambda: mixed(nn.Conv2d(18, 18, 3, padding=1, groups=6)),
    "circular padding": lambda: mixed(nn.Conv2d(18, 18, 3, padding=1, padding_mode="circular")),
    "transposed convolution": lambda: mixed(nn.ConvTranspose2d(18, 18, 3, padding=1)),
    "channel shuffle": lambda: mixed(nn.ChannelShuffle(3)),
    "channel sum": lambda: dataclasses.replace(
        mixed(ByChannelSum()),
        readers=[Reader("op.sum", "conv1", "conv1:sum_1"), Reader("conv2", "conv1", "conv1:conv2")],
    ),
    "linear over the width": lambda: dataclasses.replace(
        mixed(nn.Linear(6, 6)), readers=[Reader("op", "conv1", dim=1), Reader("conv2", "op", dim=3)]
    ),
    "shuffle by views": lambda: mixed(Shuffle()),
    "layer norm": lambda: Graph(
        {"a": nn.Linear(9, 16), "norm": nn.LayerNorm(16), "b": nn.Linear(16, 4)},
        lambda m, x: m.b(m.norm(F.gelu(m.a(x)))),
        (5, 9),
        [Reader("norm", "a")],
    ),
    "residual": lambda: Graph(
        two_linears(add=Sum(), out=nn.Linear(16, 4)),
        lambda m, x: m.out(m.add(torch.relu(m.a(x)), m.b(x).tanh())),
        (5, 9),
        [Reader("out", "a")],
    ),
    "units along other dimensions": lambda: Graph(
        {"a": nn.Linear(9, 5), "b": nn.Linear(9, 5), "add": Sum(), "out": nn.Linear(5, 4)},
        lambda m, x: m.out(m.add(m.a(x).relu().transpose(1, 2), m.b(x).relu())),
        (3, 5, 9),
        [Reader("add", "a", dim=1), Reader("add", "b", argument=1, dim=2)],
    ),
    "sum of two concatenations": lambda: Graph(
        {**two_linears(c=nn.Linear(9, 16), d=nn.Linear(9, 16)), "out": nn.Linear(32, 4)},
        lambda m, x: m.out(
            torch.maximum(torch.cat([m.a(x), m.b(x)], 1), torch.cat([m.c(x), m.d(x)], 1)).relu()
        ),
        (5, 9),
        [Reader("out", "a+b")],
    ),
    "sum of flattened images": lambda: Graph(
        {"a": nn.Conv2d(2, 7, 3), "b": nn.Conv2d(2, 7, 3), "out": nn.Linear(7 * 24, 3)},
        lambda m, x: m.out(m.a(x).flatten(1) * m.b(x).flatten(1).sigmoid()),
        IMAGES,
        [Reader("out", "a", pixels=24)],
    ),
    "sum of an image and its flattened part": lambda: Graph(
        {"a": nn.Conv2d(2, 7, 3), "b": nn.Conv2d(2, 7, (8, 6)), "out": nn.Conv2d(7, 3, 1)},
        lambda m, x: m.out(m.a(x) + m.b(x).reshape(x.shape[0], -1)[:, :, None, None]),
        IMAGES,
        [Reader("out", "a")],
    ),
    "states of both directions, added": lambda: Graph(
        {
            "lstm": nn.LSTM(9, 6, bidirectional=True, batch_first=True), "add": Sum(),
            "out": nn.Linear(6, 4),
        },
        lambda m, x: m.out(both_states(m, x)),
        (3, 5, 9),
        [Reader("add", "lstm.l0", "lstm.l0:add"), Reader("add", "lstm.l0_reverse", "lstm.l0_reverse:add", 1)],
    ),
    "residual of full width": lambda: Graph(
        {"a": nn.Linear(9, 9), "add": Sum(), "out": nn.Linear(9, 4)},
        lambda m, x: m.out(m.add(x, torch.relu(m.a(x)))),
        (5, 9),
        [Reader("add", "a", argument=1)],
    ),
    "concatenation": lambda: Graph(
        {"a": nn.Conv2d(2, 9, 3), "b": nn.Conv2d(2, 7, 3), "out": nn.Conv2d(16, 3, 3, padding=1)},
        lambda m, x: m.out(torch.cat([torch.relu(m.a(x)), m.b(x).tanh()], dim=1)),
        IMAGES,
        [Reader("out", "a+b")],
    ),
    "concatenation, flattened": lambda: Graph(
        {"a": nn.Conv2d(2, 9, 3), "b": nn.Conv2d(2, 7, 3), "out": nn.Linear(16 * 12, 3)},
        lambda m, x: m.out(torch.cat([m.a(x), m.b(x)], -3).relu().flatten(1)),
        (2, 2, 5, 6),
        [Reader("out", "a+b", pixels=12)],
    ),
    "concatenation with something else": lambda: Graph(
        {"a": nn.Linear(9, 7), "cat": Cat(), "out": nn.Linear(16, 3)},
        lambda m, x: m.out(m.cat(x, torch.relu(m.a(x)))),
        (5, 9),
        [Reader("cat", "a", argument=1)],
    ),
    "attention": lambda: Graph(
        {"a": nn.Linear(9, 6), "b": nn.Linear(9, 12), "mm": Matmul(), "out": nn.Linear(12, 4)},
        lambda m, x: m.out(m.mm(m.a(x), m.b(x).relu())),
        (3, 5, 9),
        [Reader("mm", "a", dim=2), Reader("mm", "b", argument=1, dim=2)],
    ),
    "recurrent layer without a kernel": lambda: Graph(
        {"a": nn.Linear(9, 12), "gru": nn.GRU(12, 5, batch_first=True), "out": nn.Linear(5, 4)},
        lambda m, x: m.out(m.gru(m.a(x).relu())[0]),
        (3, 5, 9),
        [Reader("gru", "a", dim=2)],
    ),
    "depthwise": lambda: Graph(
        {
            "a": nn.Conv2d(2, 9, 3), "dw": nn.Conv2d(9, 9, 3, padding=1, stride=2, groups=9, bias=False),
            "norm": nn.BatchNorm2d(9), "out": nn.Conv2d(9, 3, 1),
        },
        lambda m, x: m.out(torch.relu(m.norm(m.dw(torch.relu(m.a(x)))))),
        IMAGES,
        [Reader("out", "a")],
    ),
    "depthwise of everything": lambda: Graph(
        {"dw": nn.Conv2d(5, 5, 3, padding=1, groups=5), "out": nn.Conv2d(5, 3, 3, padding=1)},
        lambda m, x: m.out(torch.relu(m.dw(x))),
        (2, 5, 6, 6),
        [Reader("out", "dw")],
    ),
    "groups": lambda: Graph(
        {
            "a": nn.Conv2d(2, 12, 3), "mid": nn.Conv2d(12, 18, 3, groups=3), "b": nn.Conv2d(18, 9, 1),
            "out": nn.Conv2d(9, 3, 1),
        },
        lambda m, x: m.out(torch.relu(m.b(torch.relu(m.mid(torch.relu(m.a(x))))))),
        IMAGES,
        [Reader("mid", "a"), Reader("out", "b")],
    ),
    "convolutions over sequences": lambda: Graph(
        {
            "a": nn.Conv1d(3, 18, 3, padding="same"), "b": nn.Conv1d(18, 20, 5, 2, padding=2),
            "dw": nn.Conv1d(20, 20, 3, groups=20), "pool": nn.MaxPool1d(2), "out": nn.Linear(60, 3),
        },
        lambda m, x: m.out(m.pool(torch.tanh(m.dw(torch.relu(m.b(m.a(x).relu()))))).flatten(1)),
        (2, 3, 15),
        [Reader("b", "a"), Reader("out", "b", pixels=3)],
    ),
    "sequences": lambda: Graph(
        {"a": nn.Linear(9, 12), "out": nn.Linear(12, 4)},
        lambda m, x: m.out(m.a(x).relu().transpose(1, 2)[:, :, 1:].amax(2).unsqueeze(1)),
        (3, 5, 9),
        [Reader("out", "a")],
    ),
    "two readers": lambda: Graph(
        {
            "a": nn.Linear(9, 16), "b": nn.Linear(16, 7), "c": nn.Linear(16, 7), "add": Sum(),
            "out": nn.Linear(7, 3),
        },
        two_readers,
        (5, 9),
        [
            Reader("b", "a", "a:b"), Reader("c", "a", "a:c"), Reader("out", "b"),
        ],
    ),
    "a layer and a sum": lambda: Graph(
        {"a": nn.Linear(9, 16), "b": nn.Linear(16, 16), "add": Sum(), "out": nn.Linear(16, 3)},
        read_by_layer_and_sum,
        (5, 9),
        [Reader("b", "a", "a:b"), Reader("out", "a", "a:out")],
    ),
    "a module used twice": lambda: Graph(
        {"fc": nn.Linear(9, 9), "out": nn.Linear(9, 4)},
        call_twice,
        (5, 9),
        [Reader("fc", "fc", call=1), Reader("out", "fc@2")],
    ),
    "a module used twice, once dense": lambda: Graph(
        {"conv": nn.Conv2d(2, 2, 3, padding=1), "soft": nn.Softmax(1), "out": nn.Conv2d(2, 3, 1)},
        lambda m, x: m.out(m.conv(m.soft(torch.relu(m.conv(x)))[0]).unsqueeze(0)),
        (1, 2, 4, 4),
        [Reader("soft", "conv")],
    ),
    "a norm used twice, once at full width": lambda: Graph(
        {
            "a": nn.Linear(9, 16), "norm": nn.BatchNorm1d(16), "soft": nn.Softmax(-1),
            "out": nn.Linear(16, 4),
        },
        lambda m, x: m.out(m.norm(m.soft(m.norm(torch.relu(m.a(x)))))),
        (5, 9),
        [Reader("soft", "a", dim=1)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("make", GRAPHS.values(), ids=GRAPHS)
def test_graphs(make: Callable[[], Graph], share: float) -> None:
    torch.manual_seed(0)
    graph = make()
    model, x = graph.build(), torch.randn(graph.shape)
    fast = frozen(model, x)
    assert set(fast.groups) == {name for reader in graph.readers for name in reader.group.split("+")}
    steps = {key for key in fast.constants() if key.endswith(":recurrent")}
    assert set(fast.constants()) - steps == {reader.key or reader.group for reader in graph.readers}
    force_random_sets(fast, share, 4)
    expect_exact(fast, model, graph.readers, x)


class AddOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1.0


def changed_in_place(m: nn.Module, x: Tensor) -> Tensor:
    h = m.a(x)
    F.relu(h, inplace=True)
    h.add_(1.0)
    return m.b(h)


def test_in_place_statements_count() -> None:
    torch.manual_seed(0)
    layers = {"a": nn.Linear(9, 16), "op": AddOne(), "b": nn.Linear(16, 4)}
    model, x = Graph(layers, changed_in_place, (5, 9), []).build(), torch.randn(5, 9)
    same = Graph(layers, lambda m, x: m.b(m.op(F.relu(m.a(x)))), (5, 9), []).build()
    torch.testing.assert_close(dynprune.accelerate(model, x)(x), model(x))
    fast = frozen(model, x)
    force_random_sets(fast, 0.5, 4)
    expect_exact(fast, same, [Reader("op", "a")], x)


class Doubling(nn.Module):
    """A layer with a hook, which the kernels would skip."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(9, 16), nn.Linear(16, 4)
        self.a.register_forward_hook(lambda module, args, output: output * 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def test_a_layer_with_hooks_stays_dense() -> None:
    torch.manual_seed(0)
    model, x = Doubling().eval(), torch.randn(5, 9)
    fast = dynprune.accelerate(model, x)
    torch.testing.assert_close(fast(x), model(x))
    assert fast.groups == {}


LOGITS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 5)),
    "activation": lambda: nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 5), nn.Sigmoid()),
    "log softmax": lambda: nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 5), nn.LogSoftmax(1)),
    "flatten and scale": lambda: nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 5), nn.Flatten()),
    "layer norm": lambda: nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 5), nn.LayerNorm(5)),
}


@pytest.mark.parametrize("make", LOGITS.values(), ids=LOGITS)
def test_logits_are_never_pruned(make: Callable[[], nn.Module]) -> None:
    fast = dynprune.accelerate(make(), torch.randn(4, 9))
    assert list(fast.groups) == ["0"]
    assert "2" in fast.explain() and "never pruned" in fast.explain()


def test_a_hidden_layer_that_is_an_output_too_is_never_pruned() -> None:
    graph = Graph(two_linears(), lambda m, x: (m.a(x), m.b(torch.relu(x))), (5, 9), [])
    assert dynprune.accelerate(graph.build(), torch.randn(5, 9)).groups == {}


def test_explain_names_what_reads_at_full_width() -> None:
    graph = mixed(nn.Softmax(1))
    text = dynprune.accelerate(graph.build(), torch.randn(IMAGES)).explain()
    assert "reads conv1 at full width: call_module op" in text


REASONS = {
    "units along other dimensions": "call_function add, because the units of its operands do not correspond",
    "states of both directions, added": "call_function add, because the units of an LSTM flip on their own",
    "residual of full width": "call_function add, because its other operand is full width",
    "concatenation with something else": "call_function cat, because not all of its parts are compact",
}


@pytest.mark.parametrize("name", REASONS)
def test_explain_says_why_operands_are_read_at_full_width(name: str) -> None:
    graph = GRAPHS[name]()
    assert REASONS[name] in dynprune.accelerate(graph.build(), torch.randn(graph.shape)).explain()


def test_two_models_in_one_process_do_not_meet() -> None:
    torch.manual_seed(0)
    first, second = (nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 5)) for _ in range(2))
    x = torch.randn(4, 9)
    fasts = [frozen(model, x) for model in (first, second)]
    force_random_sets(fasts[0], 0.5, 1)
    for fast, model in zip(fasts, (first, second), strict=True):
        expect_exact(fast, model, [Reader("2", "0")], x)
