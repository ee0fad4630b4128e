r"""The cutoff envelope and the radial functions :math:`g(r; z_i, z_j)`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .bags import bag_sums
from .checks import check_range, check_shape, values_known
from .engine import is_read
from .precision import autograd_without_autocast, without_autocast
from .so3.degrees import build_constant

__all__ = ["MAX_ATOMIC_NUMBER", "RadialNetwork", "RadialSplines", "envelope"]

MAX_ATOMIC_NUMBER = 118
"""The largest atomic number that models accept."""

# Rows: powers of t in [0, 1); columns: the four cubic B-splines that overlap a cell.
BASIS = (
    (1 / 6, 4 / 6, 1 / 6, 0.0),
    (-3 / 6, 0.0, 3 / 6, 0.0),
    (3 / 6, -6 / 6, 3 / 6, 0.0),
    (-1 / 6, 3 / 6, -3 / 6, 1 / 6),
)


# The outer functions are for the compiler, which looks past a decorator through a cache.
@torch.compiler.assume_constant_result
def _basis(num_cells: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _cached_basis(num_cells, dtype, device)


@cache
def _cached_basis(num_cells: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """From the coefficients of B-splines to those of the polynomial of each cell,
    ``[4 * num_cells, num_cells + 3]``.
    """

    def build() -> Tensor:
        basis = torch.tensor(BASIS, dtype=dtype, device="cpu")
        matrix = basis.new_zeros(num_cells, 4, num_cells + 3)
        for cell in range(num_cells):
            matrix[cell, :, cell : cell + 4] = basis
        return matrix.flatten(0, 1).to(device)

    return build_constant(build)


@torch.compiler.assume_constant_result
def _element_list(elements: tuple[int, ...], device: torch.device) -> Tensor:
    return _cached_element_list(elements, device)


@cache
def _cached_element_list(elements: tuple[int, ...], device: torch.device) -> Tensor:
    return build_constant(lambda: torch.tensor(elements, device=device))


def envelope(length: Tensor, cutoff: float | Tensor) -> Tensor:
    r"""The smooth cutoff :math:`(1-x)^3 (1+3x+6x^2)` with :math:`x = r/r_c`, zero for
    :math:`x \ge 1`.

    It has two continuous derivatives. The factorised form keeps full relative precision up to
    the cutoff, where the expanded polynomial :math:`1-10x^3+15x^4-6x^5` cancels.

    Args:
        length (torch.Tensor): Distances :math:`r` in Å.
        cutoff (float or torch.Tensor): The cutoff :math:`r_c` in Å.

    Shapes:
        - **length:** :math:`(*)`
        - **output:** :math:`(*)`, from one at :math:`r = 0` to zero
    """
    x = (length / cutoff).clamp(max=1.0)
    rest = 1 - x
    return rest * rest * rest * (1 + x * (3 + 6 * x))


class RadialSplines(NamedTuple):
    r"""Radial functions of every pair of element types as uniform cubic B-splines on
    :math:`[0, r_c]`: twice continuously differentiable, with exact derivatives.

    With :math:`K` coefficients the knots are :math:`r_c / (K - 3)` apart.
    """

    coefficients: Tensor
    """Shape ``[target types, source types, K, F]``."""
    target_type: Tensor
    """Type of each target node, int64 ``[N_target]``."""
    source_type: Tensor
    """Type of each source node, int64 ``[N_source]``."""
    cutoff: float
    """The cutoff :math:`r_c` in Å."""

    @property
    def num_functions(self) -> int:
        return self.coefficients.size(-1)

    @property
    def num_cells(self) -> int:
        return self.coefficients.size(2) - 3

    def cell_polynomials(self, dtype: torch.dtype | None = None) -> Tensor:
        """The same functions as one cubic polynomial per cell, ``[T_t, T_s, K - 3, 4, F]``.

        Coefficients are cast to ``dtype`` first: rounded polynomials would not meet at the knots.
        """
        coefficients = self.coefficients.to(dtype)
        basis = _basis(self.num_cells, coefficients.dtype, coefficients.device)
        return (basis @ coefficients).unflatten(2, (-1, 4))


def spline_cells(length: Tensor, num_cells: int, cutoff: float) -> tuple[Tensor, Tensor]:
    r"""The cell of each distance, and the place :math:`t \in [0, 1]` in it.

    Args:
        length (torch.Tensor): Distances in Å.
        num_cells (int): Number of cells in :math:`[0, r_c]`.
        cutoff (float): The cutoff :math:`r_c` in Å, to which distances are clamped.
    """
    position = length.clamp(max=cutoff) * (num_cells / cutoff)
    # Both ends: what a position that is not finite gives must stay an index.
    cell = position.detach().long().clamp(0, num_cells - 1)
    return cell, position - cell


def evaluate_splines(
    polynomials: Tensor, cell: Tensor, t: Tensor, target_type: Tensor, source_type: Tensor
) -> Tensor:
    r"""Evaluates radial functions on edges.

    Args:
        polynomials (torch.Tensor): :meth:`RadialSplines.cell_polynomials`.
        cell (torch.Tensor): The cell of each edge, from :meth:`spline_cells`.
        t (torch.Tensor): The place in it.
        target_type (torch.Tensor): Type of each edge's target.
        source_type (torch.Tensor): Type of each edge's source.

    Shapes:
        - **cell, t, target_type, source_type:** :math:`(*)`
        - **output:** :math:`(*, F)`
    """
    _, num_sources, num_cells, _, _ = polynomials.shape
    index = (target_type * num_sources + source_type) * num_cells + cell
    values = _Evaluate.apply(polynomials.flatten(0, 2), t.reshape(-1), index.reshape(-1), 0)
    return values.unflatten(0, cell.shape)


def _powers(t: Tensor, derivative: int) -> Tensor:
    """``d^n(t**a)/dt^n`` for ``a`` from 0 to 3, ``[E, 4]``."""
    powers = [torch.zeros_like(t)] * derivative
    power = torch.ones_like(t)
    for exponent in range(derivative, 4):
        powers.append(power * math.perm(exponent, derivative))
        power = power * t
    return torch.stack(powers[:4], dim=1)


@autograd_without_autocast
class _Evaluate(torch.autograd.Function):
    """``out[e] = sum_a d^n(t**a)/dt^n polynomials[index[e], a]``.

    There are no gathered coefficients. Its derivatives are itself, with the next ``n``, and
    :class:`_Accumulate`, so that it can be differentiated any number of times.
    """

    @staticmethod
    def forward(ctx: Any, polynomials: Tensor, t: Tensor, index: Tensor, derivative: int) -> Tensor:
        ctx.save_for_backward(polynomials, t, index)
        ctx.derivative = derivative
        rows = 4 * index.unsqueeze(-1) + torch.arange(4, device=index.device)
        start = torch.arange(0, 4 * len(t) + 1, 4, device=index.device)
        weights = _powers(t, derivative).flatten()
        return bag_sums(polynomials.flatten(0, 1), rows.flatten(), start, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        polynomials, t, index = ctx.saved_tensors
        n = ctx.derivative
        grad_polynomials = grad_t = None
        if ctx.needs_input_grad[0] and is_read(ctx, 0):
            grad_polynomials = _Accumulate.apply(grad, t, index, n, polynomials.size(0))
        if ctx.needs_input_grad[1] and is_read(ctx, 1):
            grad_t = (grad * _Evaluate.apply(polynomials, t, index, n + 1)).sum(-1)
        return grad_polynomials, grad_t, None, None


@autograd_without_autocast
class _Accumulate(torch.autograd.Function):
    """The adjoint of :class:`_Evaluate` with respect to the polynomials."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, t: Tensor, index: Tensor, derivative: int, size: int
    ) -> Tensor:
        ctx.save_for_backward(grad, t, index)
        ctx.derivative = derivative
        edges = _powers(t, derivative).unsqueeze(-1) * grad.unsqueeze(1)
        return grad.new_zeros(size, 4, grad.size(1)).index_add_(0, index, edges)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        grad, t, index = ctx.saved_tensors
        n = ctx.derivative
        grad_grad = grad_t = None
        if ctx.needs_input_grad[0] and is_read(ctx, 0):
            grad_grad = _Evaluate.apply(grad_out, t, index, n)
        if ctx.needs_input_grad[1] and is_read(ctx, 1):
            grad_t = (grad * _Evaluate.apply(grad_out, t, index, n + 1)).sum(-1)
        return grad_grad, grad_t, None, None, None


