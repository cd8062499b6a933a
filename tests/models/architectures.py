"""Small models of the architectures that are lowered, with the groups they should have and who reads them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.masked import Reader
from tests.models.networks import random_norms


@dataclasses.dataclass
class Architecture:
    """A model and what is expected of it.

    Attributes:
        groups: name -> the layers that flip together.
        reads: module -> the group it reads, several joined by "+"; ``module@2`` is its second call.
        pixels: of the readers of flattened images.
        others: readers that are no layers, and those of an LSTM's units, with their keys.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    groups: dict[str, list[str]]
    reads: dict[str, str]
    pixels: dict[str, int] = dataclasses.field(default_factory=dict)
    others: list[Reader] = dataclasses.field(default_factory=list)

    def readers(self) -> list[Reader]:
        """The read points; one is keyed by its reader where its groups are read elsewhere too."""
        groups = [*self.reads.values(), *(reader.group for reader in self.others)]
        counts = collections.Counter(name for group in groups for name in {*group.split("+")})
        result = [*self.others]
        for reader, group in self.reads.items():
            module, _, call = reader.partition("@")
            alone = all(counts[name] == 1 for name in group.split("+"))
            result.append(
                Reader(
                    module,
                    group,
                    None if alone else f"{group}:{reader}",
                    pixels=self.pixels.get(reader, 1),
                    call=int(call or 1) - 1,
                )
            )
        return result


class ConvNorm(nn.Sequential):
    def __init__(self, channels: int, units: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(channels, units, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(units))


class Basic(nn.Module):
    def __init__(self, channels: int, units: int, stride: int = 1, down: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b = ConvNorm(channels, units, 3, stride), ConvNorm(units, units, 3)
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.down is None else self.down(x)
        out = self.b(F.relu(self.a(x)))
        out += identity
        return F.relu(out)


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, units: int, stride: int = 1, down: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            ConvNorm(channels, width),
            ConvNorm(width, width, 3, stride),
            ConvNorm(width, units),
        )
        self.down = ConvNorm(channels, units, 1, stride) if down else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.c(self.relu(self.b(self.relu(self.a(x))))) + self.down(x))


class Head(nn.Sequential):
    def __init__(self, channels: int, units: int = 5) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, units))


IMAGES = (2, 3, 9, 8)


def basic() -> Architecture:
    model = nn.Sequential(ConvNorm(3, 18, 3), nn.ReLU(), Basic(18, 18), Basic(18, 18), Head(18))
    return Architecture(
        model,
        (torch.randn(IMAGES),),
        {"0.0": ["0.0", "2.b.0", "3.b.0"], "2.a.0": ["2.a.0"], "3.a.0": ["3.a.0"]},
        {"2.a.0": "0.0", "2.b.0": "2.a.0", "3.a.0": "0.0", "3.b.0": "3.a.0", "4.2": "0.0"},
    )


def projection() -> Architecture:
    model = nn.Sequential(
        ConvNorm(3, 10, 3), nn.ReLU(), Basic(10, 17, 2, ConvNorm(10, 17, 1, 2)), Basic(17, 17), Head(17)
    )
    return Architecture(
        model,
        (torch.randn(IMAGES),),
        {"0.0": ["0.0"], "2.a.0": ["2.a.0"], "2.down.0": ["2.down.0", "2.b.0", "3.b.0"], "3.a.0": ["3.a.0"]},
        {
            "2.a.0": "0.0", "2.down.0": "0.0", "2.b.0": "2.a.0", "3.a.0": "2.down.0", "3.b.0": "3.a.0",
            "4.2": "2.down.0",
        },
    )  # fmt: skip


