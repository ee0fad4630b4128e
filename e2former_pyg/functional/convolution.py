"""Equivariant convolution over CSR neighbourhoods."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from ..graph import CSRNeighborhood
from ..precision import without_autocast
from ..radial import RadialSplines
from .backends import takes_triton
from .factorized import factorized_sums
from .inputs import PairTensor, as_pair, check_algorithm, check_edges, degree_of, node_strain
from .paths import as_orders, coupling
from .recompute import Axis, chunked
from .torch_backend import Spec, chunks_of, convolution_chunk, direct_sums


@without_autocast
def equivariant_convolution(
    v: Tensor,
    pos: Tensor | PairTensor,
    neighborhood: CSRNeighborhood,
    radial: RadialSplines,
    *,
    orders: int | Iterable[int],
    lmax: int | None = None,
    parity: str = "so3",
    edge_shift: Tensor | None = None,
    strain: Tensor | None = None,
    batch: Tensor | None = None,
    edge_bias: Tensor | None = None,
    algorithm: str = "direct",
    backend: str = "auto",
) -> Tensor:
    r"""SO(3)-equivariant convolution

    .. math::
        y_i^{(l_1, \ell, l_3)} = \sum_j \mathrm{env}(r_{ij}) \left( g_{h\ell}(r_{ij})
        + b_{ijh\ell} \right) \left[ v_{jh}^{(l_1)} \otimes Y^\ell(\hat r_{ij}) \right]^{(l_3)}

    for groups :math:`h` of channels, with :math:`r_{ij} = (x_i - x_j - s_{ij})(I + \epsilon)`.
    Radial functions also depend on the element types of :math:`i` and :math:`j`. Edges with
    :math:`r \ge r_c` contribute exactly zero. First and second derivatives are exact, and nothing
    with an edge dimension times a feature dimension is kept.

    From the `"E2Former" <https://arxiv.org/abs/2501.19216>`_ paper, in the direct form.

    Args:
        v (torch.Tensor): Values of the sources; group :math:`h` owns channels
            :math:`hC/G, \ldots, (h+1)C/G - 1`.
        pos (torch.Tensor or (torch.Tensor, torch.Tensor)): Positions in Å, or those of the
            sources and of the targets. Differences are taken in this dtype, then cast.
        neighborhood (CSRNeighborhood): The sources of each target.
        radial (RadialSplines): :math:`|\mathrm{orders}|\, G` radial functions :math:`g_{h\ell}`,
            groups fastest. Their number sets the number of groups :math:`G`.
        orders (int or set): The degrees :math:`\ell` of the harmonics; ``n`` means ``{n}``.
        lmax (int, optional): Highest output degree. (default: that of :obj:`v`)
        parity (str, optional): ``"so3"`` keeps all paths, ``"o3"`` those with even
            :math:`l_1 + \ell + l_3`. (default: :obj:`"so3"`)
        edge_shift (torch.Tensor, optional): Image offset of each edge's source in Å, in the
            order of the edge list from which :obj:`neighborhood` was made.
        strain (torch.Tensor, optional): Strain :math:`\epsilon` of each graph.
        batch (torch.Tensor, optional): The graph of each target, needed for several strains.
        edge_bias (torch.Tensor, optional): Added to the radial functions, in the order of the
            edge list.
        algorithm (str, optional): ``"direct"``, or ``"factorized"``, which expands the harmonics
            of edges in those of nodes (:mod:`e2former_pyg.functional.factorized`): the same
            function, always in PyTorch. It holds a row of products for each source and image, for
            each edge if :obj:`edge_shift` needs a gradient. (default: :obj:`"direct"`)
        backend (str, optional): ``"torch"``, ``"triton"`` (fused kernels, for orders up to 4 and
            degrees up to 6) or ``"auto"``, which takes the kernels for CUDA tensors where they
            support the call. (default: :obj:`"auto"`)

    Raises:
        TypeError: If a tensor has another kind of dtype.
        ValueError: If a shape or an option is not valid.
        RuntimeError: If :obj:`backend="triton"` cannot serve the call.

    Shapes:
        - **v:** :math:`(N_s, (l_\mathrm{in}+1)^2, C)`
        - **pos:** :math:`(N, 3)`, **edge_shift:** :math:`(|\mathcal{E}|, 3)`,
          **edge_bias:** :math:`(|\mathcal{E}|, |\mathrm{orders}|\, G)`
        - **strain:** :math:`(B, 3, 3)`
        - **output:** path rows :math:`(N_t, P, C)`, grouped by :math:`l_3`, then ordered by
          :math:`m_3` and path (:func:`~e2former_pyg.functional.coupling`)
    """
    source_pos, target_pos = as_pair(pos)
    check_algorithm(algorithm, backend)
    orders = as_orders(orders, "orders")
    functions = radial.num_functions
    check_edges(v, (source_pos, target_pos), neighborhood, radial, edge_shift, edge_bias, functions)
    groups, rest = divmod(functions, len(orders))
    if groups == 0 or rest or v.size(-1) % groups != 0:
        raise ValueError(
            f"`radial` must have G functions for each of the {len(orders)} orders, with G a "
            f"divisor of the {v.size(-1)} channels of `v`; got {functions} functions"
        )
    lmax_in = degree_of("v", v.size(1))
    spec = Spec(
        coupling(lmax_in, lmax_in if lmax is None else lmax, orders, parity),
        groups,
        radial.cutoff,
        radial.num_cells,
        max(orders),
        torch.promote_types(v.dtype, torch.float32),
    )
    strains, strain = strain, node_strain(strain, batch, neighborhood.num_targets, target_pos.dtype)
    if algorithm == "direct" and takes_triton(backend, v, spec.coupling, edge_shift=edge_shift):
        from .triton_backend import path_rows

        return path_rows(
            spec.coupling,
            neighborhood,
            radial,
            parity=parity,
            heads=groups,
            v=v,
            pos=(source_pos, target_pos),
            edge_shift=edge_shift,
            strain=strain,
            edge_bias=edge_bias,
        )
    if algorithm == "direct":
        sums = direct_sums(spec, neighborhood, v)
    else:
        positions = source_pos, target_pos
        sums = factorized_sums(spec, neighborhood, v, positions, edge_shift, strains, batch)
    inputs = {
        "pos_i": (Axis.TARGET, target_pos),
        "type_i": (Axis.TARGET, radial.target_type),
        "strain": (Axis.TARGET, strain),
        "pos_j": (Axis.SOURCE, sums.rows(source_pos)),
        "type_j": (Axis.SOURCE, sums.rows(radial.source_type)),
        "edge_shift": (Axis.EDGE, edge_shift),
        "edge_bias": (Axis.EDGE, None if edge_bias is None else edge_bias.to(spec.dtype)),
        "polynomials": (Axis.SHARED, radial.cell_polynomials(spec.dtype)),
        **sums.carried,
    }
    axes, tensors = zip(*inputs.values(), strict=True)
    shape = neighborhood.num_targets, spec.coupling.num_rows, v.size(-1)
    zeros = partial(v.new_zeros, shape, dtype=spec.dtype)
    function = partial(convolution_chunk, spec, sums.function)
    out = chunked(function, chunks_of(sums, functions), zeros, axes, tensors)
    return out.to(v.dtype)
