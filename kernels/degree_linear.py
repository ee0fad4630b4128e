"""Linear maps of the channels of features, with one matrix for all rows of a degree.

An input row holds the channels of one or more paths side by side, as many in each row of a degree:
``out[n, (l, m)] = x[n, (l, m)] @ weight[l]``. Features are read and written node by node, as they
lie. Unless TF32 was asked for, products of float32 numbers are sums of several products of shorter
numbers, whose errors are those of float32: for few nodes six of bfloat16 or three of TF32, for many
three of float16, into which matrices are split once. The range of float16 is small: rows are
multiplied by powers of two before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .operands import Hashed, ceil_div, constants, next_power_of_2


class _Maps(NamedTuple):
    """What the kernels are compiled for."""

    paths: tuple[Any, ...]  # in a row of each degree
    firsts: tuple[Any, ...]  # paths in the matrices before each degree, and in all
    starts: tuple[Any, ...]  # paths in the rows before each degree, and in all
    in_channels: Any  # of a path
    out_channels: Any
    precision: Any


class Maps(Hashed, _Maps):
    """With a hash that is computed once."""


class _Block(NamedTuple):
    """What a program computes at a time."""

    nodes: Any
    columns: Any
    channels: Any


class Block(Hashed, _Block):
    """With a hash that is computed once."""


# Products of float32 numbers as those of float16 numbers into which matrices are split beforehand.
SPLIT = "split"
# Nodes from which on that pays: it is a launch of its own, for tiles that a few nodes do not fill.
_MANY = 2048

# Programs that share the sum of a gradient: a few for each multiprocessor. More write more.
_PROGRAMS = 528


@triton.jit
def _row(row, M: tl.constexpr):
    """Of an output row: the size of the input row, its place in a node's and the first row of its
    matrix.
    """
    size = M.paths[0] * M.in_channels
    start = 0
    first = 0
    for degree in tl.static_range(1, len(M.paths)):
        inside = row >= degree * degree
        here = M.starts[degree] + (row - degree * degree) * M.paths[degree]
        size = tl.where(inside, M.paths[degree] * M.in_channels, size)
        start = tl.where(inside, here * M.in_channels, start)
        first = tl.where(inside, M.firsts[degree] * M.in_channels, first)
    return size, start, first


@triton.jit
def _load(pointer, inside, WHOLE: tl.constexpr):
    if WHOLE:
        return tl.load(pointer)
    else:
        return tl.load(pointer, mask=inside, other=0.0)


@triton.jit
def _split(x):
    """Two float16 numbers for each of ``x [M, K]``, whose sum is ``x`` times a power of two for its
    row, to 22 bits; and the inverse of the power, ``[M, 1]``.

    The largest of a row comes to lie in [2^14, 2^15). Numbers down to 2^-17 of it keep their 22
    bits, errors of smaller ones are less than 2^-39 of it.
    """
    largest = tl.max(tl.abs(x), axis=1, keep_dims=True)
    # The exponent, of nearly zero that of 2^-96, so that the power and its inverse are normal.
    exponent = tl.maximum(largest.to(tl.int32, bitcast=True) & 0x7F800000, 31 << 23)
    power = ((141 << 23) - (exponent - (127 << 23))).to(tl.float32, bitcast=True)
    inverse = (exponent - (14 << 23)).to(tl.float32, bitcast=True)
    x = x * power
    high = x.to(tl.float16)
    low = (x - high.to(tl.float32)).to(tl.float16)
    return high, low, inverse


# Sizes are no constants: what is compiled serves all of them.
@triton.jit(do_not_specialize=["rows"])
def split_kernel(
    matrix, parts, inverses, rows, COLUMNS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    """Writes the high and low parts of a matrix one after the other, and the inverses."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    place = row * COLUMNS + column
    inside = (row < rows) & (column < COLUMNS)
    high, low, inverse = _split(tl.load(matrix + place, mask=inside, other=0.0))
    tl.store(parts + place, high, mask=inside)
    tl.store(parts + rows * COLUMNS + place, low, mask=inside)
    tl.store(inverses + row, inverse, mask=row < rows)