def bottleneck() -> Architecture:
    model = nn.Sequential(
        ConvNorm(3, 8, 3), nn.ReLU(), Bottleneck(8, 5, 20, 2, down=True), Bottleneck(20, 6, 20), Head(20)
    )
    return Architecture(
        model,
        (torch.randn(IMAGES),),
        {
            "0.0": ["0.0"], "2.a.0": ["2.a.0"], "2.b.0": ["2.b.0"], "2.c.0": ["2.c.0", "2.down.0", "3.c.0"],
            "3.a.0": ["3.a.0"], "3.b.0": ["3.b.0"],
        },
        {
            "2.a.0": "0.0", "2.down.0": "0.0", "2.b.0": "2.a.0", "2.c.0": "2.b.0", "3.a.0": "2.c.0",
            "3.b.0": "3.a.0", "3.c.0": "3.b.0", "4.2": "2.c.0",
        },
    )  # fmt: skip


def resnet() -> Architecture:
    model = nn.Sequential(
        ConvNorm(3, 16, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Basic(16, 16), Basic(16, 16),
        Basic(16, 24, 2, ConvNorm(16, 24, 1, 2)), Basic(24, 24), Head(24, 10),
    )  # fmt: skip
    groups = {"0.0": ["0.0", "3.b.0", "4.b.0"], "5.down.0": ["5.down.0", "5.b.0", "6.b.0"]}
    reads = {"3.a.0": "0.0", "4.a.0": "0.0", "5.a.0": "0.0", "5.down.0": "0.0", "6.a.0": "5.down.0"}
    for block in "3456":
        groups[f"{block}.a.0"] = [f"{block}.a.0"]
        reads[f"{block}.b.0"] = f"{block}.a.0"
    return Architecture(model, (torch.randn(2, 3, 32, 32),), groups, {**reads, "7.2": "5.down.0"})


class PreActivation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.a = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.b = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.relu(self.norm2(self.a(F.relu(self.norm1(x))))))


def pre_activation() -> Architecture:
    tail = [nn.BatchNorm2d(14), nn.ReLU(), Head(14)]
    model = nn.Sequential(nn.Conv2d(3, 14, 3), PreActivation(14), PreActivation(14), *tail)
    return Architecture(
        model,
        (torch.randn(IMAGES),),
        {"0": ["0", "1.b", "2.b"], "1.a": ["1.a"], "2.a": ["2.a"]},
        {"1.a": "0", "1.b": "1.a", "2.a": "0", "2.b": "2.a", "5.2": "0"},
    )


class Inception(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = ConvNorm(channels, 6)
        self.three = nn.Sequential(ConvNorm(channels, 5), nn.ReLU(), ConvNorm(5, 7, 3))
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvNorm(channels, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x)), F.relu(self.pool(x))], 1)


def inception() -> Architecture:
    model = nn.Sequential(nn.Conv2d(3, 11, 3), nn.ReLU(), Inception(11), Inception(17), Head(17))
    reads = {"2.one.0": "0", "2.three.0.0": "0", "2.three.2.0": "2.three.0.0", "2.pool.1.0": "0"}
    first, second = ("+".join(f"{i}.{part}.0" for part in ("one", "three.2", "pool.1")) for i in (2, 3))
    reads |= {"3.one.0": first, "3.three.0.0": first, "3.pool.1.0": first, "3.three.2.0": "3.three.0.0"}
    names = {name for group in [*reads.values(), second] for name in group.split("+")}
    return Architecture(
        model, (torch.randn(IMAGES),), {name: [name] for name in names}, {**reads, "4.2": second}
    )


class DenseBlock(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        widths = [channels, channels + growth, channels + 2 * growth]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return x


def dense_block() -> Architecture:
    model = nn.Sequential(nn.Conv2d(3, 9, 3), DenseBlock(9, 5), nn.BatchNorm2d(24), nn.ReLU(), Head(24))
    parts = ["0", "1.convs.0", "1.convs.1", "1.convs.2"]
    reads = {f"1.convs.{i}": "+".join(parts[: i + 1]) for i in range(3)}
    return Architecture(
        model, (torch.randn(IMAGES),), {name: [name] for name in parts}, {**reads, "4.2": "+".join(parts)}
    )


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 9, 3, padding=1), nn.Conv2d(9, 13, 3, padding=1)
        self.deep, self.join = nn.Conv2d(13, 11, 3, padding=1), nn.Conv2d(20, 10, 3, padding=1)
        self.out = nn.Conv2d(10, 2, 1)

    def grow(self, deep: Tensor, skip: Tensor) -> Tensor:
        up = F.interpolate(deep, size=skip.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([skip, up], 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.enter(x))
        deep = F.relu(self.deep(F.relu(self.down(F.max_pool2d(skip, 2)))))
        return self.out(F.relu(self.join(self.grow(deep, skip))))


class TransposedUNet(UNet):
    """Its transposed convolution has no kernel: what is concatenated with it is read at full width."""

    def __init__(self) -> None:
        super().__init__()
        self.back, self.cat = nn.ConvTranspose2d(11, 11, 2, 2), Joined()

    def grow(self, deep: Tensor, skip: Tensor) -> Tensor:
        grown: Tensor = self.cat(skip, self.back(deep))
        return grown


class Joined(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], 1)