class RadialNetwork(nn.Module):
    r"""Gives the B-spline coefficients of radial functions :math:`g(r; z_i, z_j)` for the pairs
    of elements that are present,

    .. math::
        c(z_i, z_j) = W_3\, \sigma(W_2\, \sigma(t_{z_i} + s_{z_j}))

    with element tables :math:`t, s` and :math:`\sigma` = SiLU. Cost and memory depend on the
    number of element pairs, not on the number of edges. Without :obj:`pairs`, the coefficients are
    parameters that serve all elements.

    Args:
        num_functions (int): Number of radial functions :math:`F`.
        num_radial (int, optional): Number of B-spline coefficients of each function, at least
            4. (default: :obj:`16`)
        cutoff (float, optional): Cutoff in Å. (default: :obj:`5.0`)
        hidden_channels (int, optional): Width of the network. (default: :obj:`64`)
        elements (list[int], optional): The atomic numbers that can occur. Fixes the shapes, for
            compilation and graph capture; other atomic numbers are then errors. By default the
            elements present are found at each call. (default: :obj:`None`)
        pairs (bool, optional): If set to :obj:`False`, the functions are the same for all pairs of
            elements. (default: :obj:`True`)

    Shapes:
        - **input:** atomic numbers of the targets :math:`(N_t)` and of the sources
          :math:`(N_s)`, 0 for a node without an element
        - **output:** :class:`RadialSplines`
    """

    def __init__(
        self,
        num_functions: int,
        num_radial: int = 16,
        cutoff: float = 5.0,
        hidden_channels: int = 64,
        elements: Sequence[int] | None = None,
        pairs: bool = True,
    ) -> None:
        super().__init__()
        if num_radial < 4:
            raise ValueError(f"`num_radial` must be at least 4, got {num_radial}")
        if not 0 < cutoff < float("inf"):
            raise ValueError(f"`cutoff` must be positive and finite (Å), got {cutoff}")
        self.num_functions = num_functions
        self.num_radial = num_radial
        self.cutoff = float(cutoff)
        self.hidden_channels = hidden_channels
        self.elements = None if elements is None else tuple(sorted(set(elements)))
        if self.elements == ():
            raise ValueError("`elements` must hold at least one atomic number, got none")
        if self.elements is not None:
            check_atomic_numbers(torch.tensor(self.elements, device="cpu"), "elements")
        self.coefficients = None
        if pairs:
            self.target_table = nn.Embedding(MAX_ATOMIC_NUMBER + 1, hidden_channels)
            self.source_table = nn.Embedding(MAX_ATOMIC_NUMBER + 1, hidden_channels)
            self.hidden = nn.Linear(hidden_channels, hidden_channels)
            self.out = nn.Linear(hidden_channels, num_radial * num_functions)
        else:
            self.coefficients = nn.Parameter(torch.empty(num_radial * num_functions))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        if self.coefficients is not None:
            # Small: what is learned is smooth, what is drawn is not.
            nn.init.normal_(self.coefficients, std=0.1)
            return
        nn.init.normal_(self.target_table.weight)
        nn.init.normal_(self.source_table.weight)
        self.hidden.reset_parameters()
        # Coefficients of about unit variance: SiLU units here have a second moment near 1/8.
        nn.init.normal_(self.out.weight, std=(8 / self.hidden_channels) ** 0.5)
        nn.init.zeros_(self.out.bias)

    def check_elements(self, numbers: Sequence[int]) -> None:
        """Raises on atomic numbers other than the :obj:`elements` given at construction."""
        known = self.elements
        unknown = [] if known is None else [number for number in numbers if number not in known]
        if unknown:
            raise ValueError(
                f"`z` holds atomic number {unknown[0]}, expected one of the `elements` given at "
                f"construction, {list(known or ())}"
            )

    def _types(self, z_target: Tensor, z_source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The elements that occur and the position of each node's element among them."""
        z = z_target if z_target is z_source else torch.cat([z_target, z_source])
        z = z.long()
        if self.elements is None:
            present, types = z.unique(return_inverse=True)
        else:
            present = _element_list(self.elements, z_target.device)
            types = torch.searchsorted(present, z).clamp(max=len(self.elements) - 1)
            if values_known(z):
                self.check_elements(z[present[types] != z].tolist())
        if z_target is z_source:
            return present, types, types
        return present, types[: z_target.numel()], types[z_target.numel() :]

    @without_autocast
    def forward(self, z_target: Tensor, z_source: Tensor) -> RadialSplines:
        check_atomic_numbers(z_target, "z")
        if z_source is not z_target:
            check_atomic_numbers(z_source, "z")
        if self.coefficients is None:
            present, target_type, source_type = self._types(z_target, z_source)
            pairs = self.target_table(present).unsqueeze(1) + self.source_table(present)
            hidden = nn.functional.silu(self.hidden(nn.functional.silu(pairs)))
            coefficients = self.out(hidden)
        else:
            if self.elements is not None:
                self._types(z_target, z_source)  # refuses others
            target_type = source_type = torch.zeros_like(z_target, dtype=torch.long)
            if z_source is not z_target:
                source_type = torch.zeros_like(z_source, dtype=torch.long)
            coefficients = self.coefficients.view(1, 1, -1)
        coefficients = coefficients.unflatten(-1, (self.num_radial, self.num_functions))
        return RadialSplines(coefficients, target_type, source_type, self.cutoff)

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.num_functions}, num_radial={self.num_radial}, "
            f"cutoff={self.cutoff})"
        )


def check_atomic_numbers(z: Tensor, name: str) -> None:
    """Raises unless ``z`` holds integers, and where values are known, unless they are 0..118."""
    check_shape(name, z, "N")
    if z.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"`{name}` must be an integer tensor (int64 or int32), got {z.dtype}")
    check_range(name, z, 0, MAX_ATOMIC_NUMBER)
