r"""The cell lists: atoms sorted into bins, and pairs of bins close to each other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .columns import multiply, take
from .ranges import expand_ranges, split_by_cost

# Keeps bin numbers of very extended, thinly filled systems inside int64.
MAX_BINS_PER_DIRECTION = 2**16


class Bins(NamedTuple):
    r"""Atoms sorted into bins, and the occupied bins."""

    order: Tensor  # [N] atoms sorted by bin; what follows is in this order
    pos: Tensor  # [3, N] positions as given
    wrapped: Tensor  # [3, N] positions inside the cell
    wrap: Tensor  # [3, N] cell vectors subtracted from the positions given
    first: Tensor  # [M] first atom of each occupied bin
    num_atoms: Tensor  # [M] atoms in each occupied bin
    graph: Tensor  # [M] graph of each occupied bin
    place: Tensor  # [3, M] coordinates of each occupied bin along the directions
    number: Tensor  # [M] ascending bin number
    base: Tensor  # [B] number of the first bin of each graph
    num_bins: Tensor  # [3, B] bins along each direction
    reach: Tensor  # [3, B] how many bins a neighbour can be away


class BinPairs(NamedTuple):
    r"""Pairs of occupied bins that are close to each other, sorted by the
    first one."""

    first: Tensor  # [M] first pair of each bin
    num_pairs: Tensor  # [M] pairs of each bin
    candidates: Tensor  # [M] atoms in all partners of each bin
    owner: Tensor  # [P] the first bin
    partner: Tensor  # [P] the other bin
    image: Tensor  # [3, P] cell vectors added to the partner


def fill_bins(
    pos: Tensor, ptr: Tensor, batch: Tensor, basis: Tensor, pbc: Tensor, width: float
) -> Bins:
    r"""Sorts atoms into bins of at least a given width, or, in cells thinner
    than that, into one bin. The arguments are those of
    :meth:`cell_list_pairs`.
    """
    inverse = torch.linalg.inv(basis)
    height = inverse.norm(dim=1).reciprocal().t()
    periodic = pbc.t()

    # Coordinates along the directions, pos @ inverse.
    x = multiply(pos, inverse, batch)
    wrap = torch.where(take(periodic, batch), x.floor(), 0.0)
    x = x - wrap
    wrapped = pos - multiply(wrap, basis, batch)

    # Open directions, whose coordinate is in Å, are divided into bins of the
    # given width from the first to the last atom, periodic ones evenly.
    size = (3, ptr.size(0) - 1)
    where = batch.expand(3, -1)
    low = x.new_full(size, torch.inf).scatter_reduce(1, where, x, "amin")
    high = x.new_full(size, -torch.inf).scatter_reduce(1, where, x, "amax")
    low = torch.where(periodic | low.isinf(), 0.0, low)
    extent = (high - low).clamp(min=0.0)
    even, reach = _divide(height, width)
    num_bins = torch.where(periodic, even, (extent / width).floor() + 1)
    num_bins = num_bins.clamp(1, MAX_BINS_PER_DIRECTION)
    thickness = torch.where(periodic, 1.0 / num_bins, (extent / num_bins).clamp(min=width))
    reach = torch.where(periodic, reach, num_bins > 1).long()

    num_bins = num_bins.long()
    place = ((x - take(low, batch)) / take(thickness, batch)).long()
    place = torch.minimum(place.clamp_(min=0), take(num_bins, batch) - 1)
    bins_of_graph = num_bins.prod(0)
    base = bins_of_graph.cumsum(0) - bins_of_graph
    number = _bin_number(place, take(num_bins, batch), base.index_select(0, batch))

    number, order = torch.sort(number, stable=True)
    number, num_atoms = torch.unique_consecutive(number, return_counts=True)
    first = num_atoms.cumsum(0) - num_atoms
    leader = order.index_select(0, first)
    return Bins(
        order=order,
        pos=take(pos, order),
        wrapped=take(wrapped, order),
        wrap=take(wrap.int(), order),
        first=first,
        num_atoms=num_atoms,
        graph=batch.index_select(0, leader),
        place=take(place, leader),
        number=number,
        base=base,
        num_bins=num_bins,
        reach=reach,
    )


def _divide(height: Tensor, width: float) -> tuple[Tensor, Tensor]:
    r"""The number of bins for cells of some heights, and how many bins away
    atoms closer than :obj:`width` can be.

    One bin away, or two where bins of half the width cover the neighbourhood
    so much better that they pay for their larger number: where the height is a
    few times the width, and no near multiple of it.
    """
    one, two = (height / width).floor(), (2 * height / width).floor()
    use_two = 5 / two < 0.8 * 3 / one
    num_bins = torch.where(use_two, two, one).clamp(min=1)
    reach = torch.where(one < 1, (width / height).ceil(), torch.where(use_two, 2.0, 1.0))
    return num_bins, reach


def _bin_number(place: Tensor, num_bins: Tensor, base: Tensor) -> Tensor:
    return base + (place[0] * num_bins[1] + place[1]) * num_bins[2] + place[2]


def pair_bins(bins: Bins, pbc: Tensor, limit: int) -> BinPairs:
    r"""Finds the pairs of occupied bins, and of bins and periodic images,
    whose atoms can be within reach of each other.
    """
    span = 2 * bins.reach + 1
    num_offsets = span.prod(0).index_select(0, bins.graph)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for begin, end, total in split_by_cost(num_offsets, limit):
        length = num_offsets[begin:end]
        owner, offset = expand_ranges(torch.zeros_like(length), length, total)
        owner += begin
        graph = bins.graph.index_select(0, owner)
        reach, width = take(bins.reach, graph), take(span, graph)
        num_bins = take(bins.num_bins, graph)
        plane = width[1] * width[2]
        step = torch.stack((offset // plane, offset % plane // width[2], offset % width[2])).sub_(
            reach
        )

        place = take(bins.place, owner) + step
        image = torch.div(place, num_bins, rounding_mode="floor")
        place -= image * num_bins
        inside = ((image == 0) | take(pbc.t(), graph)).all(0)
        number = _bin_number(place, num_bins, bins.base.index_select(0, graph))
        partner = torch.searchsorted(bins.number, number).clamp_(max=bins.number.size(0) - 1)
        occupied = bins.number.index_select(0, partner) == number
        keep = (inside & occupied).nonzero().squeeze(1)
        found.append(
            (
                owner.index_select(0, keep),
                partner.index_select(0, keep),
                take(image, keep).int(),
            )
        )

    owner, partner, image = (torch.cat(parts, dim=-1) for parts in zip(*found, strict=True))
    zeros = torch.zeros_like(bins.first)
    num_pairs = zeros.index_add(0, owner, torch.ones_like(owner))
    candidates = zeros.index_add(0, owner, bins.num_atoms.index_select(0, partner))
    return BinPairs(
        first=num_pairs.cumsum(0) - num_pairs,
        num_pairs=num_pairs,
        candidates=candidates,
        owner=owner,
        partner=partner,
        image=image,
    )
