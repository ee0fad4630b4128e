"""Equivariant attention over CSR neighbourhoods."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from ..checks import check_floating, check_shape
from ..graph import CSRNeighborhood
from ..precision import without_autocast
from ..radial import RadialSplines
from .backends import takes_triton
from .factorized import factorized_sums
from .inputs import (
    PairTensor,
    as_pair,
    check_algorithm,
    check_edges,
    degree_of,
    node_strain,
)
from .paths import as_orders, coupling
from .recompute import Axis, chunked
from .torch_backend import Spec, attention_chunk, chunks_of, direct_sums


@without_autocast
def equivariant_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor | PairTensor,
    neighborhood: CSRNeighborhood,
    radial: RadialSplines,
    *,
    orders: int | Iterable[int],
    sink: Tensor,
    lmax: int | None = None,
    parity: str = "so3",
    u: Tensor | None = None,
    edge_shift: Tensor | None = None,
    strain: Tensor | None = None,
    batch: Tensor | None = None,
    edge_bias: Tensor | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    keep_rows: bool = True,
    algorithm: str = "direct",
    backend: str = "auto",
) -> Tensor:
    r"""SO(3)-equivariant attention with an envelope, a sink and a tensor product with the
    direction of the edge. For head :math:`h`

    .. math::
        s_{ijh} &= g^1_h(r_{ij}) \Big( \frac{q_{ih} \cdot k_{jh}}{\sqrt{D}}
        + \sum_{1 \le \ell, m} Y^\ell_m(\hat r_{ij})\, u_{i,\ell m h} \Big) + g^0_h(r_{ij})
        + b_{ijh}

        \alpha_{ijh} &= \frac{\mathrm{env}(r_{ij}) \exp(s_{ijh})}
        {\exp(b_h) + \sum_j \mathrm{env}(r_{ij}) \exp(s_{ijh})}

        y_i^{(l_1, \ell, l_3)} &= \sum_j \alpha_{ijh}\, g^2_{h\ell}(r_{ij})
        \left[ v_{jh}^{(l_1)} \otimes Y^\ell(\hat r_{ij}) \right]^{(l_3)}

    with :math:`r_{ij} = (x_i - x_j - s_{ij})(I + \epsilon)`. Radial functions also depend on the
    element types of :math:`i` and :math:`j`. Edges with :math:`r \ge r_c` contribute exactly zero.
    The moments :math:`\sum_j w_{ij} Y(\hat r_{ij}) v_j` are coupled once per node, so that nothing
    with an edge dimension times a feature dimension is kept; first and second derivatives are
    exact.

    From the `"E2Former-V2" <https://arxiv.org/abs/2601.16622>`_ paper, in the direct form.

    Args:
        q (torch.Tensor): Queries of the targets.
        k (torch.Tensor): Keys of the sources.
        v (torch.Tensor): Values of the sources; head :math:`h` owns channels
            :math:`hC/H, \ldots, (h+1)C/H - 1`.
        pos (torch.Tensor or (torch.Tensor, torch.Tensor)): Positions in Å, or those of the
            sources and of the targets. Differences are taken in this dtype, then cast.
        neighborhood (CSRNeighborhood): The sources of each target.
        radial (RadialSplines): :math:`(2 + |\mathrm{orders}|) H` radial functions: :math:`g^1`,
            :math:`g^0`, then :math:`g^2` of each order, heads fastest.
        orders (int or set): The degrees :math:`\ell` of the harmonics; ``n`` means ``{n}``.
        sink (torch.Tensor): The logits :math:`b_h` of the sink.
        lmax (int, optional): Highest output degree. (default: that of :obj:`v`)
        parity (str, optional): ``"so3"`` keeps all paths, ``"o3"`` those with even
            :math:`l_1 + \ell + l_3`. (default: :obj:`"so3"`)
        u (torch.Tensor, optional): Directional term; its row 0 is ignored.
        edge_shift (torch.Tensor, optional): Image offset of each edge's source in Å, in the
            order of the edge list from which :obj:`neighborhood` was made.
        strain (torch.Tensor, optional): Strain :math:`\epsilon` of each graph.
        batch (torch.Tensor, optional): The graph of each target, needed for several strains.
        edge_bias (torch.Tensor, optional): Additive logits, in the order of the edge list.
        dropout (float, optional): Probability with which :math:`\alpha_{ijh}` is set to zero;
            needs a :obj:`seed`. (default: :obj:`0.0`)
        seed (torch.Tensor, optional): Scalar int64 seed of the dropout mask.
        keep_rows (bool, optional): If set to :obj:`False`, the path rows are not kept for the
            kernels' backward pass, which saves their memory where nothing else keeps them, as in
            models with frozen weights. Derivatives by queries, keys, values and positions do
            without them; those by strains, coefficients and biases, and with :obj:`u`, compute
            the rows of many nodes again. (default: :obj:`True`)
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
        - **q:** :math:`(N_t, H, D)`, **k:** :math:`(N_s, H, D)`
        - **v:** :math:`(N_s, (l_\mathrm{in}+1)^2, C)`
        - **pos:** :math:`(N, 3)`, **edge_shift:** :math:`(|\mathcal{E}|, 3)`,
          **edge_bias:** :math:`(|\mathcal{E}|, H)`
        - **sink:** :math:`(H)`, **u:** :math:`(N_t, (l+1)^2, H)`, **strain:** :math:`(B, 3, 3)`
        - **output:** path rows :math:`(N_t, P, C)`, grouped by :math:`l_3`, then ordered by
          :math:`m_3` and path (:func:`~e2former_pyg.functional.coupling`)
    """
    source_pos, target_pos = as_pair(pos)
    check_algorithm(algorithm, backend)
    orders = as_orders(orders, "orders")
    check_shape("q", q, neighborhood.num_targets, "H", "D")
    if q.size(2) == 0:
        raise ValueError(f"`q` must have channels, got shape {list(q.shape)}")
    heads = q.size(1)
    check_shape("k", k, neighborhood.num_sources, heads, q.size(2))
    check_shape("sink", sink, heads)
    check_edges(v, (source_pos, target_pos), neighborhood, radial, edge_shift, edge_bias, heads)
    if v.size(-1) % heads != 0:
        raise ValueError(
            f"`v` must have channels divisible by the {heads} heads of `q`, got {v.size(-1)}"
        )
    check_shape(
        "radial.coefficients", radial.coefficients, "T", "T", "K", (2 + len(orders)) * heads
    )
    lmax_in = degree_of("v", v.size(1))
    lmax_u = 0
    if u is not None:
        check_shape("u", u, neighborhood.num_targets, "(l + 1)**2", heads)
        lmax_u = degree_of("u", u.size(1))
    for name, tensor in (("q", q), ("k", k), ("u", u), ("sink", sink)):
        check_floating(name, tensor)
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be in [0, 1), got {dropout}")
    if dropout > 0 and seed is None:
        raise ValueError("`seed` must be given with `dropout`")

    spec = Spec(
        coupling(lmax_in, lmax_in if lmax is None else lmax, orders, parity),
        heads,
        radial.cutoff,
        radial.num_cells,
        max(*orders, lmax_u),
        torch.promote_types(v.dtype, torch.float32),
        dropout,
    )
    strains, strain = strain, node_strain(strain, batch, neighborhood.num_targets, target_pos.dtype)
    if algorithm == "direct" and takes_triton(
        backend, v, spec.coupling, lmax_u, edge_shift=edge_shift
    ):
        from .triton_backend import path_rows

        return path_rows(
            spec.coupling,
            neighborhood,
            radial,
            parity=parity,
            heads=heads,
            q=q,
            k=k,
            v=v,
            sink=sink,
            u=u,
            pos=(source_pos, target_pos),
            edge_shift=edge_shift,
            strain=strain,
            edge_bias=edge_bias,
            dropout=dropout,
            seed=seed,
            keep_rows=keep_rows,
        )
    if algorithm == "direct":
        sums = direct_sums(spec, neighborhood, v)
    else:
        positions = source_pos, target_pos
        sums = factorized_sums(spec, neighborhood, v, positions, edge_shift, strains, batch)
    inputs = {
        "q": (Axis.TARGET, q.to(spec.dtype)),
        "u": (Axis.TARGET, None if u is None else u.to(spec.dtype)),
        "pos_i": (Axis.TARGET, target_pos),
        "type_i": (Axis.TARGET, radial.target_type),
        "strain": (Axis.TARGET, strain),
        "k": (Axis.SOURCE, sums.rows(k.to(spec.dtype))),
        "pos_j": (Axis.SOURCE, sums.rows(source_pos)),
        "type_j": (Axis.SOURCE, sums.rows(radial.source_type)),
        "edge_shift": (Axis.EDGE, edge_shift),
        "edge_bias": (Axis.EDGE, None if edge_bias is None else edge_bias.to(spec.dtype)),
        "polynomials": (Axis.SHARED, radial.cell_polynomials(spec.dtype)),
        "sink": (Axis.SHARED, sink.to(spec.dtype)),
        "seed": (Axis.SHARED, seed if dropout > 0 else None),
        **sums.carried,
    }
    axes, tensors = zip(*inputs.values(), strict=True)
    shape = neighborhood.num_targets, spec.coupling.num_rows, v.size(-1)
    zeros = partial(v.new_zeros, shape, dtype=spec.dtype)
    function = partial(attention_chunk, spec, sums.function)
    chunks = chunks_of(sums, radial.num_functions, q.size(1) * q.size(2))
    out = chunked(function, chunks, zeros, axes, tensors)
    return out.to(v.dtype)
