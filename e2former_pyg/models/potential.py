"""Interatomic potentials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from ..checks import values_known
from ..graph import as_cell, volume
from ..nn.linear import Linear
from ..precision import without_autocast
from .checkpoint import load_checkpoint, save_checkpoint
from .e2former import E2Former, set_lmax_out
from .graphs import GraphInput, as_input, check_atoms, sorted_edges, sum_over_graphs
from .references import ElementReferences
from .repulsion import ZBLRepulsion

if TYPE_CHECKING:
    from .inference import InferencePotential


class PotentialOutput(NamedTuple):
    r"""What :class:`E2FormerPotential` returns."""

    energy: Tensor
    """Energies in eV, float64 ``[B]``."""
    atomic_energies: Tensor
    """Energies of the atoms in eV, float64 ``[N]``."""
    forces: Tensor | None
    """Forces in eV/Å ``[N, 3]``."""
    stress: Tensor | None
    """Stresses in eV/Å³ ``[B, 3, 3]``, zero for graphs that are not periodic in 3D."""


class E2FormerPotential(nn.Module):
    r"""An interatomic potential: the energy is the sum of atomic energies
    :math:`E = \sum_i (\sigma\, \mathrm{MLP}(x_{i, 0}) + E^0_{z_i})`, forces are its exact
    negative gradient, and the stress its derivative by a strain,

    .. math::
        \mathbf{F}_i = -\frac{\partial E}{\partial \mathbf{p}_i}, \qquad
        \sigma_{ab} = \frac{1}{V} \frac{\partial E}{\partial \epsilon_{ab}}.

    Args:
        backbone (E2Former, optional): The backbone. (default: :obj:`None`, an
            :class:`E2Former` made from :obj:`**backbone_kwargs`)
        forces (str, optional): :obj:`"conservative"`: the gradient; :obj:`"direct"`: a head of
            its own, faster but not the gradient of an energy; :obj:`None`: no forces.
            (default: :obj:`"conservative"`)
        stress (bool, optional): If set to :obj:`True`, also returns the stress.
            (default: :obj:`False`)
        repulsion (bool, optional): If set to :obj:`True`, nuclei repel each other at short
            distances as in :class:`~e2former_pyg.models.ZBLRepulsion`, in training as well. Not
            with direct forces. (default: :obj:`False`)
        **backbone_kwargs (optional): Arguments of :class:`E2Former`. Here :obj:`lmax_out` is by
            default the degree that is read, 0, or 1 with direct forces.

    Shapes:
        - **input:** a :class:`~torch_geometric.data.Data` or
          :class:`~torch_geometric.data.Batch`, or atomic numbers :math:`(N)`, positions in Å
          :math:`(N, 3)`, graph of each atom :math:`(N)` *(optional)*
        - **output:** :class:`PotentialOutput`
    """

    def __init__(
        self,
        backbone: E2Former | None = None,
        *,
        forces: str | None = "conservative",
        stress: bool = False,
        repulsion: bool = False,
        **backbone_kwargs: Any,
    ) -> None:
        super().__init__()
        if forces not in ("conservative", "direct", None):
            raise ValueError(f"`forces` must be 'conservative', 'direct' or None, got {forces!r}")
        if backbone is not None and backbone_kwargs:
            raise ValueError(
                f"`backbone` was given together with its arguments {sorted(backbone_kwargs)}"
            )
        set_lmax_out(backbone_kwargs, 1 if forces == "direct" else 0)
        if backbone is not None and not isinstance(backbone, nn.Module):
            raise TypeError(f"`backbone` must be a Module, got {type(backbone).__name__}")
        self.backbone = E2Former(**backbone_kwargs) if backbone is None else backbone
        self.forces = forces
        self.stress = stress
        channels = self.backbone.hidden_channels
        self.energy_head = nn.Sequential(
            Linear(channels, channels), nn.SiLU(), nn.Linear(channels, 1)
        )
        self.force_gate = self.force_head = None
        if forces == "direct":
            if self.backbone.lmax_out < 1:
                raise ValueError(
                    "`forces` = 'direct' needs a backbone with vectors, of lmax_out >= 1, got 0"
                )
            self.force_gate = nn.Linear(channels, channels)
            self.force_head = nn.Linear(channels, 1, bias=False)
        self.references = ElementReferences()
        if repulsion and forces == "direct":
            raise ValueError("`repulsion` must be False with forces='direct', which ignore it")
        self.repulsion = ZBLRepulsion(self.backbone.cutoff) if repulsion else None

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make such a model, those of the backbone among them."""
        own = {"forces": self.forces, "stress": self.stress}
        return {**own, "repulsion": self.repulsion is not None, **self.backbone.config}

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        self.backbone.reset_parameters()
        for module in (*self.energy_head, self.force_gate, self.force_head):
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    @property
    def cutoff(self) -> float:
        """The cutoff of the backbone in Å."""
        return self.backbone.cutoff

    @property
    def elements(self) -> list[int] | None:
        """The atomic numbers that the references were fitted to or else, that the backbone was
        made for; :obj:`None` where neither is known.
        """
        fitted = self.references.energies.nonzero().flatten().tolist()
        fixed: Any = self.backbone.config["elements"]
        return fitted or fixed

    def fit_references(
        self, z: Tensor, energy: Tensor, batch: Tensor, forces: Tensor | None = None
    ) -> E2FormerPotential:
        r"""Fits reference energies and the scale; see :meth:`ElementReferences.fit`."""
        self.references.fit(z, energy, batch, forces)
        return self

    def forward(
        self,
        data: Data | Tensor | None = None,
        pos: Tensor | None = None,
        batch: Tensor | None = None,
        *,
        z: Tensor | None = None,
        edge_index: Tensor | None = None,
        edge_shift: Tensor | None = None,
        cell: Tensor | None = None,
        pbc: Tensor | None = None,
        charge: Tensor | None = None,
        spin: Tensor | None = None,
        batch_size: int | None = None,
    ) -> PotentialOutput:
        r"""Runs the forward pass of the module.

        Forces work under :func:`torch.no_grad` and :class:`torch.inference_mode`. They can be
        differentiated again in training mode, or if :obj:`pos` requires a gradient.

        Args:
            data (Data or torch.Tensor, optional): The graphs, or their atomic numbers; then the
                other arguments are those of :meth:`E2Former.forward`. Edges of :obj:`data` must
                come from :class:`~e2former_pyg.transforms.RadiusGraph`; without edges they are
                built.
            pos (torch.Tensor, optional): The positions in Å.
            batch (torch.Tensor, optional): The graph of each atom.
            z (torch.Tensor, optional): The atomic numbers, instead of :obj:`data`.
            edge_index (torch.Tensor, optional): All pairs within the cutoff.
            edge_shift (torch.Tensor, optional): The image offset of each edge's source in Å.
            cell (torch.Tensor, optional): The cell of each graph in Å.
            pbc (torch.Tensor, optional): The periodic directions of each graph.
            charge (torch.Tensor, optional): The total charge of each graph in e.
            spin (torch.Tensor, optional): The spin multiplicity of each graph.
            batch_size (int, optional): The number of graphs.
        """
        inputs = as_input(
            data,
            pos,
            batch,
            self.cutoff,
            z=z,
            edge_index=edge_index,
            edge_shift=edge_shift,
            cell=cell,
            pbc=pbc,
            charge=charge,
            spin=spin,
            batch_size=batch_size,
        )
        if torch.is_inference_mode_enabled():
            # Tensors made in inference mode can never enter autograd; copies made outside can.
            with torch.inference_mode(False), torch.no_grad():
                inputs = GraphInput._make(
                    value.clone() if isinstance(value, Tensor) else value for value in inputs
                )
                return self._evaluate(inputs, differentiable=False)
        return self._evaluate(inputs, differentiable=torch.is_grad_enabled())

    def _evaluate(self, inputs: GraphInput, differentiable: bool) -> PotentialOutput:
        pos, cell = inputs.pos, inputs.cell
        check_atoms(inputs.z, pos, inputs.batch, inputs.batch_size)
        graph, num_graphs = inputs.graph_of_atom()
        conservative = self.forces == "conservative"
        wanted: list[Tensor] = []
        strain = None
        # Derivatives by positions that the caller tracks need the graph of the forces.
        create_graph = differentiable and (self.training or pos.requires_grad)
        if conservative:
            if not (differentiable and pos.requires_grad):
                pos = pos.detach().requires_grad_()
            wanted.append(pos)
        if self.stress:
            strain = pos.new_zeros(num_graphs, 3, 3).requires_grad_()
            wanted.append(strain)

        with torch.set_grad_enabled(differentiable or bool(wanted)):
            inputs = inputs._replace(pos=pos)
            if self.repulsion is not None:  # needs the edges as well
                edges, shift = sorted_edges(inputs, self.cutoff, num_graphs)
                inputs = inputs._replace(edge_index=edges, edge_shift=shift)
            x = inputs.call(self.backbone, graph, num_graphs, strain=strain)
            atomic = self._atomic_energies(x, inputs.z)
            if self.repulsion is not None:
                repulsion = self.repulsion(inputs.z, pos, graph, edges, shift, strain)
                atomic = atomic + repulsion
            energy = sum_over_graphs(atomic, graph, num_graphs)
            forces = stress = None
            if self.force_head is not None and self.force_gate is not None:
                vectors = x[:, 1:4] * torch.sigmoid(self.force_gate(x[:, 0])).unsqueeze(1)
                forces = self.force_head(vectors).squeeze(-1) * self.references.scale.to(x.dtype)
            if wanted:
                grads = list(_gradients(energy, wanted, create_graph, differentiable))
                if conservative:
                    forces = -grads.pop(0)
                if self.stress:
                    stress = _stress(grads.pop(0), cell, inputs.pbc, num_graphs)
        out = PotentialOutput(energy, atomic, forces, stress)
        if differentiable:
            return out
        return PotentialOutput._make(None if value is None else value.detach() for value in out)

    @without_autocast
    def _atomic_energies(self, x: Tensor, z: Tensor) -> Tensor:
        """Energies of atoms but for the repulsion, never in half precision by autocast."""
        scalars = x[:, 0].to(next(self.energy_head.parameters()).dtype)
        return self.references(self.energy_head(scalars).squeeze(-1), z)

    def compile_for_inference(self, *, spare_edges: float = 0.2) -> InferencePotential:
        r"""Returns the fast path for many evaluations, as simulations make them: a function of the
        same arguments with the same results, without autograd. It has the weights as they are now.

        .. code-block:: python

            evaluate = potential.cuda().compile_for_inference()
            out = evaluate(z, pos, edge_index=edge_index, edge_shift=edge_shift)

        Args:
            spare_edges (float, optional): Room for further edges in a CUDA graph, as a share of
                those present. (default: :obj:`0.2`)
        """
        from .inference import InferencePotential

        return InferencePotential(self, spare_edges=spare_edges)

    def save(self, path: str | Path) -> None:
        r"""Saves weights and configuration to one safetensors file.

        All processes of a sharded model have to call it; the first one writes.

        Args:
            path (str or Path): Where to, usually ending in ``.safetensors``.

        Raises:
            TypeError: If the backbone is no plain :class:`E2Former`, whose configuration is
                not known.
        """
        save_checkpoint(path, self, self.backbone, self.config)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> E2FormerPotential:
        r"""Loads what :meth:`save` wrote, in the dtype in which it was saved, in eval mode.

        Args:
            path (str or Path): The file.
            device (torch.device or str, optional): Where to put the model.
                (default: :obj:`"cpu"`)

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, or no checkpoint of this class.
        """
        return load_checkpoint(path, cls, device)

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.backbone}, forces={self.forces!r}, "
            f"stress={self.stress})"
        )


