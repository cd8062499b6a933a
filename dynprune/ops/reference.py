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

from dynprune.ops.checks import counted, expect, expect_count, expect_indices, leave_unwritten
from dynprune.ops.packing import INPUT_MAJOR_ALIGN, padded_units, unpack_panels

USAGE_ROWS = 4
SPARSE_ROWS = 8

ACTIVATIONS = ("none", "relu", "leaky_relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")


def _expect_options(op: str, activation: str, usage: Tensor | None, units: int) -> None:
    expect(activation in ACTIVATIONS, op, f"an activation out of {', '.join(ACTIVATIONS)}", activation)
    expect(
        usage is None or (usage.shape == (USAGE_ROWS, units) and usage.dtype == torch.float64),
        op,
        f"float64 usage [4, {units}] with contiguous rows",
        None if usage is None else f"{usage.dtype} {list(usage.shape)}",
    )


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


def pick_channels(image: Tensor, channels: Tensor) -> Tensor:
    """Channels of ``[batch, channels, height, width]``, side by side, as ``index_select`` leaves them not."""
    return image.permute(0, 2, 3, 1).index_select(3, channels).permute(0, 3, 1, 2)


def usage_sums(a: Tensor, dim: int) -> Tensor:
    """Usage ``[4, units]`` (float64) of activations whose units lie along ``dim``.

    NaN and infinite activations are left out, of the count too.
    """
    units = a.shape[dim]
    flat = a.detach().movedim(dim, 0).reshape(units, a.numel() // max(1, units)).double()
    good = flat.isfinite()
    flat = torch.where(good, flat, 0.0)
    return torch.stack([flat.abs().sum(1), flat.sum(1), flat.square().sum(1), good.sum(1).double()])


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
