"""A stand-in for LAMMPS with ML-IAP's coupling to Python on several ranks.

Written after `src/KOKKOS/mliap_unified_couple_kokkos.pyx`, `mliap_data_kokkos.cpp`,
`mliap_unified_kokkos.cpp` and `pair_mliap_kokkos.cpp` of LAMMPS: own atoms come first, then ghosts,
which are images of own or other ranks' atoms near the rank's part of the box; the neighbour list is
full and holds pairs of own atoms within the cutoff; arrays without elements do not exist. Ranks are
threads that meet in each exchange.
"""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

VIRIAL_PAIR, VIRIAL_FDOTR, VIRIAL_ATOM = 1, 2, 4
TIMEOUT = 60.0


class World:
    """What ranks have in common."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=TIMEOUT)
        self.sent: list[Tensor] = [torch.empty(0)] * size
        self.ranks: list[RankData] = []


class RankData:
    """`MLIAPDataPy` of one rank."""

    def __init__(
        self,
        world: World,
        rank: int,
        own: np.ndarray,
        ghosts: np.ndarray,
        positions: np.ndarray,
        types: np.ndarray,
        cutoff: float,
        vflag: int,
        device: str,
        seed: int,
    ) -> None:
        self.world, self.rank, self.device = world, rank, torch.device(device)
        self.ids, self.x = np.concatenate([own, ghosts]), positions
        self.nlocal = self.nlistatoms = len(own)
        self.ntotal = len(positions)
        self.eflag, self.vflag = 3, vflag
        self.owners = np.empty((0, 2), dtype=int)  # rank and row of each ghost's atom
        self.calls: list[tuple[str, int]] = []
        generator = np.random.default_rng(seed)
        # The list may hold atoms in any order.
        order = generator.permutation(self.nlocal)
        pairs = [(i, j) for i in order for j in range(self.ntotal) if self._near(i, j, cutoff)]
        first, second = np.array(pairs, dtype=np.int32).reshape(-1, 2).T
        self.npairs, self.natomneigh = len(first), self.nlocal
        self._iatoms = self._array(order.astype(np.int32))
        self._elems = self._array(types.astype(np.int32))
        self._pair_i, self._pair_j = self._array(first), self._array(second)
        self._rij = self._array(positions[second] - positions[first])
        self._eatoms = self._array(np.full(self.nlocal, np.nan))
        # What other pair styles have added before.
        self.earlier = generator.normal(size=(self.ntotal, 3))
        self._f = self._array(self.earlier.copy())
        self.total_energy = np.nan
        self.virial = np.zeros((3, 3))
        self.atom_virials = np.zeros((self.ntotal, 3, 3))

    def _near(self, i: int, j: int, cutoff: float) -> bool:
        return i != j and float(((self.x[j] - self.x[i]) ** 2).sum()) < cutoff**2

    def _array(self, values: np.ndarray) -> Any:
        return values if self.device.type == "cpu" else torch.from_numpy(values).to(self.device)

    @staticmethod
    def _view(array: Any) -> Any:
        return None if len(array) == 0 else array

    iatoms = property(lambda self: self._view(self._iatoms))
    elems = property(lambda self: self._view(self._elems))
    pair_i = property(lambda self: self._view(self._pair_i))
    pair_j = property(lambda self: self._view(self._pair_j))
    rij = property(lambda self: self._view(self._rij))
    f = property(lambda self: self._view(self._f))

    @property
    def eatoms(self) -> Any:
        if self.nlistatoms == 0:
            raise ValueError("attempt to set NULL eatoms")
        return self._eatoms

    def _set_energy(self, value: float) -> None:
        self.total_energy = float(value)

    energy = property(None, _set_energy)

    def update_pair_forces(self, pair_forces: Any) -> None:
        """Adds them to both atoms, and to the virials that are asked for pair by pair."""
        if self.device.type == "cpu":
            assert isinstance(pair_forces, np.ndarray) and pair_forces.flags.c_contiguous
            assert pair_forces.dtype == np.float64
        else:
            assert pair_forces.is_cuda and pair_forces.is_contiguous()
            assert pair_forces.dtype == torch.float64
            pair_forces = pair_forces.cpu().numpy()
        assert pair_forces.shape == (self.npairs, 3) and self.npairs > 0
        first, second, rij = (as_numpy(a) for a in (self._pair_i, self._pair_j, self._rij))
        f = as_numpy(self._f)
        np.add.at(f, first, pair_forces)
        np.subtract.at(f, second, pair_forces)
        self._f = self._array(f)
        tensors = -np.einsum("pa,pb->pab", rij, pair_forces)
        if self.vflag & VIRIAL_PAIR:
            self.virial += tensors.sum(0)
        if self.vflag & VIRIAL_ATOM:
            for atoms in (first, second):
                np.add.at(self.atom_virials, atoms, 0.5 * tensors)

    def forward_exchange(self, copy_from: Tensor, copy_to: Tensor, vec_len: int) -> None:
        """Writes into ghosts."""
        rows, out = self._rows("forward", copy_from, copy_to, vec_len)
        self._send(rows)
        out.copy_(rows)
        for row, (rank, index) in enumerate(self.owners, self.nlocal):
            out[row] = self.world.sent[rank][index].double().to(out)  # as MPI gets them
        self.world.barrier.wait()

    def reverse_exchange(self, copy_from: Tensor, copy_to: Tensor, vec_len: int) -> None:
        """Adds from ghosts, and zeros them."""
        rows, out = self._rows("reverse", copy_from, copy_to, vec_len)
        self._send(rows)
        out.copy_(rows)
        for data in self.world.ranks:
            for row, (rank, index) in enumerate(data.owners, data.nlocal):
                if rank == self.rank:
                    out[index] += self.world.sent[data.rank][row].to(out)
        out[self.nlocal :] = 0.0
        self.world.barrier.wait()

    def _rows(self, name: str, copy_from: Tensor, copy_to: Tensor, vec_len: int) -> Any:
        assert copy_from.dtype == copy_to.dtype and copy_from.dtype in (
            torch.float32,
            torch.float64,
        )
        self.calls.append((name, vec_len))
        for tensor in (copy_from, copy_to):  # LAMMPS goes by the address of the first element
            assert tensor.is_contiguous() and tensor.numel() == self.ntotal * vec_len
            assert tensor.device.type == self.device.type or self.ntotal == 0
        shape = (self.ntotal, vec_len)
        return copy_from.detach().view(shape), copy_to.view(shape)

    def _send(self, rows: Tensor) -> None:
        self.world.sent[self.rank] = rows.clone()
        self.world.barrier.wait()


class Results(NamedTuple):
    """What LAMMPS has after one evaluation, atoms in the order of their IDs."""

    energy: float
    atom_energies: np.ndarray
    forces: np.ndarray
    virial: np.ndarray
    atom_virials: np.ndarray
    ranks: list[RankData]


def decompose(
    atoms: Atoms,
    elements: list[str],
    cutoff: float,
    grid: tuple[int, int, int] = (1, 1, 1),
    *,
    vflag: int = VIRIAL_FDOTR,
    skin: float = 0.3,
    device: str = "cpu",
    seed: int = 0,
) -> list[RankData]:
    """The data of each rank, whose parts of the box are equal in fractions of its vectors."""
    cell, pbc = atoms.cell.array, atoms.pbc
    scaled = atoms.get_scaled_positions(wrap=True)
    margin = (cutoff + skin) * np.linalg.norm(np.linalg.inv(cell), axis=0)
    generator = np.random.default_rng(seed)
    types = np.array([elements.index(symbol) for symbol in atoms.symbols])
    parts = list(itertools.product(*map(range, grid)))
    home = (np.floor(scaled * grid).astype(int) % grid).tolist()
    owned = [generator.permutation([n for n, h in enumerate(home) if tuple(h) == p]) for p in parts]
    owned = [own.astype(int) for own in owned]
    where = {int(n): (r, row) for r, own in enumerate(owned) for row, n in enumerate(own)}

    reach = [
        int(np.ceil(m)) + 1 if periodic else 0 for m, periodic in zip(margin, pbc, strict=True)
    ]
    shifts = np.array(list(itertools.product(*(range(-n, n + 1) for n in reach))))
    world = World(len(parts))
    for rank, (part, own) in enumerate(zip(parts, owned, strict=True)):
        low, high = np.array(part) / grid - margin, (np.array(part) + 1) / grid + margin
        images = scaled[:, None] + shifts
        inside = ((images >= low) & (images < high)).all(-1)
        inside[own, (shifts == 0).all(1).nonzero()[0]] = False  # these are its own
        atom, shift = inside.nonzero()
        mixed = generator.permutation(len(atom))
        atom, shift = atom[mixed], shift[mixed]
        positions = np.concatenate([scaled[own], scaled[atom] + shifts[shift]]) @ cell
        data = RankData(
            *(world, rank, own, atom, positions, types[np.concatenate([own, atom])]),
            *(cutoff, vflag, device, seed + rank),
        )
        data.owners = np.array([where[int(n)] for n in atom], dtype=int).reshape(-1, 2)
        world.ranks.append(data)
    return world.ranks


def evaluate(models: list[Any], ranks: list[RankData]) -> Results:
    """One evaluation, with a model for each rank."""
    world, errors = ranks[0].world, []

    def compute(rank: RankData) -> None:
        try:
            for name in ("compute_descriptors", "compute_gradients", "compute_forces"):
                getattr(models[rank.rank], name)(rank)
        except Exception as error:
            errors.append(error)
            world.barrier.abort()

    with ThreadPoolExecutor(len(ranks)) as pool:
        list(pool.map(compute, ranks))
    if errors:
        others = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
        raise (others or errors)[0]

    count = sum(rank.nlocal for rank in ranks)
    energies, forces = np.full(count, np.nan), np.zeros((count, 3))
    virial, atom_virials = np.zeros((3, 3)), np.zeros((count, 3, 3))
    for rank in ranks:
        f = as_numpy(rank._f) - rank.earlier
        virial += rank.x.T @ f if rank.vflag & VIRIAL_FDOTR else rank.virial
        energies[rank.ids[as_numpy(rank._iatoms)]] = as_numpy(rank._eatoms)
        if count > 0:  # atoms of ranks that are not among these
            np.add.at(forces, rank.ids, f)
            np.add.at(atom_virials, rank.ids, rank.atom_virials)
    total = sum(rank.total_energy for rank in ranks)
    return Results(total, energies, forces, virial, atom_virials, ranks)


def as_numpy(array: Any) -> np.ndarray:
    """A copy on the CPU."""
    return array.cpu().numpy() if isinstance(array, Tensor) else array.copy()
