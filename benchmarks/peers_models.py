"""Whole models of other libraries that give energies and forces.

All get the same edges, so that no time of a neighbour list is counted. Weights are random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from attention_systems import ELEMENTS
from peers_contest import require_cuequivariance
from peers_systems import Atoms
from torch import Tensor, nn

NEQUIP_SHARE = 2
"""NequIP has 64 channels where the others have 128, as its larger published models do."""

EnergiesAndForces = tuple[Tensor, Tensor]


class Peer(NamedTuple):
    """A model on some atoms."""

    module: nn.Module
    evaluate: Callable[[], EnergiesAndForces]
    what: str


def size_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _ready(model: nn.Module, atoms: Atoms, training: bool) -> nn.Module:
    """Without derivatives by weights, unless it is to be trained."""
    return model.to(atoms.pos.device).train(training).requires_grad_(training)


class _Mace(NamedTuple):
    """What has to be the same for a model to be used again, since it takes long to build."""

    channels: int
    cutoff: float
    neighbors: float
    accelerated: bool
    training: bool


@cache
def _mace(key: _Mace) -> nn.Module:
    """MACE with two layers, scalars and vectors."""
    import numpy
    from e3nn import o3
    from mace.modules import RealAgnosticResidualInteractionBlock, ScaleShiftMACE
    from mace.modules.wrapper_ops import CuEquivarianceConfig

    accelerated = None
    if key.accelerated:
        require_cuequivariance()
        accelerated = CuEquivarianceConfig(
            enabled=True, layout="ir_mul", group="O3_e3nn", optimize_all=True, conv_fusion=True
        )
    torch.manual_seed(2)
    return ScaleShiftMACE(
        r_max=key.cutoff,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=2,
        interaction_cls=RealAgnosticResidualInteractionBlock,
        interaction_cls_first=RealAgnosticResidualInteractionBlock,
        num_interactions=2,
        num_elements=len(ELEMENTS),
        hidden_irreps=o3.Irreps(f"{key.channels}x0e + {key.channels}x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=numpy.zeros(len(ELEMENTS)),
        avg_num_neighbors=key.neighbors,
        atomic_numbers=list(ELEMENTS),
        correlation=3,
        gate=nn.functional.silu,
        cueq_config=accelerated,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )


def mace_peer(atoms: Atoms, training: bool) -> Peer:
    """MACE; with cuEquivariance on a GPU."""
    settings, counts = atoms.settings, atoms.counts
    channels, is_cuda = settings["hidden_channels"], atoms.pos.is_cuda
    key = _Mace(channels, settings["cutoff"], settings["avg_num_neighbors"], is_cuda, training)
    model = _ready(_mace(key), atoms, training)
    cell = torch.zeros_like(atoms.pos[:3]) if atoms.cell is None else atoms.cell
    inputs = {
        "positions": atoms.pos.clone(),
        "node_attrs": nn.functional.one_hot(atoms.types, len(ELEMENTS)).float(),
        "edge_index": atoms.edge_index,
        "shifts": -atoms.edge_shift,
        "unit_shifts": torch.zeros_like(atoms.edge_shift),
        "cell": cell.repeat(len(counts), 1),
        "batch": atoms.batch,
        "ptr": torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
    }

    def evaluate() -> EnergiesAndForces:
        out = model(dict(inputs), training=training)
        return out["energy"], out["forces"]

    what = f"MACE, 2 layers, {channels}x0e + {channels}x1o, harmonics to 2, correlation 3, "
    return Peer(model, evaluate, what + ("cuEquivariance" if is_cuda else "e3nn"))


@contextmanager
def kept_settings() -> Iterator[None]:
    """Puts back what NequIP changes for the whole process, and with it for other libraries."""
    import e3nn
    from torch._dynamo import config

    names = ("capture_dynamic_output_shape_ops", "capture_scalar_outputs")
    dtype, defaults = torch.get_default_dtype(), e3nn.get_optimization_defaults()
    fusion = torch.jit.set_fusion_strategy([("DYNAMIC", 1)])  # it can only be read so
    torch.jit.set_fusion_strategy(fusion)
    try:
        with config.patch({name: getattr(config, name) for name in names}):
            yield
    finally:
        torch.set_default_dtype(dtype)
        e3nn.set_optimization_defaults(**defaults)
        torch.jit.set_fusion_strategy(fusion)


class _Nequip(NamedTuple):
    channels: int
    layers: int
    cutoff: float
    neighbors: float
    modifier: str | None
    training: bool


@cache
def _nequip(key: _Nequip) -> nn.Module:
    from nequip.model import NequIPGNNModel
    from nequip.model.modify_utils import modify
    from nequip.utils.global_state import set_global_state

    with kept_settings():
        set_global_state(allow_tf32=False)
        model = NequIPGNNModel(
            seed=2,
            model_dtype="float32",
            r_max=key.cutoff,
            type_names=["H", "C", "N", "O"],
            num_layers=key.layers,
            l_max=2,
            parity=False,
            num_features=key.channels,
            avg_num_neighbors=key.neighbors,
        )
        if key.modifier is None:
            return model
        return modify(model, [{"modifier": f"enable_{key.modifier}"}])


def nequip_peer(atoms: Atoms, training: bool) -> Peer:
    """NequIP; on a GPU with cuEquivariance, or where it is trained with OpenEquivariance, since
    it offers the former for inference alone.
    """
    from nequip.data import AtomicDataDict as Key

    settings, modifier = atoms.settings, None
    if atoms.pos.is_cuda:
        modifier = "OpenEquivariance" if training else "CuEquivariance"
        if not training:
            require_cuequivariance()
    key = _Nequip(
        max(settings["hidden_channels"] // NEQUIP_SHARE, 1),
        settings["num_layers"],
        settings["cutoff"],
        settings["avg_num_neighbors"],
        modifier,
        training,
    )
    model = _ready(_nequip(key), atoms, training)
    inputs = {
        Key.POSITIONS_KEY: atoms.pos.clone(),
        Key.EDGE_INDEX_KEY: atoms.edge_index.flip(0).contiguous(),  # targets first
        Key.ATOM_TYPE_KEY: atoms.types,
    }
    if atoms.cell is not None:
        inputs[Key.CELL_KEY] = atoms.cell.unsqueeze(0)
        inputs[Key.EDGE_CELL_SHIFT_KEY] = (atoms.edge_shift / atoms.cell[0, 0]).round()
    if len(atoms.counts) > 1:
        inputs[Key.BATCH_KEY], inputs[Key.NUM_NODES_KEY] = atoms.batch, atoms.counts

    def evaluate() -> EnergiesAndForces:
        out = model(dict(inputs))
        return out[Key.TOTAL_ENERGY_KEY].flatten(), out[Key.FORCE_KEY]

    what = f"NequIP, {key.layers} layers, {key.channels} channels, lmax 2, no parity, "
    return Peer(model, evaluate, what + (modifier or "e3nn"))


def by_autograd(
    pos: Tensor, training: bool, energies_of: Callable[[Tensor], Tensor]
) -> EnergiesAndForces:
    pos = pos.detach().requires_grad_()
    energies = energies_of(pos).flatten()
    (gradient,) = torch.autograd.grad(energies.sum(), pos, create_graph=training)
    return energies, -gradient


def schnet_peer(atoms: Atoms, training: bool) -> Peer:
    from torch_geometric.nn import SchNet

    def interaction_graph(pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        return atoms.edge_index, atoms.vectors(pos).norm(dim=-1)

    layers, channels, cutoff = _sizes(atoms)
    torch.manual_seed(2)
    model = SchNet(
        hidden_channels=channels,
        num_filters=channels,
        num_interactions=layers,
        cutoff=cutoff,
        interaction_graph=interaction_graph,
    )
    model = _ready(model, atoms, training)
    energies = partial(model, atoms.system.z, batch=atoms.batch)
    evaluate = partial(by_autograd, atoms.pos, training, energies)
    return Peer(model, evaluate, f"SchNet, {layers} layers, {channels} channels")


def _sizes(atoms: Atoms) -> tuple[int, int, float]:
    settings = atoms.settings
    return settings["num_layers"], settings["hidden_channels"], settings["cutoff"]


class GivenEdges(nn.Module):
    """In the place of ViSNet's own search: the edges of the benchmark, and the loops it expects."""

    def __init__(self, atoms: Atoms) -> None:
        super().__init__()
        self.atoms = atoms
        own = torch.arange(atoms.pos.size(0), device=atoms.pos.device)
        self.edge_index = torch.cat([atoms.edge_index, own.expand(2, -1)], dim=1)

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        vectors = self.atoms.vectors(pos)
        lengths = torch.cat([vectors.norm(dim=-1), pos.new_zeros(pos.size(0))])
        return self.edge_index, lengths, torch.cat([vectors, torch.zeros_like(pos)])


