"""PyG's DimeNet++ on given edges. It needs torch-sparse, for its list of pairs of edges."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor
from torch_geometric.nn.models import DimeNetPlusPlus
from torch_geometric.nn.models.dimenet import triplets
from torch_geometric.utils import scatter


def has_torch_sparse() -> bool:
    """Whether torch-sparse is installed."""
    return find_spec("torch_sparse") is not None


class GivenDimeNet(DimeNetPlusPlus):
    """With edges and their vectors from ``vectors`` instead of a search, so that they can be
    periodic; angles are those between edges, as in the original, and pairs of edges that lead from
    an atom to itself or its images are left out.

    Args:
        vectors: Gives the edges and the vector of each, from its target to its source.
        cutoff: In Å.
        mean: Whether values of atoms are averaged, not summed.
    """

    def __init__(
        self, vectors: Callable[[Tensor], tuple[Tensor, Tensor]], cutoff: float, mean: bool
    ) -> None:
        super().__init__(
            hidden_channels=64,
            out_channels=1,
            num_blocks=3,
            int_emb_size=32,
            basis_emb_size=8,
            out_emb_channels=64,
            num_spherical=7,
            num_radial=6,
            cutoff=cutoff,
        )
        self.vectors = vectors
        self.reduce = "mean" if mean else "sum"

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
        edges, vectors = self.vectors(pos)
        i, j, _, _, _, kj, ji = triplets(edges, num_nodes=z.size(0))
        lengths = vectors.norm(dim=-1)
        first, second = vectors[ji], vectors[kj]
        normals = torch.linalg.cross(first, second).norm(dim=-1)
        angles = torch.atan2(normals, (first * second).sum(dim=-1))
        radial = self.rbf(lengths)
        spherical = self.sbf(lengths, angles, kj)
        messages = self.emb(z, radial, i, j)
        out = self.output_blocks[0](messages, radial, i, num_nodes=z.size(0))
        for interaction, output in zip(
            self.interaction_blocks, self.output_blocks[1:], strict=True
        ):
            messages = interaction(messages, radial, spherical, kj, ji)
            out = out + output(messages, radial, i, num_nodes=z.size(0))
        return scatter(out, batch, dim=0, reduce=self.reduce)