@triton.jit
def _add_product(total, a, parts, size, inside, WHOLE: tl.constexpr):
    """Adds ``a`` times the split matrix, as three products; the fourth is below the precision of
    float32.
    """
    b_high = _load(parts, inside, WHOLE)
    b_low = _load(parts + size, inside, WHOLE)
    high, low, inverse = _split(a)
    product = tl.dot(low, b_high)
    product = tl.dot(high, b_low, product)
    return total + tl.dot(high, b_high, product) * inverse


@triton.jit(do_not_specialize=["nodes"])
def rows_kernel(
    x,
    matrix,
    inverses,
    bias,
    addend,
    out,
    nodes,
    M: tl.constexpr,
    B: tl.constexpr,
    BLOCKS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """Writes ``x @ matrix`` or, transposed, ``x @ matrix^T``, which has the rows of the input.

    With ``inverses`` the matrix is in two parts, whose rows are to be multiplied by these.
    """
    DEGREES: tl.constexpr = len(M.paths)
    IN: tl.constexpr = M.starts[DEGREES] * M.in_channels
    OUT: tl.constexpr = DEGREES * DEGREES * M.out_channels
    column_block = tl.program_id(0) % BLOCKS
    row = tl.program_id(0) // BLOCKS % (DEGREES * DEGREES)
    node_block = tl.program_id(0) // (BLOCKS * DEGREES * DEGREES)
    node = node_block.to(tl.int64) * B.nodes + tl.arange(0, B.nodes)[:, None]
    held = tl.minimum(node, nodes - 1)
    column = column_block * B.columns + tl.arange(0, B.columns)[None, :]
    channel = tl.arange(0, B.channels)
    size, start, first = _row(row, M)
    if TRANSPOSED:
        STRIDE: tl.constexpr = 1
        summands = M.out_channels
        columns = size
        source = x + held * OUT + row * M.out_channels
        factor = matrix + (first + column) * M.out_channels
        target = node * IN + start + column
        WHOLE: tl.constexpr = M.out_channels % B.channels == 0
        WIDE: tl.constexpr = M.in_channels % B.columns == 0
    else:
        STRIDE: tl.constexpr = M.out_channels
        summands = size
        columns = M.out_channels
        source = x + held * IN + start
        factor = matrix + first * M.out_channels + column
        target = node * OUT + row * M.out_channels + column
        WHOLE: tl.constexpr = M.in_channels % B.channels == 0
        WIDE: tl.constexpr = M.out_channels % B.columns == 0
    if column_block * B.columns < columns:
        total = tl.zeros([B.nodes, B.columns], tl.float32)
        for k in range(0, summands, B.channels):
            place = k + channel
            a = _load(source + place[None, :], place[None, :] < summands, WHOLE)
            inside = (place[:, None] < summands) & (column < columns)
            where = factor + place[:, None] * STRIDE
            if inverses is not None:
                SIZE: tl.constexpr = M.firsts[DEGREES] * M.in_channels * M.out_channels
                if not TRANSPOSED:
                    row_of_matrix = inverses + first + place[None, :]
                    a *= _load(row_of_matrix, place[None, :] < summands, WHOLE)
                total = _add_product(total, a, where, SIZE, inside, WHOLE and WIDE)
            else:
                b = _load(where, inside, WHOLE and WIDE)
                total = tl.dot(a, b, total, input_precision=M.precision)
        if TRANSPOSED and inverses is not None:
            total *= tl.load(inverses + first + column, mask=column < columns, other=0.0)
        if bias is not None:
            if row == 0:
                total += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)
        mask = (node < nodes) & (column < columns)
        if addend is not None:
            total += tl.load(addend + target, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + target, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["nodes", "span"])