def visnet_peer(atoms: Atoms, training: bool) -> Peer:
    from torch_geometric.nn.models import ViSNet

    layers, channels, cutoff = _sizes(atoms)
    torch.manual_seed(2)
    model = ViSNet(lmax=2, num_layers=layers, hidden_channels=channels, cutoff=cutoff)
    model.representation_model.distance = GivenEdges(atoms)
    model = _ready(model, atoms, training)

    def energies(pos: Tensor) -> Tensor:
        return model(atoms.system.z, pos, atoms.batch)[0]

    evaluate = partial(by_autograd, atoms.pos, training, energies)
    return Peer(model, evaluate, f"ViSNet, {layers} layers, {channels} channels, lmax 2")


PEERS: dict[str, Callable[[Atoms, bool], Peer]] = {
    "mace": mace_peer,
    "nequip": nequip_peer,
    "schnet": schnet_peer,
    "visnet": visnet_peer,
}


def peer_of(group: str, atoms: Atoms, training: bool) -> tuple[Peer | None, dict[str, Any]]:
    """The model of a library, and what its record says of it; none for our own cases."""
    if group not in PEERS:
        return None, {}
    peer = PEERS[group](atoms, training)
    return peer, {"peer_what": peer.what, "peer_parameters": size_of(peer.module)}
