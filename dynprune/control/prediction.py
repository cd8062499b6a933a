"""Predicting pruned units from the active ones by least squares."""

from __future__ import annotations

import torch
from torch import Tensor

from dynprune.plan.substitute import Substitute

# Added to the variances of the active units, as a share of their mean: units that go together, and
# those that hardly vary, share the prediction in place of fighting over it.
_RIDGE = 1e-3


class RunningProducts:
    """Decayed first and second moments of the units at one read point.

    Args:
        units: of the group read.
        window: rows after which an observation counts half.
    """

    def __init__(self, units: int, window: int) -> None:
        self.window = window
        self.sums = torch.zeros(units, dtype=torch.float64)
        self.products = torch.zeros(0, 0, dtype=torch.float64)  # [units, units] once there are some
        self.count = 0.0

    def add(self, sums: Tensor, products: Tensor, positions: int, rows: int) -> None:
        """Add sums ``[units]`` and sums of products ``[units, units]`` over ``positions`` values each.

        What holds NaN or infinity is left out as a whole.
        """
        if positions == 0 or not bool(products.isfinite().all()):
            return
        keep = 0.5 ** (rows / self.window)
        self.sums = self.sums * keep + sums
        self.products = self.products * keep + products if len(self.products) else products
        self.count = self.count * keep + positions


def residual_variances(moments: RunningProducts) -> Tensor:
    """The variance of each unit that a linear prediction from all the others leaves ``[units]``.

    ``1 / diag(inverse covariance)``; the variance itself where the covariance cannot be inverted, NaN where
    nothing was seen.
    """
    units = len(moments.sums)
    if moments.count == 0:
        return torch.full((units,), float("nan"), dtype=torch.float64)
    covariance, _ = _moments(moments)
    variance = covariance.diagonal().clone()
    ridge = _RIDGE * variance.mean().clamp(min=1e-30)
    covariance.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed):
        return variance.clamp(min=0.0)
    return (1 / torch.cholesky_inverse(factor).diagonal() - ridge).clamp(min=0.0)


def _moments(moments: RunningProducts) -> tuple[Tensor, Tensor]:
    """Covariance ``[units, units]`` and mean ``[units]`` of what was seen, which is something."""
    mean = moments.sums / moments.count
    return moments.products / moments.count - torch.outer(mean, mean), mean


def predict_pruned(moments: RunningProducts, active: Tensor) -> Substitute:
    """The best linear prediction, in the mean square, of pruned units from ``active`` (bool ``[units]``)."""
    mean = moments.sums / max(moments.count, 1e-300)
    kept, gone = active.nonzero().flatten(), (~active).nonzero().flatten()
    if moments.count == 0 or len(kept) == 0 or len(gone) == 0:
        return Substitute(mean.float())
    covariance, _ = _moments(moments)
    among = covariance[kept[:, None], kept]
    ridge = _RIDGE * among.diagonal().mean().clamp(min=1e-30)
    among.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(among)
    if bool(failed):  # rounding made a covariance indefinite: the means serve
        return Substitute(mean.float())
    shares = torch.cholesky_solve(covariance[kept[:, None], gone], factor)  # [active, pruned]
    mixing = torch.zeros_like(covariance)
    mixing[gone[:, None], kept] = shares.T
    return Substitute((mean - mixing @ mean).float(), mixing.float())
