"""conv2d as a product of pixels and units, channels last, without a copy of the input's windows."""

import triton
import triton.language as tl

from .epilogue import activate, add_usage


@triton.jit
def taps_cut(position, size, taps, dilation):
    """How many taps of a dimension lie before its low end, and behind its high end.

    ``position`` is that of the first tap, below 0 in the padding.
    """
    low = (tl.maximum(-position, 0) + dilation - 1) // dilation
    inside = (tl.maximum(size - position, 0) + dilation - 1) // dilation
    return tl.minimum(low, taps), taps - tl.minimum(inside, taps)


@triton.jit(do_not_specialize=["pixels", "usage_row"])
def conv2d_kernel(
    x,  # [batch, channels, height, width] of any strides
    w,  # [out, channels / groups, kh, kw] of any strides
    bias,  # [out]; with TABLE [low_h, high_h, low_w, high_w, out]; None: none
    y,  # [batch, units, out_height, out_width], channels last
    indices,  # int64 [units]: rows of w and of bias; None: the first ones
    input_indices,  # int64 [channels]: channels of w; None: the first ones
    unit_count,  # int32 [1]: how many of `units` there are, a multiple of 16; None: all
    depth_count,  # int32 [1]: how many of `channels` there are, likewise; None: all
    usage,  # float64 [4, usage_row], added to; None: not wanted
    pixels,  # batch * out_height * out_width
    units,  # of one group
    channels,  # of one group
    height,
    width,
    out_height,
    out_width,
    x_batch,
    x_channel,
    x_row,
    x_column,
    w_unit,
    w_channel,
    w_row,
    w_column,
    y_pixel,
    usage_row,
    kh,
    kw,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    high_h,  # sizes of the table, but for the first
    low_w,
    high_w,
    low_h,
    slope,
    KIND: tl.constexpr,
    GATHER_INPUT: tl.constexpr,  # input_indices are channels of x as well
    TABLE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A program computes ROWS pixels of UNITS units of one group, tap by tap."""
    if unit_count is not None:
        units = tl.multiple_of(tl.load(unit_count), 16)
    if depth_count is not None:
        channels = tl.multiple_of(tl.load(depth_count), 16)
    first_unit = tl.program_id(1) * UNITS
    if first_unit >= units:
        return
    group = tl.program_id(2)
    p = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside_group = first_unit + tl.arange(0, UNITS)
    pixel_there, unit_there = p < pixels, inside_group < units
    u = group * units + inside_group
    source = u
    if indices is not None:
        source = tl.load(indices + u, mask=unit_there, other=0)
    left, top = p % out_width, p // out_width % out_height
    row, column = top * stride_h - padding_h, left * stride_w - padding_w
    image = (
        x
        + (p // (out_width * out_height)).to(tl.int64)[:, None] * x_batch
        + group.to(tl.int64) * channels * x_channel
    )
    w_at = w + source.to(tl.int64)[None, :] * w_unit
    sums = tl.zeros((ROWS, UNITS), dtype=tl.float32)
    blocks = tl.cdiv(channels, DEPTH)
    for block in range(0, kh * kw * blocks):
        tap = block // blocks
        i, j = tap // kw, tap % kw
        k = block % blocks * DEPTH + tl.arange(0, DEPTH)
        there = k < channels
        channel = k
        if input_indices is not None:
            channel = tl.load(input_indices + k, mask=there, other=0)
        x_channel_at = channel if GATHER_INPUT else k
        r, c = row + i * dilation_h, column + j * dilation_w
        on_image = pixel_there & (r >= 0) & (r < height) & (c >= 0) & (c < width)
        at = image + r.to(tl.int64)[:, None] * x_row + c.to(tl.int64)[:, None] * x_column
        a = tl.load(
            at + x_channel_at[None, :] * x_channel, mask=on_image[:, None] & there[None, :], other=0.0
        )
        tap_at = w_at + i * w_row + j * w_column
        b = tl.load(
            tap_at + channel[:, None] * w_channel, mask=there[:, None] & unit_there[None, :], other=0.0
        )
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    there = pixel_there[:, None] & unit_there[None, :]
    if TABLE:
        cut_low_h, cut_high_h = taps_cut(row, height, kh, dilation_h)
        cut_low_w, cut_high_w = taps_cut(column, width, kw, dilation_w)
        zone = tl.minimum(cut_low_h, low_h - 1) * high_h + tl.minimum(cut_high_h, high_h - 1)
        zone = (zone * low_w + tl.minimum(cut_low_w, low_w - 1)) * high_w + tl.minimum(cut_high_w, high_w - 1)
        # Rows of the table are as long as those of y: of all units, whatever the count.
        sums += tl.load(bias + zone[:, None] * y_pixel + u[None, :], mask=there, other=0.0).to(tl.float32)
    elif bias is not None:
        sums += tl.load(bias + source, mask=unit_there, other=0.0).to(tl.float32)[None, :]
    a = activate(sums, slope, KIND)
    if usage is not None:
        add_usage(usage, usage_row, u, a, there, unit_there)
    tl.store(y + p.to(tl.int64)[:, None] * y_pixel + u[None, :], a.to(y.dtype.element_ty), mask=there)
