"""Training steps of whole models, beside ours: energies and forces, the squares of their errors,
gradients of the weights by a second derivative, and AdamW.

Ours is traced by ``trace_gradients(..., cuda_graph=True)``; others run as their libraries train.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from attention_measure import MIB, Meter
from model_train import TOLERANCE, Step, eager_step, gradient_error, squared_errors, traced_step
from peers_cases import Case
from peers_contest import Contest, held_mib
from peers_models import Peer, peer_of, size_of
from peers_systems import Atoms


class Ours(NamedTuple):
    """Our step on a system, which all other models are measured beside."""

    atoms: Atoms
    step: Step
    about: dict[str, Any]
    errors: dict[str, float]
    kept_mib: float


@lru_cache(maxsize=1)
def our_step(part: str, atoms: int, channels: int, meter: Meter) -> Ours:
    device = str(meter.device)
    made = Atoms.make(Case("potential", part, "", atoms, channels), device)
    held = held_mib(meter)
    model, step, seconds = traced_step(meter, made.settings, made.system)
    # Peers hold as many weights beforehand, which do not count.
    kept = held_mib(meter) - held - sum(p.nbytes for p in model.parameters()) / MIB
    error = gradient_error(made.settings, made.system, device, model)
    layers = made.settings["num_layers"]
    about = {
        "ours_what": f"E2FormerPotential, {layers} layers, {channels} channels, lmax 2, traced",
        "ours_parameters": size_of(model),
        "ours_tracing_s": seconds,
        "graphs": made.system.batch_size,
    }
    errors = {} if error is None else {"ours.gradients": error}
    return Ours(made, step, about, errors, max(kept, 0.0))


def _step(peer: Peer, atoms: Atoms) -> Step:
    labels = atoms.system.labels()
    return eager_step(peer.module, lambda: squared_errors(*peer.evaluate(), labels))


def training_contest(case: Case, meter: Meter) -> Contest:
    ours = our_step(case.part, case.atoms, case.channels, meter)
    peer, about = peer_of(case.group, ours.atoms, training=True)
    return Contest(
        ours.step,
        None if peer is None else _step(peer, ours.atoms),
        ours.atoms.edge_index.size(1),
        {**about, **ours.about},
        ours.errors,
        TOLERANCE,
        ours.kept_mib,
    )
