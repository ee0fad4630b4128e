"""Energies and forces of whole models, beside our potential.

The time of a neighbour list is counted in those cases of our potential alone that say so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from attention_measure import Meter
from attention_passes import Results, relative_error
from model_systems import make_model
from peers_cases import Case
from peers_contest import Contest, held_mib
from peers_models import Peer, peer_of, size_of
from peers_systems import Atoms

from e2former_pyg import E2FormerPotential

COMPILE = "compile_for_inference"
# A compiled model must agree with the plain one.
BAR = 1e-4
# The plain potential is run beside the compiled one up to this size.
LARGEST_CHECKED = 10_240


def fast_potential(model: E2FormerPotential) -> Callable[..., Any]:
    """The fastest way to run the potential that this version of the package has."""
    if not hasattr(model, COMPILE):
        return model
    return getattr(model, COMPILE)() or model  # made in place if nothing is returned


def _ours(model: Callable[..., Any], inputs: dict[str, Any]) -> Results:
    with torch.no_grad():
        out = model(**inputs)
    return {"energy": out.energy, "forces": out.forces}


def _theirs(peer: Peer) -> Results:
    energies, forces = peer.evaluate()
    return {"energy": energies.detach(), "forces": forces.detach()}


def _inputs(atoms: Atoms, neighbours: bool) -> dict[str, Any]:
    system, cell = atoms.system, atoms.cell
    assert cell is not None
    inputs = {"z": system.z, "pos": system.pos, "cell": cell.unsqueeze(0)}
    if neighbours:
        return inputs
    return inputs | {"edge_index": system.edge_index, "edge_shift": system.edge_shift}


def evaluation_contest(case: Case, meter: Meter) -> Contest:
    atoms = Atoms.make(case, str(meter.device))
    peer, about = peer_of(case.group, atoms, training=False)
    model = make_model(atoms.settings, str(meter.device)).eval()
    inputs = _inputs(atoms, neighbours=case.which.startswith("neighbours"))
    is_fast = hasattr(model, COMPILE)
    plain: Results = {}
    if is_fast and case.atoms <= LARGEST_CHECKED:
        plain = _ours(model, _inputs(atoms, neighbours=False))
    run = partial(_ours, fast_potential(model), inputs)
    held = held_mib(meter)
    for _ in range(3):  # until a CUDA graph is captured
        run()
    kept = held_mib(meter) - held if is_fast else 0.0
    found = run() if plain else {}
    what = f"E2FormerPotential, {atoms.settings['num_layers']} layers, {case.channels} channels, "
    ours = {
        "ours_what": f"{what}lmax 2, {COMPILE if is_fast else 'as it is'}",
        "ours_parameters": size_of(model),
    }
    return Contest(
        run,
        None if peer is None else partial(_theirs, peer),
        atoms.edge_index.size(1),
        {**about, **ours},
        {f"ours.{name}": relative_error(found[name], plain[name]) for name in plain},
        BAR,
        kept,
    )