def transposed() -> Architecture:
    return Architecture(
        TransposedUNet(),
        (torch.randn(2, 3, 8, 6),),
        {name: [name] for name in ("enter", "down", "deep", "join")},
        {"down": "enter", "deep": "down", "out": "join"},
        others=[Reader("back", "deep"), Reader("cat", "enter", "enter:cat")],
    )


def unet() -> Architecture:
    return Architecture(
        UNet(),
        (torch.randn(2, 3, 9, 7),),
        {name: [name] for name in ("enter", "down", "deep", "join")},
        {"down": "enter", "deep": "down", "join": "enter+deep", "out": "join"},
    )


class Inverted(nn.Module):
    def __init__(self, channels: int, width: int, units: int, stride: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.expand, self.depthwise = ConvNorm(channels, width), ConvNorm(width, width, 3, stride, width)
        self.project = ConvNorm(width, units)
        self.act1, self.act2 = act(), act()
        self.adds = stride == 1 and channels == units

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.act2(self.depthwise(self.act1(self.expand(x)))))
        return x + y if self.adds else y


def mobilenet() -> Architecture:
    model = nn.Sequential(
        ConvNorm(3, 8, 3, 2), nn.ReLU6(), Inverted(8, 18, 10, 1, nn.ReLU6),
        Inverted(10, 20, 10, 1, nn.Hardswish),
        Inverted(10, 22, 10, 1, nn.SiLU), ConvNorm(10, 30), nn.Hardswish(), Head(30),
    )  # fmt: skip
    shared = ["2.project.0", "3.project.0", "4.project.0"]
    names = ["0.0", "2.expand.0", "3.expand.0", "4.expand.0", "5.0"]
    return Architecture(
        model,
        (torch.randn(2, 3, 13, 12),),
        {shared[0]: shared, **{name: [name] for name in names}},
        {
            "2.expand.0": "0.0", "2.project.0": "2.expand.0", "3.expand.0": shared[0],
            "3.project.0": "3.expand.0", "4.expand.0": shared[0], "4.project.0": "4.expand.0",
            "5.0": shared[0], "7.2": "5.0",
        },
    )  # fmt: skip


class Squeeze(nn.Module):
    """Squeeze and excitation by convolutions, as in MobileNetV3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


class SqueezeLinear(nn.Module):
    """Squeeze and excitation by linear layers, as it was published."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(channels, 4), nn.ReLU(), nn.Linear(4, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        gate = self.fc(self.pool(x).view(b, c)).view(b, c, 1, 1)
        return x * gate.expand_as(x)


class SqueezeBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = ConvNorm(channels, 12, 3), ConvNorm(12, channels, 3)
        self.inner, self.outer = Squeeze(12), SqueezeLinear(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.outer(self.b(self.inner(F.silu(self.a(x))))) + x)


def squeeze() -> Architecture:
    model = nn.Sequential(ConvNorm(3, 15, 3), nn.ReLU(), SqueezeBlock(15), Head(15))
    return Architecture(
        model,
        (torch.randn(IMAGES),),
        {
            "0.0": ["0.0", "2.b.0", "2.outer.fc.2"], "2.a.0": ["2.a.0", "2.inner.expand"],
            "2.inner.reduce": ["2.inner.reduce"], "2.outer.fc.0": ["2.outer.fc.0"],
        },
        {
            "2.a.0": "0.0", "2.inner.reduce": "2.a.0", "2.inner.expand": "2.inner.reduce", "2.b.0": "2.a.0",
            "2.outer.fc.0": "0.0", "2.outer.fc.2": "2.outer.fc.0", "3.2": "0.0",
        },
    )  # fmt: skip


