"""The kernels of ``fused``, in Triton."""

import triton
import triton.language as tl


@triton.jit
def gelu_of(x):
    """The exact GELU."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def add_norm(
    x,
    shared,
    weight,
    bias,
    y,
    rows,
    shared_rows,
    dim,
    eps,
    IS_SUM: tl.constexpr,
    GELU: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Each program norms ROWS rows. To row n of ``x``, row n modulo ``shared_rows`` of ``shared`` is added first."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row[:, None] < rows) & (column[None, :] < dim)
    value = tl.load(x + row[:, None] * dim + column[None, :], inside, 0.0).to(tl.float32)
    if IS_SUM:
        other = shared + (row % shared_rows)[:, None] * dim + column[None, :]
        value += tl.load(other, inside, 0.0).to(tl.float32)
    centred = tl.where(inside, value - (tl.sum(value, 1) / dim)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / dim + eps)
    gamma = tl.load(weight + column, column < dim, 0.0).to(tl.float32)
    beta = tl.load(bias + column, column < dim, 0.0).to(tl.float32)
    value = centred * scale[:, None] * gamma[None, :] + beta[None, :]
    if GELU:
        value = gelu_of(value)
    tl.store(y + row[:, None] * dim + column[None, :], value.to(y.dtype.element_ty), inside)


@triton.jit
def rotate(y, cos, sin, rotated, rows, tokens, stride, width, dim, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Each program rotates ROWS rows of ``width`` channels, which lie ``stride`` apart with turned ones behind them."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row[:, None] < rows) & (column[None, :] < width)
    place = y + row[:, None] * stride + column[None, :]
    angle = (row % tokens)[:, None] * dim + (column % dim)[None, :]
    value = tl.load(place, inside, 0.0).to(tl.float32) * tl.load(cos + angle, inside, 0.0)
    value += tl.load(place + width, inside, 0.0).to(tl.float32) * tl.load(sin + angle, inside, 0.0)
    tl.store(rotated + row[:, None] * width + column[None, :], value.to(rotated.dtype.element_ty), inside)


@triton.jit
def resize_axis(
    pixels, sources, weights, resized, total, length, size, inner, taps, BITS: tl.constexpr, PLACES: tl.constexpr
):
    """Each program makes PLACES pixels of (rows, size, inner) from (rows, length, inner), in whole numbers."""
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    inside = place < total
    spot = place // inner % size
    row = pixels + place // inner // size * length * inner + place % inner
    value = tl.full((PLACES,), 1 << (BITS - 1), tl.int32)
    for tap in range(taps):
        source = tl.load(sources + tap * size + spot, inside, 0)
        weight = tl.load(weights + tap * size + spot, inside, 0)
        value += tl.load(row + source * inner, inside, 0).to(tl.int32) * weight
    value = tl.minimum(tl.maximum(value >> BITS, 0), 255)
    tl.store(resized + place, value.to(tl.uint8), inside)


@triton.jit
def draw_masks(
    x,
    shared,
    weights,
    logits,
    pixels,
    IS_OWN: tl.constexpr,
    width,
    MASKS: tl.constexpr,
    channels,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Each program draws PIXELS pixels of an object. Pixels are ordered by cell, quadrant, and quadrant of that."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    object_ = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    exists = pixel < pixels
    inside = exists[:, None] & (channel[None, :] < channels)
    place = pixel[:, None] * channels + channel[None, :]
    own = object_ * pixels * channels
    value = tl.load(x + own + place, inside, 0.0).to(tl.float32)
    value += tl.load(shared + (own if IS_OWN else 0) + place, inside, 0.0).to(tl.float32)
    value = gelu_of(value)
    cell = pixel // 16
    down = cell // width * 4 + pixel // 8 % 2 * 2 + pixel // 2 % 2
    across = cell % width * 4 + pixel // 4 % 2 * 2 + pixel % 2
    target = logits + object_ * MASKS * pixels + down * (4 * width) + across
    for mask in tl.static_range(MASKS):
        weight = tl.load(weights + (object_ * MASKS + mask) * channels + channel, channel < channels, 0.0)
        tl.store(target + mask * pixels, tl.sum(value * weight[None, :], 1), exists)
