"""The ops in plain torch: what every kernel is tested against, and what serves without a compiler.

They take any floating dtype, and the same arguments and layouts as the compiled ops (see
``dynprune.ops.schemas``). Usage is ``[4, units]`` in float64: sum |a|, sum a, sum a^2, count.

``linear`` and ``conv2d`` in bfloat16 or float16 (input and weight; the bias is float32) compute in
float32, usage too, and round the output once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 64
UNIT_ALIGN = 8
INPUT_MAJOR_ALIGN = 16
USAGE_ROWS = 4
SPARSE_ROWS = 8

ACTIVATIONS = ("none", "relu", "leaky_relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")


def expect(condition: bool, op: str, expected: str, got: object) -> None:
    """Raise ``ValueError("<op>: expected <expected>, got <got>")`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{op}: expected {expected}, got {got}")


def expect_count(op: str, name: str, t: Tensor | None, length: int = 1) -> None:
    """Raise ValueError unless ``t`` is None or int32 ``[length]``."""
    fits = t is None or (t.shape == (length,) and t.dtype == torch.int32)
    expect(fits, op, f"int32 {name} [{length}]", None if t is None else f"{t.dtype} {list(t.shape)}")


def counted(count: Tensor | None, most: int) -> int:
    """How many of ``most`` there are. On a GPU all of them: to read the count would wait for the device."""
    return most if count is None or count.is_cuda else min(most, int(count))


def leave_unwritten(y: Tensor, units: int, dim: int) -> Tensor:
    """``y`` with ``units`` along ``dim``; those it has not are NaN, as what no kernel writes may be."""
    missing = units - y.shape[dim]
    if missing == 0:
        return y
    shape = list(y.shape)
    shape[dim] = missing
    return torch.cat([y, y.new_full(shape, torch.nan)], dim)


def expect_indices(op: str, name: str, t: Tensor, limit: int) -> None:
    """Raise ValueError unless ``t`` is an int64 list, strictly increasing in [0, ``limit``)."""
    expect(
        t.dim() == 1 and t.dtype == torch.int64,
        op,
        f"contiguous int64 {name} [n] on the CPU",
        f"{t.dtype} {list(t.shape)}",
    )
    previous = -1
    for value in t.tolist():
        expect(
            previous < value < limit,
            op,
            f"{name} strictly increasing in [0, {limit})",
            f"{value} after {previous}",
        )
        previous = value


def _expect_options(op: str, activation: str, usage: Tensor | None, units: int) -> None:
    expect(activation in ACTIVATIONS, op, f"an activation out of {', '.join(ACTIVATIONS)}", activation)
    expect(
        usage is None or (usage.shape == (USAGE_ROWS, units) and usage.dtype == torch.float64),
        op,
        f"float64 usage [4, {units}] with contiguous rows",
        None if usage is None else f"{usage.dtype} {list(usage.shape)}",
    )


def padded_units(units: int) -> int:
    """``units`` rounded up to what the kernels compute."""
    return -(-units // UNIT_ALIGN) * UNIT_ALIGN


def activate(x: Tensor, activation: str, slope: float = 0.01) -> Tensor:
    """Apply one of :data:`ACTIVATIONS`; ``slope`` is that of ``leaky_relu``."""
    if activation == "none":
        return x
    if activation == "relu":
        return F.relu(x)
    if activation == "leaky_relu":
        return F.leaky_relu(x, slope)
    if activation == "gelu":
        return F.gelu(x)
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if activation == "silu":
        return F.silu(x)
    if activation == "tanh":
        return torch.tanh(x)
    if activation == "sigmoid":
        return torch.sigmoid(x)
    raise ValueError(f"activate: expected an activation out of {', '.join(ACTIVATIONS)}, got {activation}")


def wide(t: Tensor) -> Tensor:
    """``t``, bfloat16 and float16 as float32: what is summed and folded in, to be rounded at most once."""
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


def usage_sums(a: Tensor, dim: int) -> Tensor:
    """Usage ``[4, units]`` (float64) of activations whose units lie along ``dim``.

    NaN and infinite activations are left out, of the count too.
    """
    units = a.shape[dim]
    flat = a.detach().movedim(dim, 0).reshape(units, a.numel() // max(1, units)).double()
    good = flat.isfinite()
    flat = torch.where(good, flat, 0.0)
    return torch.stack([flat.abs().sum(1), flat.sum(1), flat.square().sum(1), good.sum(1).double()])


def pack_panels(matrix: Tensor) -> Tensor:
    """``[units, depth]`` to the packed storage, flat: panels of 64 units, each ``[depth, width]``.

    In bfloat16 a panel is ``[depth // 2, width, 2]``, and behind it the last row of an odd depth.
    """
    units, depth = matrix.shape
    padded = F.pad(matrix, (0, 0, 0, padded_units(units) - units)).t()
    panels = [_paired(padded[:, start : start + PANEL]).reshape(-1) for start in range(0, units, PANEL)]
    return torch.cat(panels) if panels else matrix.new_empty(0)


def _paired(panel: Tensor) -> Tensor:
    if panel.dtype != torch.bfloat16:
        return panel
    depth, width = panel.shape
    pairs = panel[: depth // 2 * 2].reshape(depth // 2, 2, width).transpose(1, 2)
    return torch.cat([pairs.flatten(), panel[2 * len(pairs) :].flatten()])


def _unpaired(panel: Tensor) -> Tensor:
    """``[depth, width]`` of a packed panel that is viewed so."""
    if panel.dtype != torch.bfloat16:
        return panel
    depth, width = panel.shape
    pairs = panel[: depth // 2 * 2].reshape(depth // 2, width, 2).transpose(1, 2)
    return torch.cat([pairs.flatten(0, 1), panel[2 * len(pairs) :]])


def unpack_panels(packed: Tensor, units: int, depth: int) -> Tensor:
    """The inverse of :func:`pack_panels`: flat storage to ``[units, depth]``."""
    flat, padded = packed.reshape(-1), padded_units(units)
    panels = []
    for start in range(0, units, PANEL):
        width = min(PANEL, padded - start)
        panels.append(_unpaired(flat[start * depth : (start + width) * depth].view(depth, width)))
    if not panels:
        return packed.new_empty(0, depth)
    return torch.cat(panels, dim=1)[:, :units].t().contiguous()


def pack_linear(
    weight: Tensor,
    indices: Tensor | None = None,
    columns: Tensor | None = None,
    scale: Tensor | None = None,
    values: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """``[out, in]`` to ``[1, n_in, padded n_out]``; see ``csrc/pack.h``."""
    if values is not None and sums is not None:
        sums.copy_(tap_sums(weight.view(len(weight), len(values), -1, 1), values, indices))
    if scale is not None:
        weight = (weight * scale[:, None]).to(weight.dtype)
    if indices is not None:
        weight = weight.index_select(0, indices)
    if columns is not None:
        weight = weight.index_select(1, columns)
    return pack_panels(weight).view(1, weight.shape[1], padded_units(weight.shape[0]))


def pack_plain(weight: Tensor) -> Tensor:
    """``[out, in]`` as a packed weight ``[1, in, padded out]`` of the ops on a GPU: a plain tensor there."""
    return F.pad(weight.t(), (0, padded_units(weight.shape[0]) - weight.shape[0])).contiguous()[None]


def pack_input_major(packed: Tensor) -> Tensor:
    """Packed ``[1, in, padded out]`` to ``[in, out rounded up to 16]``, an input's weights in one run."""
    depth, units = packed.shape[1:]
    return F.pad(unpack_panels(packed, units, depth).t(), (0, -units % INPUT_MAJOR_ALIGN)).contiguous()


def pack_conv2d(
    weight: Tensor,
    indices: Tensor | None = None,
    input_indices: Tensor | None = None,
    scale: Tensor | None = None,
    groups: int = 1,
    values: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """``[out, in, kh, kw]`` to ``[1, kh, kw, n_in, padded n_out]``; see ``csrc/pack.h``.

    With groups of several channels ``[groups, kh, kw, in, padded out / groups]``, without index lists.
    """
    if groups != 1 and weight.shape[1] != 1:
        op, units = "pack_conv2d", weight.shape[0]
        divide = groups > 0 and units > 0 and units % groups == 0
        expect(divide, op, f"positive groups that divide {units} units", groups)
        expect(indices is None and input_indices is None, op, "no index lists with groups", groups)
        scales = [None] * groups if scale is None else scale.chunk(groups)
        parts = zip(weight.chunk(groups), scales, strict=True)
        return torch.cat([pack_conv2d(part, scale=part_scale) for part, part_scale in parts])
    if values is not None and sums is not None:
        sums.copy_(tap_sums(weight, values, indices))
    if scale is not None:
        weight = (weight * scale[:, None, None, None]).to(weight.dtype)
    if indices is not None:
        weight = weight.index_select(0, indices)
    if input_indices is not None:
        weight = weight.index_select(1, input_indices)
    units, channels, kh, kw = weight.shape
    matrix = weight.permute(0, 2, 3, 1).reshape(units, kh * kw * channels)
    return pack_panels(matrix).view(1, kh, kw, channels, padded_units(units))


def gather_into(
    to: Tensor,
    weight: Tensor,
    *,
    indices: Tensor | None = None,
    input_indices: Tensor | None = None,
    scale: Tensor | None = None,
    input_slots: Tensor | None = None,
) -> None:
    """Write the chosen units and inputs of a master weight into a compact one; the rest of it stays.

    Args:
        to: ``[units, inputs]`` or ``[units, inputs, kh, kw]``, inputs side by side in memory: its first
            units are written.
        weight: master ``[out, in]`` or ``[out, in, kh, kw]``.
        indices, input_indices: int64 ``[n]`` on the device: rows and columns of ``weight``; None: all.
        scale: float32 ``[out]``, a factor of each row.
        input_slots: int64 ``[n]`` on the device: where in ``to`` each input goes; None: to the first ones.

    Raises:
        ValueError: a shape or dtype is not as above.
    """
    op = "gather_into"
    values, n = weight, len(weight if indices is None else indices)
    columns = weight.shape[1] if input_indices is None else len(input_indices)
    fits = to.dim() == weight.dim() and to.dim() in (2, 4) and to.shape[2:] == weight.shape[2:]
    room = [n, columns if input_slots is None else 0, *weight.shape[2:]]
    fits = fits and to.dtype == weight.dtype and all(a >= b for a, b in zip(to.shape, room, strict=True))
    expect(fits, op, f"room for a weight of at least {room}, {weight.dtype}", f"{list(to.shape)}, {to.dtype}")
    fits = input_slots is None or input_slots.shape == (columns,)
    got = None if input_slots is None else list(input_slots.shape)
    expect(fits, op, f"input_slots [{columns}]", got)
    if scale is not None:
        expect(scale.shape == weight.shape[:1], op, f"a scale [{len(weight)}]", list(scale.shape))
        values = (values * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
    if indices is not None:
        values = values.index_select(0, indices)
    if input_indices is not None:
        values = values.index_select(1, input_indices)
    if input_slots is None:
        to[:n, :columns] = values
    else:
        to[:n].index_copy_(1, input_slots, values)


def tap_sums(weight: Tensor, values: Tensor, indices: Tensor | None = None) -> Tensor:
    """What channels with known ``values`` ``[in]`` add to a convolution ``[out, in, kh, kw]``, tap by tap.

    Returns:
        Float64 ``[n, kh * kw]``, for the units ``indices`` (None: all).
    """
    if indices is not None:
        weight = weight.index_select(0, indices)
    return torch.einsum("ncp,c->np", weight.flatten(2).double(), values.double())


def _widened(
    op: str, input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands of a product; those of half the width as float32."""
    expect(weight.dtype == input.dtype, op, f"a weight of the input's dtype, {input.dtype}", weight.dtype)
    return wide(input), wide(weight), None if bias is None else wide(bias)


def _select(
    op: str,
    weight: Tensor,
    bias: Tensor | None,
    indices: Tensor | None,
    input_indices: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Rows and columns of a master weight, and the rows of its bias."""
    units = weight.shape[0]
    table = weight.dim() == 4 and indices is None
    fits = bias is None or bias.shape == (units,)
    if bias is not None and bias.dim() == 5 and table:
        fits = bias.shape[-1] == units and bias.numel() >= units
    or_table = f", or [low, high, low, high, {units}] without indices and groups"
    expected = f"a bias [{units}]{or_table if weight.dim() == 4 else ''}"
    expect(fits, op, expected, None if bias is None else list(bias.shape))
    if indices is not None:
        expect_indices(op, "indices", indices, weight.shape[0])
        weight = weight.index_select(0, indices)
        bias = None if bias is None else bias.index_select(0, indices)
    if input_indices is not None:
        expect_indices(op, "input_indices", input_indices, weight.shape[1])
        weight = weight.index_select(1, input_indices)
    return weight, bias


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    indices: Tensor | None = None,
    input_indices: Tensor | None = None,
    activation: str = "none",
    slope: float = 0.01,
    input_threshold: float = 0.0,
    input_major: Tensor | None = None,
    usage: Tensor | None = None,
    unit_count: Tensor | None = None,
    depth_count: Tensor | None = None,
) -> Tensor:
    """``activation(input @ weight.T + bias)`` over the units of ``indices`` and ``input_indices``.

    Args:
        input: ``[..., features]``; full width, or compact (the features of ``input_indices``).
        weight: master ``[out, in]``, or packed ``[1, in, padded out]``.
        bias: ``[out]`` beside a master; ``[n]``, required, beside a packed weight. Float32 beside
            bfloat16.
        indices: int64 ``[n]``, strictly increasing: rows of the master to compute.
        input_indices: int64 ``[k]``, strictly increasing: columns of the master to read, which are
            the columns of a full-width input as well.
        activation: one of :data:`ACTIVATIONS`.
        slope: of ``leaky_relu``.
        input_threshold: where an input has at most 8 rows, features with ``|x| <= input_threshold`` in
            every row are left out. At 0 the result is the full one.
        input_major: the packed weight once more, from :func:`pack_input_major`: serves up to 8 rows faster.
        usage: float64 ``[4, n]``, added to.
        unit_count: int32 ``[1]`` on the device of a master weight, for captured graphs: so many of its units
            are there. The outputs of the others are left as they were allocated, and so is their usage.
        depth_count: likewise, so many of its inputs; the others are not read.

    Returns:
        ``[..., n]``, compact.

    Raises:
        ValueError: a shape, dtype or index list is not as above.
    """
    op = "linear"
    expect(input.dim() >= 1, op, "an input [..., features]", list(input.shape))
    expect(input_threshold >= 0, op, "an input_threshold of at least 0", input_threshold)
    if weight.dim() == 3:
        expect(
            bias is not None and bias.dim() == 1 and padded_units(len(bias)) == weight.shape[2],
            op,
            f"a bias [n] with n rounded up to {weight.shape[2]} beside a packed weight",
            None if bias is None else list(bias.shape),
        )
        assert bias is not None
        expect(indices is None, op, "no indices beside a packed weight", "indices")
        weight = unpack_panels(weight, len(bias), weight.shape[1])
    else:
        expect(weight.dim() == 2, op, "a weight [out, in] or [1, in, padded out]", list(weight.shape))
        weight, bias = _select(op, weight, bias, indices, input_indices)
    if input_indices is not None and input.shape[-1] != weight.shape[1]:
        input = input.index_select(-1, input_indices)
    expect(
        input.shape[-1] == weight.shape[1],
        op,
        f"an input with {weight.shape[1]} (active) features",
        input.shape[-1],
    )
    _expect_options(op, activation, usage, weight.shape[0])
    dtype = input.dtype
    major = [weight.shape[1], -(-weight.shape[0] // INPUT_MAJOR_ALIGN) * INPUT_MAJOR_ALIGN]
    expect(
        input_major is None or list(input_major.shape) == major,
        op,
        f"a contiguous input_major {major}",
        None if input_major is None else list(input_major.shape),
    )
    expect_count(op, "unit_count", unit_count)
    expect_count(op, "depth_count", depth_count)
    units, n, k = len(weight), counted(unit_count, len(weight)), counted(depth_count, weight.shape[1])
    input, weight, bias = input[..., :k], weight[:n, :k], None if bias is None else bias[:n]
    if input_threshold > 0 and input.shape[:-1].numel() <= SPARSE_ROWS:
        needed = ~(input[None].abs() <= input_threshold).flatten(0, -2).all(0)
        input = torch.where(needed, input, 0.0)
    y = activate(F.linear(*_widened(op, input, weight, bias)), activation, slope)
    if usage is not None:
        usage[:, :n] += usage_sums(y, -1)
    return leave_unwritten(y.to(dtype), units, -1)


def sparse_input_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    threshold: float = 0.0,
    activation: str = "none",
    slope: float = 0.01,
    usage: Tensor | None = None,
    unit_count: Tensor | None = None,
    depth_count: Tensor | None = None,
) -> Tensor:
    """``linear`` for few rows that leaves out the inputs no row needs, and does not read their weights.

    Args:
        input: ``[rows, in]``, at most 8 rows.
        weight: packed ``[1, in, padded out]``.
        bias: ``[out]``.
        threshold: an input is left out where ``|x| <= threshold`` in every row; at 0 the result is that
            of ``linear`` within rounding.
        activation: one of :data:`ACTIVATIONS`.
        slope: of ``leaky_relu``.
        usage: float64 ``[4, out]``, added to.
        unit_count, depth_count: as in :func:`linear`.

    Returns:
        ``[rows, out]``.

    Raises:
        ValueError: a shape, dtype or value is not as above.
    """
    op = "sparse_input_linear"
    expect(
        input.dim() == 2 and input.shape[0] <= SPARSE_ROWS,
        op,
        f"an input [rows, features] of at most {SPARSE_ROWS} rows",
        list(input.shape),
    )
    expect(bias.dim() == 1, op, "a bias [units]", list(bias.shape))
    packed = [1, input.shape[1], padded_units(len(bias))]
    expect(list(weight.shape) == packed, op, f"a contiguous packed weight {packed}", list(weight.shape))
    expect(threshold >= 0, op, "a threshold of at least 0", threshold)
    return linear(
        input, weight, bias, activation=activation, slope=slope, input_threshold=threshold, usage=usage,
        unit_count=unit_count, depth_count=depth_count,
    )  # fmt: skip


def _taps_cut(
    size: int, out: int, kernel: int, stride: int, padding: int, dilation: int, *, device: torch.device
) -> Tensor:
    """Taps cut off at the low and high end for each output position: int64 ``[2, out]``."""
    places, taps = torch.arange(out, device=device), torch.arange(kernel, device=device)
    position = places[:, None] * stride - padding + taps * dilation
    return torch.stack([(position < 0).sum(1), (position >= size).sum(1)])


def _convolve(input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    """``F.conv2d``, also with no input channels or no units: one of zeros per group stands in for none."""
    units, channels, groups = *weight.shape[:2], geometry[-1]
    if channels == 0:
        input, weight = F.pad(input, (0, 0, 0, 0, 0, groups)), F.pad(weight, (0, 0, 0, 0, 0, 1))
    if units == 0:
        weight, bias = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, groups)), None
    return F.conv2d(input, weight, bias, *geometry)[:, :units]


def _unpack_conv2d(op: str, weight: Tensor, bias: Tensor | None, groups: int) -> tuple[Tensor, int]:
    """A packed weight as a master, and its groups; beside no units, no group is one."""
    copies, kh, kw, channels, padded = weight.shape
    depthwise = groups != 1 and copies == 1 and channels == 1
    expect(
        copies == 1 and groups >= 0 if depthwise else copies == groups,
        op,
        f"a packed weight [groups, kh, kw, in, padded out] of {groups} groups",
        list(weight.shape),
    )
    expect(
        bias is not None
        and bias.dim() in (1, 5)
        and bias.shape[-1] % copies == 0
        and padded_units(bias.shape[-1] // copies) == padded
        and (bias.shape[-1] == 0 or bias.numel() > 0),
        op,
        f"a bias [n] or [low, high, low, high, n] with n{'' if copies == 1 else ' / groups'} "
        f"rounded up to {padded} beside a packed weight",
        "none" if bias is None else list(bias.shape),
    )
    assert bias is not None
    units = bias.shape[-1]
    expect(not depthwise or units == groups, op, f"as many groups as units, {units}", groups)
    parts = [unpack_panels(part, units // copies, kh * kw * channels) for part in weight]
    master = torch.cat(parts).view(units, kh, kw, channels).permute(0, 3, 1, 2)
    return (master, groups) if groups > 0 else (master[:, :0], 1)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    *,
    indices: Tensor | None = None,
    input_indices: Tensor | None = None,
    activation: str = "none",
    slope: float = 0.01,
    usage: Tensor | None = None,
    unit_count: Tensor | None = None,
    depth_count: Tensor | None = None,
) -> Tensor:
    """``activation(conv2d(input, weight) + bias)`` over the given output and input channels.

    Args:
        input: ``[batch, channels, height, width]`` in any memory format; full width, or compact.
        weight: master ``[out, in / groups, kh, kw]``, or packed ``[1, kh, kw, in, padded out]``; packed
            groups are ``[groups, kh, kw, in / groups, padded out / groups]``, or, where each unit has
            one channel of its own (depthwise, ``groups == n``), ``[1, kh, kw, 1, padded n]``.
        bias: ``[n]``, or a table ``[low_h, high_h, low_w, high_w, n]`` indexed by how many taps the border
            cuts off at the low and the high end of each dimension (larger numbers take the last row).
            Required beside a packed weight; beside a master ``[out]``, or a table without indices and groups.
        stride, padding, dilation: two numbers each, in pixels.
        groups: of the channels and units that are given.
        indices, input_indices, activation, slope, usage: as in :func:`linear`; with groups
            ``input_indices`` belongs to packed depthwise weights only.
        unit_count, depth_count: as in :func:`linear`, without groups.

    Returns:
        ``[batch, n, out_height, out_width]``, channels last.

    Raises:
        ValueError: a shape, dtype or index list is not as above.
    """
    op = "conv2d"
    expect(input.dim() == 4, op, "an input [batch, channels, height, width]", list(input.shape))
    stride, padding, dilation = list(stride), list(padding), list(dilation)
    expect(
        weight.dim() in (4, 5),
        op,
        "a weight [out, in, kh, kw] or packed [groups, kh, kw, in, padded out]",
        list(weight.shape),
    )
    if weight.dim() == 5:
        got = None if indices is None else list(indices.shape)
        expect(indices is None, op, "no indices beside a packed weight", got)
        several = weight.shape[0] != 1
        weight, groups = _unpack_conv2d(op, weight, bias, groups)
        got = None if input_indices is None else list(input_indices.shape)
        expect(input_indices is None or not several, op, "no input_indices beside several groups", got)
    else:
        units = weight.shape[0]
        divide = groups > 0 and units % groups == 0
        expect(divide, op, f"positive groups that divide {units} units", groups)
        expect(groups == 1 or input_indices is None, op, "no input_indices with groups", groups)
        plain = bias is None or bias.dim() == 1
        expect(groups == 1 or plain, op, f"a bias [{units}] beside a master with groups", "a table")
        weight, bias = _select(op, weight, bias, indices if groups == 1 else None, input_indices)
    if input_indices is not None and input.shape[1] != weight.shape[1]:
        input = input.index_select(1, input_indices)
    expect(
        input.shape[1] == weight.shape[1] * groups,
        op,
        f"an input with {weight.shape[1] * groups} (active) channels",
        input.shape[1],
    )
    expect_count(op, "unit_count", unit_count)
    expect_count(op, "depth_count", depth_count)
    counts = unit_count is not None or depth_count is not None
    expect(groups == 1 or not counts, op, "no counts with groups", groups)
    wanted, n, k = len(weight), counted(unit_count, len(weight)), counted(depth_count, weight.shape[1])
    if counts:
        input, weight, bias = input[:, :k], weight[:n, :k], None if bias is None else bias[..., :n]
    table = bias if bias is not None and bias.dim() == 5 else None
    added = None if table is not None else bias
    dtype = input.dtype
    operands = _widened(op, input, weight, added)
    y = _convolve(*operands, stride, padding, dilation, groups)
    if groups != 1 and indices is not None:
        expect_indices(op, "indices", indices, y.shape[1])
        y = y.index_select(1, indices)
    _expect_options(op, activation, usage, wanted if counts else y.shape[1])
    if table is not None:
        sizes = zip(input.shape[2:], y.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        cut = [_taps_cut(*axis, device=table.device) for axis in sizes]
        low_h, high_h = (c.clamp(max=table.shape[i] - 1)[:, None] for i, c in enumerate(cut[0]))
        low_w, high_w = (c.clamp(max=table.shape[2 + i] - 1) for i, c in enumerate(cut[1]))
        y = y + table[low_h, high_h, low_w, high_w].permute(2, 0, 1)
    y = activate(y, activation, slope)
    if usage is not None:
        usage[:, : y.shape[1]] += usage_sums(y, 1)
    y = leave_unwritten(y.to(dtype), wanted, 1) if counts else y.to(dtype)
    return y.contiguous(memory_format=torch.channels_last)


def max_pool2d(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    """Max pooling of ``[batch, channels, height, width]``, which may have no channel; channels last.

    Raises:
        ValueError: the input has not four dimensions.
    """
    expect(input.dim() == 4, "max_pool2d", "an input [batch, channels, height, width]", list(input.shape))
    channels = input.shape[1]
    if channels == 0:
        input = F.pad(input, (0, 0, 0, 0, 0, 1))
    y: Tensor = F.max_pool2d(
        input, list(kernel_size), list(stride), list(padding), list(dilation), ceil_mode=ceil_mode
    )
    return y[:, :channels].contiguous(memory_format=torch.channels_last)
