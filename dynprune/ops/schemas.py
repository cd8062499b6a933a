"""Schemas of the ops, written once: for the compiled backend and for installs without one."""

from __future__ import annotations

NAMESPACE = "dynprune"

SCHEMAS = {
    "linear": (
        "(Tensor input, Tensor weight, Tensor? bias=None, *, Tensor? indices=None, "
        "Tensor? input_indices=None, str activation='none', float slope=0.01, "
        "float input_threshold=0.0, Tensor? input_major=None, Tensor(a!)? usage=None, "
        "Tensor? unit_count=None, Tensor? depth_count=None) -> Tensor"
    ),
    "conv2d": (
        "(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=1, SymInt[2] padding=0, "
        "SymInt[2] dilation=1, SymInt groups=1, *, Tensor? indices=None, "
        "Tensor? input_indices=None, str activation='none', float slope=0.01, "
        "Tensor(a!)? usage=None, Tensor? unit_count=None, Tensor? depth_count=None) -> Tensor"
    ),
    "lstm": (
        "(Tensor input, Tensor[] weight, Tensor[] bias, Tensor? lengths=None, Tensor? hidden=None, "
        "Tensor? cell=None, *, bool batch_first=False, Tensor? first=None, "
        "Tensor(a!)? usage=None, Tensor? unit_counts=None, Tensor? depth_count=None) "
        "-> (Tensor, Tensor, Tensor)"
    ),
    "sparse_input_linear": (
        "(Tensor input, Tensor weight, Tensor bias, *, float threshold=0.0, str activation='none', "
        "float slope=0.01, Tensor(a!)? usage=None, Tensor? unit_count=None, "
        "Tensor? depth_count=None) -> Tensor"
    ),
    "max_pool2d": (
        "(Tensor input, SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding=0, "
        "SymInt[2] dilation=1, bool ceil_mode=False) -> Tensor"
    ),
    "gather_into": (
        "(Tensor(a!) to, Tensor weight, *, Tensor? indices=None, Tensor? input_indices=None, "
        "Tensor? scale=None, Tensor? input_slots=None) -> ()"
    ),
}
