r"""Neighbour search of small systems, by trying all pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from .columns import multiply, squared_distance, take
from .ranges import expand_ranges, slice_limit, split_by_cost


def all_pairs(
    pos: Tensor,
    ptr: Tensor,
    batch: Tensor,
    cutoff: float,
    basis: Tensor | None = None,
    pbc: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, float]:
    r"""Finds the pairs of atoms by trying all pairs inside each graph, and of
    periodic images of the source the nearest one. This is fastest for small
    molecules and, on a GPU, wherever there are few enough pairs.

    Args:
        pos (torch.Tensor): Positions, :math:`(3, N)`, float64, sorted by graph.
        ptr (torch.Tensor): The first atom of each graph, :math:`(B + 1)`.
        batch (torch.Tensor): The graph of each atom, :math:`(N)`.
        cutoff (float): The largest distance, exclusive.
        basis (torch.Tensor, optional): For periodic systems, bases made by
            :meth:`search_basis` of which :meth:`one_image_suffices`,
            :math:`(B, 3, 3)`, float64. (default: :obj:`None`)
        pbc (torch.Tensor, optional): Their periodicity flags,
            :math:`(B, 3)`. (default: :obj:`None`)

    Returns:
        The edges (sources, targets) of shape :math:`(2, E)`, sorted by target,
        then source; the images of the sources in cell vectors, of shape
        :math:`(3, E)`, :obj:`None` without a :obj:`basis`; and the smallest
        squared distance.
    """
    first = ptr.index_select(0, batch)
    length = (ptr[1:] - ptr[:-1]).index_select(0, batch)
    places = None if basis is None else multiply(pos, torch.linalg.inv(basis), batch)
    closest = torch.inf
    edges, images = [batch.new_empty(2, 0)], [batch.new_empty(3, 0)]
    for begin, end, total in split_by_cost(length, slice_limit(pos.device)):
        owner, source = expand_ranges(first[begin:end], length[begin:end], total)
        target = owner + begin if begin > 0 else owner
        image = shift = None
        if places is not None and basis is not None and pbc is not None:
            graph = batch.index_select(0, target)
            image = take(places, target).sub_(take(places, source)).round_()
            image *= take(pbc.t(), graph)
            shift = multiply(image, basis, graph)
        distance2 = squared_distance(pos, target, pos, source, shift)
        keep = ((distance2 < cutoff * cutoff) & (target != source)).nonzero().squeeze(1)
        if keep.numel() > 0:
            closest = min(closest, float(distance2.index_select(0, keep).min()))
            edges.append(take(torch.stack((source, target)), keep))
            if image is not None:
                images.append(take(image, keep).long())
    joined = torch.cat(edges, dim=1)
    return joined, None if basis is None else torch.cat(images, dim=1), closest


def one_image_suffices(basis: Tensor, pbc: Tensor, cutoff: float) -> bool:
    r"""Whether no atom has two images of another one, or one of its own, as
    neighbours: cells are more than twice as high as the cutoff.
    """
    height = torch.linalg.inv(basis).norm(dim=1).reciprocal()
    return bool(((height > 2 * cutoff) | ~pbc).all())