class Twice(nn.Module):
    """One residual block called twice: both calls of its last layer are in the group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = ConvNorm(3, 12, 3), Basic(12, 12), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.block(F.relu(self.stem(x)))))


def shared_block() -> Architecture:
    return Architecture(
        Twice(),
        (torch.randn(IMAGES),),
        {
            "stem.0": ["stem.0", "block.b.0", "block.b.0@2"], "block.a.0": ["block.a.0"],
            "block.a.0@2": ["block.a.0@2"],
        },
        {
            "block.a.0": "stem.0", "block.b.0": "block.a.0", "block.a.0@2": "stem.0",
            "block.b.0@2": "block.a.0@2", "head.2": "stem.0",
        },
    )  # fmt: skip


class TwoInputs(nn.Module):
    """A sum and a concatenation of what an image and a vector give."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.image = nn.Conv2d(3, 9, 3, 2), nn.Linear(9, 16)
        self.vector, self.both, self.out = nn.Linear(7, 16), nn.Linear(25, 11), nn.Linear(11, 4)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        pooled = F.relu(self.conv(image)).mean((2, 3))
        summed = torch.tanh(self.image(pooled) + self.vector(vector))
        return self.out(F.gelu(self.both(torch.cat([pooled, summed], 1))))


def two_inputs() -> Architecture:
    return Architecture(
        TwoInputs(),
        (torch.randn(IMAGES), torch.randn(2, 7)),
        {"conv": ["conv"], "image": ["image", "vector"], "both": ["both"]},
        {"image": "conv", "both": "conv+image", "out": "both"},
    )