def matrix_kernel(
    x,
    grad,
    out,
    nodes,
    span,
    M: tl.constexpr,
    B: tl.constexpr,
    IN_BLOCKS: tl.constexpr,
    OUT_BLOCKS: tl.constexpr,
):
    """Writes ``x^T grad``, summed over ``span`` nodes, for each of their rows."""
    DEGREES: tl.constexpr = len(M.paths)
    IN: tl.constexpr = M.starts[DEGREES] * M.in_channels
    OUT: tl.constexpr = DEGREES * DEGREES * M.out_channels
    out_block = tl.program_id(0) % OUT_BLOCKS
    in_block = tl.program_id(0) // OUT_BLOCKS % IN_BLOCKS
    row = tl.program_id(0) // (OUT_BLOCKS * IN_BLOCKS) % (DEGREES * DEGREES)
    part = (tl.program_id(0) // (OUT_BLOCKS * IN_BLOCKS * DEGREES * DEGREES)).to(tl.int64)
    channel = in_block * B.channels + tl.arange(0, B.channels)
    column = out_block * B.columns + tl.arange(0, B.columns)
    size, start, _ = _row(row, M)
    if in_block * B.channels < size:
        total = tl.zeros([B.channels, B.columns], tl.float32)
        last = tl.minimum(part * span + span, nodes)
        for first in range(part * span, last, B.nodes):
            node = first + tl.arange(0, B.nodes)[:, None]
            left = x + node * IN + start + channel[None, :]
            right = grad + node * OUT + row * M.out_channels + column[None, :]
            a = tl.load(left, mask=(node < last) & (channel[None, :] < size), other=0.0)
            b = tl.load(right, mask=(node < last) & (column[None, :] < M.out_channels), other=0.0)
            total = tl.dot(tl.trans(a), b, total, input_precision=M.precision)
        where = (part * IN + start + channel[:, None]) * M.out_channels + column[None, :]
        mask = (channel[:, None] < size) & (column[None, :] < M.out_channels)
        tl.store(out + where, total, mask=mask)


@triton.jit(do_not_specialize=["num_parts"])
def total_kernel(parts, out, num_parts, M: tl.constexpr, BLOCK: tl.constexpr):
    """Sums what :func:`matrix_kernel` wrote over parts and the rows of a degree."""
    IN: tl.constexpr = M.starts[len(M.paths)] * M.in_channels
    PARTS: tl.constexpr = 8
    degree = tl.program_id(1)
    size, start, first = _row(degree * degree, M)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = place < size * M.out_channels
    if tl.program_id(0) * BLOCK < size * M.out_channels:
        total = tl.zeros([PARTS, BLOCK], tl.float32)
        for m in range(2 * degree + 1):
            for first_part in range(0, num_parts, PARTS):
                part = first_part + tl.arange(0, PARTS)[:, None]
                where = (part.to(tl.int64) * IN + start + m * size) * M.out_channels + place
                total += tl.load(parts + where, mask=inside & (part < num_parts), other=0.0)
        value = tl.sum(total, axis=0, keep_dims=True).to(out.dtype.element_ty)
        tl.store(out + first * M.out_channels + place, value, mask=inside)


@cache
def _maps(paths: tuple[int, ...], in_channels: int, out_channels: int, precision: str) -> Maps:
    rows = [(2 * degree + 1) * count for degree, count in enumerate(paths)]
    maps: Maps = constants(
        Maps(
            paths,
            tuple(accumulate(paths, initial=0)),
            tuple(accumulate(rows, initial=0)),
            in_channels,
            out_channels,
            precision,
        )
    )
    return maps


@cache
def _block(nodes: int, columns: int, channels: int) -> Block:
    block: Block = constants(Block(nodes, columns, channels))
    return block


def _size(n: int, largest: int) -> int:
    """A power of two from 16, the least that the hardware multiplies, up to ``largest``."""
    return max(16, min(next_power_of_2(n), largest))


def exact_products(nodes: int, transposed: bool) -> str:
    """The precision of :func:`rows` whose errors are those of float32."""
    if nodes >= _MANY:
        return SPLIT
    # TF32 products want the summands of both factors side by side, those of bfloat16 do not.
    return "tf32x3" if transposed else "bf16x6"


def rows(
    x: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    addend: Tensor | None,
    paths: Sequence[int],
    in_channels: int,
    transposed: bool,
    precision: str,
) -> Tensor:
    """The map of ``x`` or, transposed, from output rows to input rows.

    Args:
        x (torch.Tensor): Contiguous features.
        matrix (torch.Tensor): The matrices below one another.
        bias (torch.Tensor, optional): Added to the first row.
        addend (torch.Tensor, optional): Added to all rows.
        paths (sequence): The paths in a row of each degree.
        in_channels (int): Channels of a path.
        transposed (bool): The direction.
        precision (str): That of Triton's ``dot``, or :data:`SPLIT`.
    """
    nodes, degrees, out_channels = x.size(0), len(paths), matrix.size(1)
    maps = _maps(tuple(paths), in_channels, out_channels, precision)
    if transposed:
        num_rows, width = maps.starts[-1].value, in_channels
        columns, summands = max(paths) * in_channels, out_channels
    else:
        num_rows, width = degrees * degrees, out_channels
        columns, summands = out_channels, in_channels
    out = x.new_empty(nodes, num_rows, width)
    matrix, inverses = matrix.contiguous(), None
    if precision == SPLIT:
        matrix, inverses = _parts(matrix)
    # A column block lies in one degree, whose columns it may exceed.
    block = _block(64, _size(width, 128 if precision == SPLIT else 64), _size(summands, 32))
    blocks = ceil_div(columns, block.columns.value)
    programs = ceil_div(nodes, 64) * degrees * degrees * blocks
    if programs > 0:
        rows_kernel[(programs,)](
            *(x, matrix, inverses, bias, addend, out, nodes, maps, block, blocks, transposed),
            num_warps=4,
            num_stages=3,
        )
    return out


def _parts(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The high and low parts of a matrix, and the factors of its rows."""
    rows, columns = matrix.shape
    parts = matrix.new_empty(2, rows, columns, dtype=torch.float16)
    inverses = matrix.new_empty(rows)
    if matrix.numel() > 0:
        width = next_power_of_2(columns)
        count = max(1024 // width, 1)
        split_kernel[ceil_div(rows, count),](matrix, parts, inverses, rows, columns, count, width)
    return parts, inverses


def matrix(
    x: Tensor, grad: Tensor, paths: Sequence[int], in_channels: int, precision: str
) -> Tensor:
    """The gradient by the matrices: ``x^T grad`` of all rows of a degree.

    Args:
        x (torch.Tensor): Contiguous input features.
        grad (torch.Tensor): Contiguous output features.
        paths (sequence): The paths in a row of each degree.
        in_channels (int): Channels of a path.
        precision (str): That of Triton's ``dot``.
    """
    nodes, degrees, out_channels = x.size(0), len(paths), grad.size(2)
    maps = _maps(tuple(paths), in_channels, out_channels, precision)
    out = x.new_empty(maps.firsts[-1].value * in_channels, out_channels)
    if nodes == 0 or out.numel() == 0:
        return out.zero_()
    size = max(paths) * in_channels
    block = _block(32, _size(out_channels, 64), _size(size, 128))
    in_blocks = ceil_div(size, block.channels.value)
    out_blocks = ceil_div(out_channels, block.columns.value)
    # Each of them sums over a part of the nodes.
    programs = out_blocks * sum(
        (2 * degree + 1) * ceil_div(count * in_channels, block.channels.value)
        for degree, count in enumerate(paths)
    )
    span = ceil_div(nodes, ceil_div(_PROGRAMS, programs))
    span = ceil_div(span, 32) * 32
    count = ceil_div(nodes, span)
    parts = x.new_empty(
        count, maps.starts[-1].value * in_channels, out_channels, dtype=torch.float32
    )
    programs = count * degrees * degrees * in_blocks * out_blocks
    matrix_kernel[(programs,)](
        x, grad, parts, nodes, span, maps, block, in_blocks, out_blocks, num_warps=4
    )
    grid = ceil_div(size * out_channels, 256), degrees
    total_kernel[grid](parts, out, count, maps, 256)
    return out
