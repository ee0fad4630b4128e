"""Energy scale and per-element reference energies, kept in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..checks import check_range, check_shape
from ..radial import MAX_ATOMIC_NUMBER, check_atomic_numbers
from .graphs import sum_over_graphs


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
        check_atomic_numbers(z, "z")
        energy = energy.reshape(-1).double()
        if energy.numel() == 0:
            raise ValueError("`energy` must hold at least one energy, got none")
        for name, values in (("energy", energy), ("forces", forces)):
            if values is not None and not bool(values.isfinite().all()):
                raise ValueError(f"`{name}` must be finite")
        check_shape("batch", batch, z.size(0))
        check_range("batch", batch, 0, energy.numel() - 1)
        present, index = z.unique(return_inverse=True)
        one_hot = nn.functional.one_hot(index, present.numel()).double()
        composition = sum_over_graphs(one_hot, batch, energy.numel())
        # gelsd gives the solution of least norm of a rank-deficient problem; CPU only.
        solution = torch.linalg.lstsq(
            composition.cpu(), energy.cpu().unsqueeze(1), driver="gelsd"
        ).solution.squeeze(1)
        rest = energy - composition @ solution.to(energy.device)
        self.energies.zero_()
        self.energies[present] = solution.to(self.energies)
        if forces is not None:
            scale = forces.double().square().mean().sqrt()
        else:
            rest[rest.abs() < 1e-12 * energy.abs().max()] = 0.0  # an exact fit, but for rounding
            scale = (rest / composition.sum(1).sqrt().clamp(min=1)).square().mean().sqrt()
        self.scale.copy_(scale if float(scale) > 0 else torch.ones_like(scale))
        return self

    def __repr__(self) -> str:
        elements = self.energies.nonzero().flatten().tolist()
        return f"{self.__class__.__name__}(scale={float(self.scale):.4g}, elements={elements})"