class Sum(nn.Module):
    """A residual sum that the reference can look into."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class TwoOutputs(nn.Module):
    """Logits, and a map from the middle, which is never pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle = ConvNorm(3, 12, 3), Basic(12, 12)
        self.last, self.sum = nn.Conv2d(12, 12, 3, padding=1), Sum()
        self.head, self.second = Head(12), Head(12, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        seen = self.middle(F.relu(self.stem(x)))
        last = self.sum(self.last(seen), seen)
        return {"logits": self.head(last), "seen": seen, "more": self.second(last)}


def two_outputs() -> Architecture:
    return Architecture(
        TwoOutputs(),
        (torch.randn(IMAGES),),
        {"middle.a.0": ["middle.a.0"], "last": ["last"]},
        {"middle.b.0": "middle.a.0"},
        others=[Reader("sum", "last")],
    )


class Attend(nn.Module):
    def forward(self, qkv: Tensor) -> Tensor:
        b, t, c = qkv.shape
        q, k, v = qkv.reshape(b, t, 3, 2, c // 6).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c // 3)


class Block(nn.Module):
    """A transformer block, attention written out."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.attend, self.proj = nn.Linear(width, 3 * width), Attend(), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.sum1, self.sum2 = Sum(), Sum()

    def forward(self, x: Tensor) -> Tensor:
        x = self.sum1(x, self.proj(self.attend(self.qkv(self.norm1(x)))))
        return self.sum2(x, self.fc2(F.gelu(self.fc1(self.norm2(x)))))


def transformer() -> Architecture:
    model = nn.Sequential(nn.Linear(7, 12), Block(12, 33), Block(12, 40), nn.LayerNorm(12), nn.Linear(12, 3))
    names = ["0", *(f"{i}.{name}" for i in (1, 2) for name in ("qkv", "proj", "fc1", "fc2"))]
    others = [Reader("1.norm1", "0", "0:_1_norm1", dim=2), Reader("1.sum1", "0", "0:add", dim=2)]
    for i in (1, 2):
        others += [
            Reader(f"{i}.attend", f"{i}.qkv", dim=2),
            Reader(f"{i}.sum1", f"{i}.proj", argument=1, dim=2),
            Reader(f"{i}.sum2", f"{i}.fc2", argument=1, dim=2),
        ]
    return Architecture(
        model,
        (torch.randn(2, 5, 7),),
        {name: [name] for name in names},
        {"1.fc2": "1.fc1", "2.fc2": "2.fc1"},
        others=others,
    )


class Encoded(nn.Module):
    """PyTorch's own encoder and decoder layers, with masks; attention stays dense."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 2, 30, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoderLayer(12, 3, 25, batch_first=True, norm_first=True)
        self.out = nn.Linear(12, 3)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(6))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        memory = self.encoder(x, src_key_padding_mask=padding)
        return self.out(self.decoder(x.flip(1), memory, self.mask, memory_key_padding_mask=padding).mean(1))


def encoder() -> Architecture:
    layers = ["encoder.layers.0", "encoder.layers.1", "decoder"]
    names = [f"{layer}.{part}" for layer in layers for part in ("linear1", "linear2")]
    # Behind linear2 the layers have a dropout, then the sum that reads it.
    dropouts = [f"{layer}.dropout{3 if layer == 'decoder' else 2}" for layer in layers]
    others = [
        Reader(dropout, f"{layer}.linear2", dim=2) for layer, dropout in zip(layers, dropouts, strict=True)
    ]
    return Architecture(
        Encoded(),
        (torch.randn(2, 6, 12), torch.arange(6) >= torch.tensor([[6], [4]])),
        {name: [name] for name in names},
        {f"{layer}.linear2": f"{layer}.linear1" for layer in layers},
        others=others,
    )


class Tagger(nn.Module):
    """A stacked bidirectional LSTM with two linear heads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 9)
        self.lstm = nn.LSTM(9, 11, num_layers=2, bidirectional=True, batch_first=True)
        self.hidden, self.tags, self.whole = nn.Linear(22, 14), nn.Linear(14, 4), nn.Linear(22, 3)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = self.lstm(self.embed(tokens))
        return self.tags(F.relu(self.hidden(y))), self.whole(y.mean(1))


def tagger() -> Architecture:
    last = "lstm.l1+lstm.l1_reverse"
    return Architecture(
        Tagger(),
        (torch.randint(0, 20, (3, 6)),),
        {
            **{f"lstm.l{i}{way}": [f"lstm.l{i}{way}"] for i in (0, 1) for way in ("", "_reverse")},
            "hidden": ["hidden"],
        },
        {"tags": "hidden"},
        others=[Reader("hidden", last, f"{last}:hidden"), Reader("whole", last, f"{last}:whole")],
    )


class EncoderDecoder(nn.Module):
    """A decoder that starts from the states of an encoder, and one that does so through a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 9)
        self.encoder = nn.LSTM(9, 10, num_layers=2, batch_first=True)
        self.decoder = nn.LSTM(9, 10, num_layers=2, batch_first=True)
        self.bridge = nn.Linear(10, 13)
        self.refine = nn.LSTM(10, 13, batch_first=True)
        self.out = nn.Linear(13, 4)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        _, states = self.encoder(self.embed(source))
        y, (h, _) = self.decoder(self.embed(target), states)
        start = F.relu(self.bridge(h[-1])).unsqueeze(0)
        return self.out(self.refine(y, (start, start.tanh()))[0])


def encoder_decoder() -> Architecture:
    lstms = [f"{name}.l{layer}" for name in ("encoder", "decoder") for layer in (0, 1)]
    return Architecture(
        EncoderDecoder(),
        (torch.randint(0, 20, (3, 6)), torch.randint(0, 20, (3, 4))),
        {name: [name] for name in (*lstms, "bridge", "refine.l0")},
        {},
        others=[
            Reader("bridge", "decoder.l1", "decoder.l1:bridge"),
            Reader("refine", "decoder.l1", "decoder.l1:refine.l0", dim=2),
            Reader("out", "refine.l0", "refine.l0:out"),
        ],
    )


