"""Energy scale and per-element reference energies, kept in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..checks import check_range, check_shape
from ..radial import MAX_ATOMIC_NUMBER, check_atomic_numbers
from .graphs import sum_over_graphs


class ReferenceFit:
    r"""The fit of :meth:`ElementReferences.fit` to graphs that come batch by batch, of which it
    keeps no more than two small triangular matrices: the :math:`R` of a QR decomposition of all
    compositions and energies so far, which loses no digits as their products would.
    """

    def __init__(self) -> None:
        size = MAX_ATOMIC_NUMBER + 2  # a column for each element, 0 included, and the energies
        self.rows = torch.zeros(size, size, dtype=torch.float64)
        self.rows_per_atom = torch.zeros(size, size, dtype=torch.float64)
        self.num_graphs = 0
        self.largest_energy = 0.0
        self.forces_squared = 0.0
        self.num_forces = 0

    @torch.no_grad()
    def update(
        self, z: Tensor, energy: Tensor, batch: Tensor, forces: Tensor | None = None
    ) -> None:
        r"""Adds a batch of graphs.

        Args:
            z (torch.Tensor): Atomic numbers of all atoms.
            energy (torch.Tensor): Total energy of each graph in eV.
            batch (torch.Tensor): Graph of each atom.
            forces (torch.Tensor, optional): Forces in eV/Å. (default: :obj:`None`)
        """
        check_atomic_numbers(z, "z")
        energy = energy.reshape(-1).double().cpu()
        if energy.numel() == 0:
            raise ValueError("`energy` must hold at least one energy, got none")
        for name, values in (("energy", energy), ("forces", forces)):
            if values is not None and not bool(values.isfinite().all()):
                raise ValueError(f"`{name}` must be finite")
        check_shape("batch", batch, z.size(0))
        check_range("batch", batch, 0, energy.numel() - 1)
        one_hot = nn.functional.one_hot(z.long().cpu(), MAX_ATOMIC_NUMBER + 1).double()
        composition = sum_over_graphs(one_hot, batch.cpu(), energy.numel())
        rows = torch.cat([composition, energy.unsqueeze(1)], dim=1)
        self.rows = _triangle(self.rows, rows)
        sizes = composition.sum(1, keepdim=True).clamp(min=1)
        self.rows_per_atom = _triangle(self.rows_per_atom, rows / sizes.sqrt())
        self.num_graphs += energy.numel()
        self.largest_energy = max(self.largest_energy, float(energy.abs().max()))
        if forces is not None:
            self.forces_squared += float(forces.double().square().sum())
            self.num_forces += forces.numel()

    def solve(self) -> tuple[Tensor, float]:
        """The reference energies of all elements, zero for those not seen, and the scale."""
        if self.num_graphs == 0:
            raise ValueError("`fit` must have seen at least one graph, got none")
        compositions, energies = self.rows[:, :-1], self.rows[:, -1:]
        present = compositions.any(dim=0)
        # gelsd gives the solution of least norm of a rank-deficient problem; CPU only.
        solution = torch.linalg.lstsq(compositions[:, present], energies, driver="gelsd").solution
        references = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
        references[present] = solution.squeeze(1)
        if self.num_forces > 0:
            scale = (self.forces_squared / self.num_forces) ** 0.5
        else:
            rest = self.rows_per_atom[:, -1] - self.rows_per_atom[:, :-1] @ references
            scale = float(rest.norm()) / self.num_graphs**0.5
            if scale < 1e-12 * self.largest_energy:  # an exact fit, but for rounding
                scale = 0.0
        return references, scale if scale > 0 else 1.0


def _triangle(triangle: Tensor, rows: Tensor) -> Tensor:
    """A square matrix with the Gram matrix of all these rows."""
    return torch.linalg.qr(torch.cat([triangle, rows]), mode="r").R


class ElementReferences(nn.Module):
    r"""Maps a network's output to atomic energies,
    :math:`E_i = \sigma\, e_i + E^0_{z_i}`.

    Total energies are large, so the scale :math:`\sigma` and the references :math:`E^0` stay in
    float64 whatever the dtype of the model.

    Shapes:
        - **input:** network output :math:`(N)`, atomic numbers :math:`(N)`
        - **output:** energies in eV, float64 :math:`(N)`
    """

    scale: Tensor
    energies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("energies", torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ElementReferences:
        # `.float()` and `.to(dtype)` must move the buffers but not round them.
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = self._buffers[name]
            assert moved is not None
            # A meta tensor has no values to keep: `to_empty` allocates them.
            self._buffers[name] = moved.double() if buffer.is_meta else buffer.to(moved.device)
        return self

    def forward(self, out: Tensor, z: Tensor) -> Tensor:
        return out.double() * self.scale + self.energies[z]

    @torch.no_grad()
    def fit(
        self,
        z: Tensor,
        energy: Tensor,
        batch: Tensor,
        forces: Tensor | None = None,
    ) -> ElementReferences:
        r"""Fits the references to total energies by least squares (of least norm, where the
        composition does not determine them), and sets the scale to the root mean square of the
        forces, or else of the remaining energy per atom.

        Args:
            z (torch.Tensor): Atomic numbers of all atoms.
            energy (torch.Tensor): Total energy of each graph in eV.
            batch (torch.Tensor): Graph of each atom.
            forces (torch.Tensor, optional): Forces in eV/Å. (default: :obj:`None`)
        """
        fit = ReferenceFit()
        fit.update(z, energy, batch, forces)
        return self.set(fit)

    @torch.no_grad()
    def set(self, fit: ReferenceFit) -> ElementReferences:
        r"""Takes over what a :class:`ReferenceFit` found.

        Args:
            fit (ReferenceFit): What has seen the training set.
        """
        energies, scale = fit.solve()
        self.energies.copy_(energies)
        self.scale.fill_(scale)
        return self

    def __repr__(self) -> str:
        elements = self.energies.nonzero().flatten().tolist()
        return f"{self.__class__.__name__}(scale={float(self.scale):.4g}, elements={elements})"