def _gradients(
    energy: Tensor, wanted: list[Tensor], create_graph: bool, retain_graph: bool
) -> tuple[Tensor, ...]:
    if not energy.requires_grad:  # no edge anywhere
        return tuple(torch.zeros_like(tensor) for tensor in wanted)
    return torch.autograd.grad(
        energy.sum(),
        wanted,
        create_graph=create_graph,
        retain_graph=create_graph or retain_graph,
        materialize_grads=True,
    )


def _stress(virial: Tensor, cell: Tensor | None, pbc: Tensor | None, num_graphs: int) -> Tensor:
    cells, periodic = as_cell(cell, pbc, num_graphs, virial.dtype, virial.device)
    volumes = volume(cells)
    solid = periodic.all(dim=1)
    if values_known(virial):
        singular = solid & ~((volumes > 0) & volumes.isfinite())
        if bool(singular.any()):
            bad = int(singular.nonzero()[0])
            raise ValueError(
                f"`cell` must have a volume where `pbc` is true, got {cells[bad].tolist()}"
            )
    symmetric = 0.5 * (virial + virial.transpose(1, 2))
    stress = symmetric / torch.where(solid, volumes, 1.0).view(-1, 1, 1)
    return torch.where(solid.view(-1, 1, 1), stress, 0.0)