def padded_pooling() -> Architecture:
    """Average pooling that counts the padding, and some that does not, before a padded convolution."""
    model = nn.Sequential(
        nn.Conv2d(3, 13, 3), nn.Sigmoid(), nn.AvgPool2d(3, 2, 1), nn.Conv2d(13, 17, 3, padding=1),
        nn.Softplus(), nn.AvgPool2d(2, 1, 1, count_include_pad=False),
        nn.Conv2d(17, 9, 3, 2, padding=2), nn.Flatten(),
        nn.Linear(144, 6), nn.Softplus(), nn.Linear(6, 3),
    )  # fmt: skip
    return Architecture(
        model,
        (torch.randn(2, 3, 12, 9),),
        {name: [name] for name in ("0", "3", "6", "8")},
        {"3": "0", "6": "3", "8": "6", "10": "8"},
        {"8": 16},
    )


class PooledShortcut(nn.Module):
    """Blocks whose shortcut is pooled: before a projection, and on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = ConvNorm(3, 10, 3), ConvNorm(10, 16, 3, 2), ConvNorm(10, 16)
        self.c, self.head = ConvNorm(16, 16, 3, 2), nn.Linear(16 * 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.stem(x))
        x = F.softplus(self.a(x) + self.b(F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)))
        x = torch.tanh(self.c(x) + F.avg_pool2d(x, 3, 2, 1))
        return self.head(x.flatten(1))


def pooled_shortcut() -> Architecture:
    return Architecture(
        PooledShortcut(),
        (torch.randn(2, 3, 9, 8),),
        {"stem.0": ["stem.0"], "a.0": ["a.0", "b.0", "c.0"]},
        {"a.0": "stem.0", "b.0": "stem.0", "c.0": "a.0", "head": "a.0"},
        {"head": 6},
    )


class Repeated(nn.Module):
    """One group twice in a concatenation, at two places of its residual stream, with another between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(9, 14), nn.Linear(14, 14), nn.Linear(9, 5)
        self.join, self.out = nn.Linear(33, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.a(x))
        second = F.gelu(first + self.b(first))
        return self.out(F.relu(self.join(torch.cat([first, torch.sigmoid(self.c(x)), second], -1))))


def repeated() -> Architecture:
    return Architecture(
        Repeated(),
        (torch.randn(4, 9),),
        {"a": ["a", "b"], "c": ["c"], "join": ["join"]},
        {"b": "a", "join": "a+c+a", "out": "join"},
    )


class Product(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b


class Spatial(nn.Module):
    """Attention over pixels: one value for all channels; and a hand-written swish."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.out = nn.Conv2d(3, 15, 3), nn.Conv2d(15, 1, 3, padding=1), Head(15)
        self.times = Product()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x * torch.sigmoid(x)
        return self.out(self.times(torch.sigmoid(self.gate(x)), x))


def spatial() -> Architecture:
    return Architecture(
        Spatial(),
        (torch.randn(IMAGES),),
        {"conv": ["conv"], "gate": ["gate"]},
        {"gate": "conv", "out.2": "conv"},
        others=[Reader("times", "gate")],
    )


ARCHITECTURES: dict[str, Callable[[], Architecture]] = {
    "residual sums of identities": basic,
    "residual sums of a projection": projection,
    "bottlenecks": bottleneck,
    "ResNet-18, small": resnet,
    "pre-activation": pre_activation,
    "inception": inception,
    "dense block": dense_block,
    "U-Net": unet,
    "U-Net, transposed convolution": transposed,
    "inverted residuals": mobilenet,
    "squeeze and excitation": squeeze,
    "a block used twice": shared_block,
    "two inputs": two_inputs,
    "three outputs, one from the middle": two_outputs,
    "transformer": transformer,
    "PyTorch's encoder and decoder": encoder,
    "stacked LSTM with two heads": tagger,
    "LSTMs that start from the states of others": encoder_decoder,
    "padded average pooling": padded_pooling,
    "pooled shortcuts": pooled_shortcut,
    "a group twice in a concatenation": repeated,
    "a gate over pixels": spatial,
}


def build(name: str) -> Architecture:
    """The architecture, with norms far from the identity."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES[name]()
    random_norms(architecture.model)
    return architecture
