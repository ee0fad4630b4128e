"""The repulsion of nuclei at short distances."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from ..functional.geometry import edge_vectors
from ..radial import MAX_ATOMIC_NUMBER, envelope
from ..so3.degrees import build_constant

# Ziegler, Biersack and Littmark: (coefficient, exponent) of the screening function.
SCREENING = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))
SCREENING_LENGTH = 0.46850  # in Å, about 0.8854 Bohr radii
COULOMB = 14.399645  # e^2 / (4 pi eps_0) in eV Å

# Covalent radii in Å of hydrogen to curium (Cordero et al., doi:10.1039/b801115j).
# fmt: off
RADII = (
    0.31, 0.28, 1.28, 0.96, 0.84, 0.76, 0.71, 0.66, 0.57, 0.58, 1.66, 1.41, 1.21, 1.11, 1.07, 1.05,
    1.02, 1.06, 2.03, 1.76, 1.70, 1.60, 1.53, 1.39, 1.39, 1.32, 1.26, 1.24, 1.32, 1.22, 1.22, 1.20,
    1.19, 1.20, 1.20, 1.16, 2.20, 1.95, 1.90, 1.75, 1.64, 1.54, 1.47, 1.46, 1.42, 1.39, 1.45, 1.44,
    1.42, 1.39, 1.39, 1.38, 1.39, 1.40, 2.44, 2.15, 2.07, 2.04, 2.03, 2.01, 1.99, 1.98, 1.98, 1.96,
    1.94, 1.92, 1.92, 1.89, 1.90, 1.87, 1.87, 1.75, 1.70, 1.62, 1.51, 1.44, 1.41, 1.36, 1.36, 1.32,
    1.45, 1.46, 1.48, 1.40, 1.50, 1.50, 2.60, 2.21, 2.15, 2.06, 2.00, 1.96, 1.90, 1.87, 1.80, 1.69,
)
# fmt: on


# The outer function is for the compiler, which looks past a decorator through a cache.
@torch.compiler.assume_constant_result
def _radii(device: torch.device) -> Tensor:
    return _cached_radii(device)


@cache
def _cached_radii(device: torch.device) -> Tensor:
    # None is known beyond curium, whose radius serves. Number 0 is no nucleus.
    values = (0.0, *RADII, *(RADII[-1:] * (MAX_ATOMIC_NUMBER - len(RADII))))
    return build_constant(lambda: torch.tensor(values, dtype=torch.float64, device=device))


def zbl_energy(length: Tensor, z_i: Tensor, z_j: Tensor) -> Tensor:
    r"""The universal potential of Ziegler, Biersack and Littmark between two nuclei in eV,
    without a cutoff.

    Args:
        length (torch.Tensor): Distances in Å, float64.
        z_i (torch.Tensor): Atomic numbers of one nucleus of each pair.
        z_j (torch.Tensor): Atomic numbers of the other.
    """
    z_i, z_j = z_i.to(length.dtype), z_j.to(length.dtype)
    x = length * ((z_i**0.23 + z_j**0.23) / SCREENING_LENGTH)
    screening = torch.zeros_like(x)
    for coefficient, exponent in SCREENING:
        screening = screening + coefficient * torch.exp(-exponent * x)
    return COULOMB * z_i * z_j / length * screening


class ZBLRepulsion(nn.Module):
    r"""Keeps atoms apart where a trained model has seen none: the screened repulsion of nuclei of
    Ziegler, Biersack and Littmark (*The Stopping and Range of Ions in Matter*, 1985),

    .. math::
        E_i = \frac{1}{2} \sum_j \frac{e^2}{4 \pi \epsilon_0} \frac{z_i z_j}{r_{ij}}\,
        \phi\!\left( \frac{r_{ij}}{a_{ij}} \right) u(r_{ij}), \qquad
        a_{ij} = \frac{0.4685\,\textrm{Å}}{z_i^{0.23} + z_j^{0.23}}

    with the screening function :math:`\phi`, a sum of four exponentials. The cutoff envelope
    :math:`u` (:func:`~e2former_pyg.radial.envelope`) has two continuous derivatives and ends at the
    sum of the covalent radii of the pair (Cordero *et al.*, as in MACE), or at :obj:`cutoff` where
    that is less. It has no parameters and computes in float64.

    Args:
        cutoff (float): The cutoff of the edges in Å.

    Shapes:
        - **input:** atomic numbers :math:`(N)`, positions in Å :math:`(N, 3)`, graph of each atom
          :math:`(N)`, edges :math:`(2, |\mathcal{E}|)`, offsets in Å :math:`(|\mathcal{E}|, 3)`
          *(optional)*, strains :math:`(B, 3, 3)` *(optional)*
        - **output:** energies of the atoms in eV, float64 :math:`(N)`
    """

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(
        self,
        z: Tensor,
        pos: Tensor,
        batch: Tensor,
        edge_index: Tensor,
        edge_shift: Tensor | None = None,
        strain: Tensor | None = None,
    ) -> Tensor:
        r"""Runs the forward pass of the module.

        Args:
            z (torch.Tensor): The atomic numbers.
            pos (torch.Tensor): The positions in Å.
            batch (torch.Tensor): The graph of each atom.
            edge_index (torch.Tensor): The edges.
            edge_shift (torch.Tensor, optional): The image offset of each edge's source in Å.
            strain (torch.Tensor, optional): The strain of each graph.
        """
        source, target = edge_index[0], edge_index[1]
        vectors = edge_vectors(
            pos.index_select(0, target),
            pos.index_select(0, source),
            edge_shift,
            None if strain is None else strain.index_select(0, batch.index_select(0, target)),
        )
        length = vectors.double().square().sum(1).sqrt()
        z_i, z_j = z.index_select(0, target), z.index_select(0, source)
        radii = _radii(pos.device)
        ends = (radii.index_select(0, z_i) + radii.index_select(0, z_j)).clamp(max=self.cutoff)
        energies = 0.5 * zbl_energy(length, z_i, z_j) * envelope(length, ends)
        return energies.new_zeros(z.size(0)).index_add(0, target, energies)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}(cutoff={self.cutoff})"
