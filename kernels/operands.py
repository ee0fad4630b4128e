"""What the kernels read, grouped as their arguments. Any entry may be ``None`` where a call does
without it; kernels are specialised to that.
"""

from typing import Any, NamedTuple

import triton.language as tl


class Operands(NamedTuple):
    """Tensors that have derivatives; the tangents of all are grouped in the same way."""

    q: Any  # [N_t, H, D]
    k: Any  # [N_s, H, D]
    v: Any  # [N_s, (lmax_in + 1)**2, C]
    u: Any  # [N_t, (lmax_u + 1)**2, H]
    bias: Any  # [E, H] (attention) or [E, orders * H] (convolution), by edge
    pos_i: Any  # [N_t, 3]
    pos_j: Any  # [N_s, 3]
    strain: Any  # [N_t, 3, 3]
    polynomials: Any  # [T_t, T_s, cells, H, F, 4]


class Hashed:
    """Remembers its hash, which every launch asks for and long tables make slow."""

    def __hash__(self) -> int:
        if not hasattr(self, "_hash"):
            self._hash = tuple.__hash__(self)  # type: ignore[arg-type]
        return self._hash


class _Spec(NamedTuple):
    attention: Any  # or convolution
    heads: Any
    channels: Any  # of a head
    input_rows: Any
    u_rows: Any
    output_rows: Any
    d: Any  # channels of query and key of a head
    functions: Any  # radial functions of a head
    cutoff: Any
    cells: Any
    dropout: Any
    rows: Any  # of the harmonics that are needed
    # Of the harmonics: the first term of each row, the axis, the row of the degree below and the
    # coefficient of each term; the degree of each row.
    harmonics: Any
    dtype: Any  # of the arithmetic


class Spec(Hashed, _Spec):
    """What a kernel is compiled for."""


class _Part(NamedTuple):
    first: Any  # channel of each head
    moments: tuple[Any, ...]  # the order (its position) and the row of the harmonics of each
    # (moment, input row) pairs, sorted by input row: the input rows, the first pair of each, the
    # moment of each pair.
    pairs: tuple[Any, ...]
    # Coefficients sorted by output row: the output rows, the first term of each, and the pair and
    # the coefficient of each term.
    coupling: tuple[Any, ...]
    # The same sorted by pair: the output rows as they are first needed, the first term of each
    # pair, the position of the row and the coefficient of each term, and how many rows the pairs
    # before each need.
    adjoint: tuple[Any, ...]
    tile: Any  # edges of a tile, and
    row_tile: Any  # in the pass over rows, which holds a tile of features
    unroll: Any  # edges at a time whose values forward and tangent passes read ahead
    heads: Any  # of a program
    block: Any  # channels of each head
    d: Any  # of queries and keys of each head, and
    functions: Any  # radial functions of each head: rounded up to powers of two


class Part(Hashed, _Part):
    """A part of the paths and channels that one launch computes; results of parts add up."""


class Graph(NamedTuple):
    """Neighbourhoods and what else has no derivative. Rows are targets or, in a transposed pass,
    sources.
    """

    rowptr: Any  # [rows + 1]
    col: Any  # [E], by slot
    edge: Any  # [E], the edge of each slot; None: the slot itself
    order: Any  # [rows], the order in which rows are visited; None: as they are
    type_i: Any  # [N_t]
    type_j: Any  # [N_s]
    num_types: Any  # T_s
    shift: Any  # [E, 3], by edge
    seed: Any  # scalar


def ceil_div(a: int, b: int) -> int:
    """Triton's own function costs microseconds."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is not below ``n``."""
    return 1 << max(n - 1, 0).bit_length()


def constants(value: Any) -> Any:
    """``value`` with every entry of nested tuples marked as a compile-time constant."""
    if not isinstance(value, tuple):
        return tl.constexpr(value)
    entries = [constants(entry) for entry in value]
    return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
