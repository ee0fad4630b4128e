"""Losses of energies, forces and stresses, as sums and counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch_geometric.data import Data

from ..checks import check_shape
from ..models import PotentialOutput

Weight = float | dict[int, float]
"""A weight, or its values at some steps, between which it changes linearly."""

HUBER_DELTA = 0.01
"""Where the Huber loss goes from squares to magnitudes, in eV and Å."""


def weight_at(weight: Weight, step: int) -> float:
    """The value of a weight at a step of the optimizer."""
    if not isinstance(weight, Mapping):
        return float(weight)
    steps = sorted(weight)
    before = [known for known in steps if known <= step]
    after = [known for known in steps if known > step]
    if not before or not after:
        return float(weight[before[-1] if before else after[0]])
    start, stop = before[-1], after[0]
    part = (step - start) / (stop - start)
    return float((1 - part) * weight[start] + part * weight[stop])


def check_weight(name: str, weight: Weight) -> None:
    """Raises unless all values are finite and not negative."""
    values = list(weight.values()) if isinstance(weight, Mapping) else [weight]
    if not values or not all(0 <= value < float("inf") for value in values):
        raise ValueError(f"`{name}` must be finite and not negative, got {weight}")
    if isinstance(weight, Mapping) and min(weight) < 0:
        raise ValueError(f"`{name}` must be given at steps from 0 on, got {weight}")


def _l2(error: Tensor) -> Tensor:
    # The small constant keeps the derivative of a length finite at zero.
    return (error.flatten(1).square().sum(-1) + 1e-20).sqrt()


def _huber(error: Tensor) -> Tensor:
    return torch.nn.functional.huber_loss(
        error, torch.zeros_like(error), reduction="none", delta=HUBER_DELTA
    )


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "mae": torch.abs,
    "mse": torch.square,
    "huber": _huber,
    "l2": _l2,
}
r"""From errors to what is averaged: over components, or for :obj:`"l2"` over the lengths of
vectors.
"""


def errors(out: PotentialOutput, data: Data, num_atoms: Tensor | None = None) -> dict[str, Tensor]:
    """Predicted minus reference values: energies per atom, forces and stresses, as far as the
    model gives them and the batch has them.

    Args:
        out (PotentialOutput): The predictions.
        data (Data): The labels.
        num_atoms (torch.Tensor, optional): The number of atoms of each graph.
            (default: :obj:`None`, by :obj:`data.ptr`)
    """
    found = {}
    sizes = data.ptr.diff().to(out.energy.device) if num_atoms is None else num_atoms
    if data.get("energy") is not None:
        if data.energy.numel() != out.energy.numel():
            check_shape("energy", data.energy, out.energy.numel())
        found["energy"] = (out.energy - data.energy.double().view_as(out.energy)) / sizes
    for name in ("forces", "stress"):
        value, label = getattr(out, name), data.get(name)
        if value is not None and label is not None:
            if label.numel() != value.numel():
                check_shape(name, label, *value.shape)
            found[name] = value - label.to(value.dtype).view_as(value)
    return found


def loss_sums(
    found: Mapping[str, Tensor], wanted: Mapping[str, str]
) -> dict[str, tuple[Tensor, int]]:
    """The sum of each loss over a batch and the number of values in it.

    Args:
        found (dict): What :func:`errors` returned.
        wanted (dict): The kind of loss for each quantity.
    """
    values = _values(found, wanted)
    return {name: (value.sum(), value.numel()) for name, value in values.items()}


def weighted_means(
    found: Mapping[str, Tensor], wanted: Mapping[str, str], graph: Tensor, atom: Tensor
) -> dict[str, Tensor]:
    """The mean of each loss over a padded batch.

    Args:
        found (dict): What :func:`errors` returned.
        wanted (dict): The kind of loss for each quantity.
        graph (torch.Tensor): The weight of each graph, zero on padding, with a sum of one.
        atom (torch.Tensor): That of each atom.
    """
    means = {}
    for name, value in _values(found, wanted).items():
        weight = atom if name == "forces" else graph
        means[name] = weight.double() @ value.reshape(value.size(0), -1).mean(1)
    return means


def _values(found: Mapping[str, Tensor], wanted: Mapping[str, str]) -> dict[str, Tensor]:
    """What is averaged of each quantity."""
    values = {}
    for name, kind in wanted.items():
        if name not in found:
            raise ValueError(
                f"`{name}_weight` is not zero, but the model or the batch has no `{name}`"
            )
        values[name] = LOSSES[kind](found[name]).double()
    return values
