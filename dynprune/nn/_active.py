"""What the layers share: an active set, and an entry that follows the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.lowering.ir import LayerSite, Layout
from dynprune.lowering.tables import Activation
from dynprune.ops.devices import upload
from dynprune.plan.entries import expand
from dynprune.plan.inputs import Inputs

LayerEntry = Callable[[Tensor, Any], Tensor]


class ActiveUnits:
    """The active set of a layer, and its packed form in each dtype that is asked for.

    Packed anew when the set or the weights change.
    """

    def __init__(
        self, owner: nn.Linear | nn.modules.conv._ConvNd, make: Callable[..., LayerEntry], dim: int
    ) -> None:
        self.units = int(owner.weight.shape[0])
        self.make = make
        self.dim = dim
        self.mask = torch.ones(self.units, dtype=torch.bool)
        self.constants = torch.zeros(self.units)
        self._built: dict[torch.dtype, tuple[Any, LayerEntry, Tensor, Tensor]] = {}

    def set(self, mask: Tensor, constants: Tensor | None) -> None:
        """Compute the units of ``mask`` ``[units]`` only; the others are ``constants`` ``[units]``."""
        good = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == (self.units,)
        if not good:
            got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"set_active: expected a BoolTensor [{self.units}], got {got}")
        if constants is not None and constants.shape != (self.units,):
            raise ValueError(f"set_active: expected constants [{self.units}], got {list(constants.shape)}")
        self.mask = mask.clone()
        self.constants = torch.zeros(self.units) if constants is None else constants.detach().float().clone()
        self._built = {}

    def run(self, owner: Any, x: Tensor) -> Tensor:
        """The layer on its active units, at full width; under autocast in its dtype, as PyTorch's own."""
        dtype, low = owner.weight.dtype, (torch.float32, torch.bfloat16, torch.float16)
        device = x.device.type
        if torch.is_autocast_enabled(device) and dtype in low and x.dtype in low:
            dtype = torch.get_autocast_dtype(device)
            with torch.autocast(device, enabled=False):
                return self._run(owner, x.to(dtype), dtype)
        return self._run(owner, x, dtype)

    def _run(self, owner: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        state = [
            (t.data_ptr(), None if t.is_inference() else t._version)
            for t in (owner.weight, owner.bias)
            if t is not None
        ]
        built = self._built.get(dtype)
        if built is None or built[0] != state:
            site = LayerSite("", owner, Activation(), dtype=dtype)
            with torch.inference_mode(False), torch.no_grad():
                entry = self.make(
                    site, self.mask, Inputs(),
                    activation="none", slope=0.0, group=None, read=None, read_layout=None,
                )  # fmt: skip
            kept, constants = (
                upload(t, owner.weight.device) for t in (self.mask.nonzero().flatten(), self.constants)
            )
            built = (state, entry, kept, constants)
            self._built[dtype] = built
        y = built[1](x, None)
        if len(built[2]) == self.units:
            return y
        return expand(y, *built[2:], Layout((), self.dim % y.dim()))
