r"""Neighbour search of large and of periodic systems, with cell lists."""

from __future__ import annotations

import torch
from torch import Tensor

from .bins import fill_bins, pair_bins
from .columns import multiply, squared_distance, take
from .ranges import expand_ranges, slice_limit, split_by_cost

# Bins and the first distance test are a little wider than the cutoff, so that
# rounding in wrapped coordinates loses no pair; the last test is exact.
MARGIN = 1 + 1e-6


def cell_list_pairs(
    pos: Tensor,
    ptr: Tensor,
    batch: Tensor,
    basis: Tensor,
    pbc: Tensor,
    cutoff: float,
) -> tuple[Tensor, Tensor, float]:
    r"""Finds the pairs of atoms, and of atoms and periodic images, with cell
    lists, in time and memory linear in the number of atoms.

    Args:
        pos (torch.Tensor): Positions, :math:`(3, N)`, float64, sorted by graph.
        ptr (torch.Tensor): The first atom of each graph, :math:`(B + 1)`.
        batch (torch.Tensor): The graph of each atom, :math:`(N)`.
        basis (torch.Tensor): Bases made by :meth:`search_basis`,
            :math:`(B, 3, 3)`, float64.
        pbc (torch.Tensor): Periodicity flags, :math:`(B, 3)`.
        cutoff (float): The largest distance, exclusive.

    Returns:
        The edges (sources, targets) of shape :math:`(2, E)`, sorted by target,
        then source, then image; the images of the sources in cell vectors, for
        the positions given, of shape :math:`(3, E)`; and the smallest squared
        distance.
    """
    limit = slice_limit(pos.device)
    bins = fill_bins(pos, ptr, batch, basis, pbc, cutoff * MARGIN)
    pairs = pair_bins(bins, pbc, limit)
    shift = multiply(pairs.image, basis, bins.graph.index_select(0, pairs.owner))
    bin_of_atom = torch.repeat_interleave(bins.num_atoms, output_size=pos.size(1))

    # Targets are visited bin by bin, so that a slice stays in the caches.
    closest = torch.inf
    degrees: list[Tensor] = []
    sources: list[Tensor] = []
    images: list[Tensor] = []
    for begin, end, total in split_by_cost(pairs.candidates.index_select(0, bin_of_atom), limit):
        # Two expansions: atoms to (atom, neighbouring bin), and those to
        # (atom, atom in the neighbouring bin).
        bin_ = bin_of_atom[begin:end]
        num_pairs = pairs.num_pairs.index_select(0, bin_)
        atom, pair = expand_ranges(
            pairs.first.index_select(0, bin_), num_pairs, int(num_pairs.sum())
        )
        atom += begin
        center = take(bins.wrapped, atom) - take(shift, pair)
        partner = pairs.partner.index_select(0, pair)
        owner, source = expand_ranges(
            bins.first.index_select(0, partner), bins.num_atoms.index_select(0, partner), total
        )
        distance2 = squared_distance(center, owner, bins.wrapped, source)
        near = (distance2 < (cutoff * MARGIN) ** 2).nonzero().squeeze(1)

        owner, source = owner.index_select(0, near), source.index_select(0, near)
        target, pair = atom.index_select(0, owner), pair.index_select(0, owner)
        image = take(pairs.image, pair)
        image += take(bins.wrap, target) - take(bins.wrap, source)
        graph = bins.graph.index_select(0, pairs.owner.index_select(0, pair))
        distance2 = squared_distance(
            bins.pos, target, bins.pos, source, multiply(image, basis, graph)
        )
        keep = (distance2 < cutoff * cutoff) & ((target != source) | (image != 0).any(0))
        kept = keep.nonzero().squeeze(1)
        if kept.numel() == 0:
            degrees.append(kept.new_zeros(end - begin))
            continue
        closest = min(closest, float(distance2.index_select(0, kept).min()))

        target, source = target.index_select(0, kept), source.index_select(0, kept)
        source = bins.order.index_select(0, source)
        # Stable, and images of one pair come in ascending order already.
        perm = torch.sort(target * pos.size(1) + source, stable=True).indices
        degrees.append(torch.bincount(target - begin, minlength=end - begin))
        sources.append(source.index_select(0, perm))
        images.append(take(image, kept.index_select(0, perm)))

    if len(sources) == 0:
        return batch.new_empty(2, 0), batch.new_empty(3, 0), closest
    # From the order of the bins to that of the caller.
    degree = torch.cat(degrees)
    rank = torch.empty_like(bins.order)
    rank[bins.order] = torch.arange(rank.size(0), device=rank.device)
    first = (degree.cumsum(0) - degree).index_select(0, rank)
    num_edges = sum(source.size(0) for source in sources)
    target, perm = expand_ranges(first, degree.index_select(0, rank), num_edges)
    edge_index = torch.stack((torch.cat(sources).index_select(0, perm), target))
    return edge_index, take(torch.cat(images, dim=1), perm), closest
