"""Static pruning of a dense model by others, to a given share of its operations and without fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn
from torch.nn.utils import prune

from dynprune.experiments.evaluation import counts_all_operations, operations_per_sample
from dynprune.experiments.samples import Inputs

BISECTIONS = 8


@dataclass(frozen=True)
class Pruned:
    """A pruned model in eval mode, and the share of the dense model's operations it takes."""

    method: str
    model: nn.Module
    operations_share: float


def torch_pruning(model: nn.Module, example: Inputs, share: float, everywhere: bool) -> Pruned:
    """Channels with the least weights removed by Torch-Pruning (Fang et al. 2023).

    ``example``: inputs of batch 1; ``everywhere``: the least over all layers, not the same share of each. The
    ratio that leaves ``share`` of the operations is found by bisection.

    Raises:
        NotImplementedError: Torch-Pruning is not installed, or the model has an LSTM.
    """
    if not counts_all_operations(model):
        raise NotImplementedError("Torch-Pruning: expected a model without LSTM, got one with")
    try:
        import torch_pruning as tp
    except ModuleNotFoundError as error:
        raise NotImplementedError(
            "Torch-Pruning: expected torch_pruning to be installed, got none; "
            "run pip install 'dynprune[peers]'"
        ) from error
    dense = operations_per_sample(model, example)

    def pruned(ratio: float) -> Pruned:
        thin = copy.deepcopy(model).eval()
        last = [m for m in thin.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
        for parameter in thin.parameters():
            parameter.requires_grad_(True)  # its tracing wants gradients
        pruner = tp.pruner.MagnitudePruner(
            thin,
            example,
            importance=tp.importance.MagnitudeImportance(p=2),
            global_pruning=everywhere,
            pruning_ratio=ratio,
            max_pruning_ratio=0.95,
            ignored_layers=[last],
        )
        pruner.step()
        thin.requires_grad_(False)
        name = "Torch-Pruning, " + ("all layers" if everywhere else "per layer")
        return Pruned(name, thin, operations_per_sample(thin, example) / dense)

    low, high = 0.0, 1.0
    best = pruned(0.0)
    for _ in range(BISECTIONS):
        ratio = (low + high) / 2
        attempt = pruned(ratio)
        if abs(attempt.operations_share - share) < abs(best.operations_share - share):
            best = attempt
        low, high = (ratio, high) if attempt.operations_share > share else (low, ratio)
    return best


def torch_masks(model: nn.Module, example: Inputs, share: float) -> Pruned:
    """The least weights of each layer set to zero by ``torch.nn.utils.prune``.

    The operations are those that would be left if zeros were skipped; dense kernels skip none.
    """
    masked = copy.deepcopy(model).eval()
    for module in masked.modules():
        names: list[str] = []
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            names = ["weight"]
        elif isinstance(module, nn.RNNBase):
            names = [name for name, _ in module.named_parameters() if name.startswith("weight")]
        for name in names:
            prune.l1_unstructured(module, name, amount=1 - share)  # type: ignore[no-untyped-call]
            prune.remove(module, name)  # type: ignore[no-untyped-call]
    masked.requires_grad_(False)
    return Pruned("torch masks", masked, share)


METHODS: dict[str, Callable[[nn.Module, Inputs, float], Pruned]] = {
    "Torch-Pruning, all layers": partial(torch_pruning, everywhere=True),
    "Torch-Pruning, per layer": partial(torch_pruning, everywhere=False),
    "torch masks": torch_masks,
}
