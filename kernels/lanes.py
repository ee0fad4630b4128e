"""How tiles lie on the lanes of a warp.

Scores belong to an edge and a head: tiles ``[T, H]``, one number for each lane. Features are rows
of the channels of all heads, ``[1, W]`` with ``W = H C``, read and summed for one edge after the
other (in the pass over rows for a tile of edges), so that sums of features over edges do not cross
lanes. Masks are tuples, empty where nothing is masked.
"""

import triton
import triton.language as tl


@triton.jit
def heads(S: tl.constexpr, P: tl.constexpr):
    """The heads of a program, ``[1, H]``, the last repeated where it has fewer, and which of them
    are its own.
    """
    head = tl.program_id(1) * P.heads + tl.arange(0, P.heads)[None, :]
    if S.heads % P.heads == 0:
        return head, ()
    else:
        return tl.minimum(head, S.heads - 1), (head < S.heads,)


@triton.jit
def channels(
    COUNT: tl.constexpr, BLOCK: tl.constexpr, FIRST: tl.constexpr, S: tl.constexpr, P: tl.constexpr
):
    """Offsets ``[1, W]`` in a node's row of ``BLOCK`` channels, from ``FIRST`` on, of the ``COUNT``
    that each head has; and which of them exist.
    """
    place = tl.arange(0, P.heads * BLOCK)[None, :]
    head = tl.program_id(1) * P.heads + place // BLOCK
    channel = FIRST + place % BLOCK
    if BLOCK == COUNT:
        where = tl.program_id(1) * (P.heads * BLOCK) + place
    else:
        where = head * COUNT + channel
    if COUNT % 4 == 0:
        # Vectors of four, also of short types, so that tiles of all types lie on lanes alike.
        where = tl.max_contiguous(where, (1, 4))
    if S.heads % P.heads == 0 and COUNT % BLOCK == 0:
        return where, ()
    else:
        return where, ((head < S.heads) & (channel < COUNT),)


@triton.jit
def load(pointer, mask):
    if len(mask) == 0:
        return tl.load(pointer)
    else:
        return tl.load(pointer, mask=mask[0], other=0.0)


@triton.jit
def put(pointer, value, mask, ACCUMULATE: tl.constexpr):
    if ACCUMULATE:
        value += load(pointer, mask).to(value.dtype)
    if len(mask) == 0:
        tl.store(pointer, value)
    else:
        tl.store(pointer, value, mask=mask[0])


@triton.jit
def anew(where, index):
    """``where``, in a form that depends on ``index``, which is not negative. The compiler would
    else read what lies there once before a loop and keep it in registers: there are too few. The
    factor keeps the divisibility that loads of vectors need.
    """
    return where + tl.minimum(index, 0) * 16


@triton.jit
def both(mask, other):
    """``mask`` where ``other`` holds too."""
    if len(other) == 0:
        return (mask,)
    else:
        return (mask & other[0],)


@triton.jit
def widen(x, C: tl.constexpr):
    """``[T, H]`` as ``[T, H C]``: each entry repeated."""
    wide = tl.broadcast_to(x[:, :, None], (x.shape[0], x.shape[1], C))
    return tl.reshape(wide, (x.shape[0], x.shape[1] * C))


@triton.jit
def narrow(x, H: tl.constexpr):
    """``[T, H C]`` summed over the channels of each head."""
    return tl.sum(tl.reshape(x, (x.shape[0], H, x.shape[1] // H)), axis=2)


@triton.jit
def pick(x, n):
    """Row ``n`` of a tile ``[T, H]``, which lanes hand to the others of the same head."""
    return tl.gather(x, tl.full((1, x.shape[1]), n, tl.int32), 0)


@triton.jit
def picks(tiles, n):
    """Row ``n`` of each tile."""
    out = ()
    for m in tl.static_range(len(tiles)):
        out = out + (pick(tiles[m], n),)
    return out


@triton.jit
def wide_picks(tiles, n, C: tl.constexpr):
    """Row ``n`` of each tile, ``[1, H C]``."""
    out = ()
    for m in tl.static_range(len(tiles)):
        out = out + (widen(pick(tiles[m], n), C),)
    return out


@triton.jit
def settled(x):
    """``x``, one number for each lane. Without it the compiler may have every lane of a head
    compute with all edges of the tile.
    """
    itself = tl.broadcast_to(tl.arange(0, x.shape[0])[:, None], (x.shape[0], x.shape[1]))
    return tl.gather(x, itself, 0)


@triton.jit
def with_rows(tiles, n, rows):
    """Tiles ``[T, H]`` with row ``n`` of each replaced by one of ``[1, H C]``, summed over the
    channels of each head.
    """
    out = ()
    for m in tl.static_range(len(tiles)):
        chosen = tl.arange(0, tiles[m].shape[0])[:, None] == n
        sums = narrow(rows[m], tiles[m].shape[1])
        out = out + (settled(tl.where(chosen, sums, tiles[m])),)
    return out


@triton.jit
def zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, S: tl.constexpr):
    """A tuple of tiles."""
    out = ()
    for _ in tl.static_range(COUNT):
        out = out + (tl.zeros([ROWS, COLUMNS], S.dtype),)
    return out


@triton.jit
def replaced(values, n: tl.constexpr, value):
    """A tuple with one entry replaced."""
    out = ()
    for m in tl.static_range(len(values)):
        if m == n:
            out = out + (value,)
        else:
            out = out + (values[m],)
    return out
