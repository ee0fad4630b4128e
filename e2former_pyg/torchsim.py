r"""Potentials as models of `TorchSim <https://torchsim.github.io/torch-sim>`__, which runs many
systems at a time on one device.

Needs :obj:`pip install 'e2former-pyg[torchsim]'`, with Python 3.11 or newer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .models import E2FormerPotential
from .running import LABELS, check_elements, check_label, neighbor_list, prepare

try:
    import torch_sim as ts
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise ImportError(
        "`torch_sim` is needed; install it by `pip install 'e2former-pyg[torchsim]'`"
    ) from error

__all__ = ["E2FormerModel"]


class E2FormerModel(ModelInterface):
    r"""Energies, forces and stresses of an :class:`~e2former_pyg.E2FormerPotential` for TorchSim's
    integrators, optimizers and automatic batching.

    Systems of any sizes make one batch of the potential, with one neighbour list on its device. It
    runs by :meth:`~e2former_pyg.E2FormerPotential.compile_for_inference`, on a GPU as CUDA graphs.
    The stress is zero for systems that are not periodic in three directions. Total charges and spin
    multiplicities are read from the state where it has them; TorchSim's default spin of 0 counts
    as not given.

    Args:
        potential (E2FormerPotential or str): The potential, of which a copy is made, or the path of
            a checkpoint.
        device (torch.device or str, optional): Where to compute.
            (default: :obj:`None`, where the potential is; checkpoints are loaded to the CPU)
        dtype (torch.dtype, optional): :obj:`torch.float32` or :obj:`torch.float64`, which states
            must have as well. (default: :obj:`None`, that of the potential)
        compute_forces (bool, optional): If set to :obj:`False`, gives no forces.
            (default: :obj:`True`)
        compute_stress (bool, optional): If set to :obj:`False`, gives no stress.
            (default: :obj:`True`)
        skin (float, optional): The skin of the neighbour list in Å; see
            :class:`~e2former_pyg.graph.VerletList`. (default: :obj:`None`, which is :obj:`1.0` on
            a GPU, where edges beyond the cutoff cost next to nothing, and :obj:`0.5` elsewhere)

    Shapes:
        - **output:** a dictionary of :obj:`energy` :math:`(B)` in eV, :obj:`forces`
          :math:`(N, 3)` in eV/Å and :obj:`stress` :math:`(B, 3, 3)` in eV/Å³
    """

    def __init__(
        self,
        potential: E2FormerPotential | str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        compute_forces: bool = True,
        compute_stress: bool = True,
        skin: float | None = None,
    ) -> None:
        super().__init__()
        self._run = prepare(potential, device, dtype).compile_for_inference()
        self.potential = self._run.potential
        parameter = next(self.potential.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._forces = self.potential.forces
        self.neighbors = neighbor_list(self.potential.cutoff, skin, self._device)
        self._checked: Tensor | None = None
        self.compute_forces = compute_forces
        self.compute_stress = compute_stress

    @property
    def compute_forces(self) -> bool:
        """Whether the model computes forces."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, value: bool) -> None:
        if value and self._forces is None:
            raise ValueError("`compute_forces` must be False for a potential with forces=None")
        self._compute_forces = value
        self.potential.forces = self._forces if value else None

    @property
    def compute_stress(self) -> bool:
        """Whether the model computes stresses."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, value: bool) -> None:
        self._compute_stress = self.potential.stress = value

    @torch.inference_mode(False)  # or the list would be of no use outside
    @torch.no_grad()
    def forward(self, state: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Computes what TorchSim asks for.

        Args:
            state (torch_sim.SimState or dict): The systems.
            **kwargs (optional): Ignored.
        """
        if isinstance(state, dict):
            state = ts.SimState(**{"masses": torch.ones_like(state["positions"][:, 0]), **state})
        z, batch = state.atomic_numbers.long(), state.system_idx
        pos, num_systems = state.positions.detach(), state.n_systems
        if pos.dtype != self._dtype:
            raise TypeError(f"`state` must have the dtype of the model, {self._dtype}: {pos.dtype}")
        if self._checked is None or not torch.equal(z, self._checked):
            check_elements(self.potential, z.unique().tolist())
            self._checked = z.clone()
        labels = {name: self._label(name, state) for name in LABELS}
        # One flag, or since TorchSim 0.5 one for each direction.
        pbc = torch.as_tensor(state.pbc, device=pos.device).expand(num_systems, 3)
        cell = state.row_vector_cell.detach() if bool(pbc.any()) else None
        flags = pbc if cell is not None else None
        edge_index, edge_shift = self.neighbors.update(
            pos, batch, cell, flags, batch_size=num_systems
        )
        out = self._run(
            z,
            pos,
            batch,
            edge_index=edge_index,
            edge_shift=edge_shift,
            cell=cell,
            pbc=flags,
            batch_size=num_systems,
            **labels,
        )
        wanted = ["energy"]
        wanted += ["forces"] if self.compute_forces else []
        wanted += ["stress"] if self.compute_stress else []
        return {name: getattr(out, name).to(self._dtype) for name in wanted}

    def _label(self, name: str, state: Any) -> Tensor | None:
        values = getattr(state, name, None)
        if values is None:
            return None
        values = torch.where(values == 0, 1, values) if name == "spin" else values
        for value in values.unique().tolist():
            check_label(self.potential, name, value)
        return values if self.potential.backbone.config[name] else None
