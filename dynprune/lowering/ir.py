"""What the lowering finds out: call sites, groups of units, and where pruned units are read."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dynprune.lowering.recurrent import LSTMLayer, trim_steps
from dynprune.lowering.tables import Activation
from dynprune.ops.devices import tf32_allowed
from dynprune.ops.reference import wide


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the units of one group, or of several one behind the other, lie in a tensor.

    A compact image is ``[batch, active, height, width]``, channels last; flattened it is
    ``[batch, spatial * active]`` with the units fastest, which is the same memory. At full width
    the flattened order is PyTorch's: the pixels fastest.
    """

    groups: tuple[str, ...]
    dim: int  # dimension of the units
    spatial: int = 1  # pixels of a flattened image

    @property
    def name(self) -> str:
        """The groups, in one word."""
        return "+".join(self.groups)

    def join(self, of_group: Mapping[str, Tensor]) -> Tensor:
        """One tensor ``[units]`` from those of the groups."""
        parts = [of_group[name] for name in self.groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclasses.dataclass
class Read:
    """A read point: where a layer, or an op the lowering does not know, reads units of groups."""

    name: str  # key in constants()
    layout: Layout
    consumer: int  # call site that reads: a layer, or the expansion before an unknown op
    same_as_usage: bool  # nothing stands between the units' activation and this read


@dataclasses.dataclass
class LayerSite:
    """A call of a linear layer or a convolution, with what is fused into it.

    A convolution over sequences is one over images of height 1.
    """

    name: str
    module: nn.Linear | nn.Conv2d
    activation: Activation
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None = None
    read: int | None = None  # read point of the input, if the input is compact
    group: str | None = None  # group of the output units, if they may be pruned
    follows: Layout | None = None  # of input and output alike: a depthwise convolution of compact channels
    sequence: bool = False  # [batch, channels, length] in and out
    dtype: torch.dtype | None = None  # what it is computed in; None: as its weight is

    @property
    def units(self) -> int:
        """Output units."""
        return int(self.module.weight.shape[0])

    @property
    def weight(self) -> Tensor:
        """The weight, in the dtype it is computed in."""
        weight = self.module.weight.detach()
        return weight if self.dtype is None else weight.to(self.dtype)

    def fold(self) -> tuple[Tensor | None, Tensor]:
        """Scale ``[units]`` (None: one) of the weight's rows, and the bias ``[units]``, norm folded in.

        Of a layer in bfloat16 or float16 both are float32.
        """
        bias = self.module.bias
        b = wide(self.module.weight.new_zeros(self.units) if bias is None else bias.detach())
        if self.norm is None:
            return None, b
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = torch.rsqrt(wide(norm.running_var) + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight.detach()
        b = (b - norm.running_mean) * scale
        if norm.bias is not None:
            b = b + norm.bias.detach()
        return scale, b


@dataclasses.dataclass
class LSTMSite:
    """One layer of an LSTM, with the read points that its own steps are; no group where never pruned."""

    name: str
    layer: LSTMLayer
    read: int | None = None  # read point of the input, if the input is compact
    groups: tuple[str, ...] = ()  # of each direction
    recurrent: tuple[int, ...] = ()  # read points of each direction


@dataclasses.dataclass
class NormSite:
    """A batch norm that stands alone: one scale and shift per unit."""

    name: str
    module: nn.BatchNorm1d | nn.BatchNorm2d
    layout: Layout


@dataclasses.dataclass
class UsageSite:
    """Behind an activation that could not be fused: the usage of a group is taken from its values."""

    name: str
    layout: Layout


@dataclasses.dataclass
class ExpandSite:
    """The expansion to full width before an op the lowering does not know."""

    name: str
    read: int


Site = LayerSite | LSTMSite | NormSite | UsageSite | ExpandSite


@dataclasses.dataclass
class Group:
    """Units that flip together, one mask for all of them."""

    name: str
    units: int
    layers: list[str]  # that compute them; for an LSTM, a layer and direction
    usage_site: int | None = None  # sees them after their activation; None: the read points do
    reads: list[int] = dataclasses.field(default_factory=list)  # read points, once each


@dataclasses.dataclass
class Note:
    """A line of ``explain()``."""

    name: str
    what: str


@dataclasses.dataclass
class Program:
    """A lowered model: ``module(plan, record, *inputs)`` runs it on a plan's entries."""

    module: torch.fx.GraphModule
    traced: torch.fx.GraphModule
    sites: list[Site]
    groups: dict[str, Group]
    reads: list[Read]
    layouts: dict[torch.fx.Node, Layout]  # of the traced graph's values
    site_of: dict[torch.fx.Node, int]  # first node of a site in the traced graph
    fused: dict[torch.fx.Node, torch.fx.Node]  # node -> the layer it was fused into
    expanded: dict[torch.fx.Node, dict[torch.fx.Node, int]]  # reader -> value -> its ExpandSite
    notes: list[Note]

    @property
    def device(self) -> torch.device:
        """Where the weights lie; the host's where there are none."""
        tensors = itertools.chain(self.traced.parameters(), self.traced.buffers())
        return next((t.device for t in tensors), torch.device("cpu"))

    @property
    def takes_tf32(self) -> bool:
        """Whether products of its layers may be taken in tf32, on a GPU, where they are of float32."""
        ops = set()
        for site in self.sites:
            if isinstance(site, LayerSite):
                ops.add("conv2d" if isinstance(site.module, nn.Conv2d) else "linear")
            elif isinstance(site, LSTMSite):
                ops.add("lstm")
        return self.device.type == "cuda" and any(map(tf32_allowed, ops))

    @property
    def has_lengths(self) -> bool:
        """Whether sequences have lengths of their own, on which shapes depend."""
        return any(node.target is trim_steps for node in self.traced.graph.nodes)

    @property
    def usage_reads(self) -> frozenset[int]:
        """Read points from which groups of several layers, which have no one activation, take their usage."""
        several = {name for name, group in self.groups.items() if group.usage_site is None}
        return frozenset(i for i, read in enumerate(self.reads) if several & {*read.layout.groups})
