"""Plots of the examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

COLORS = ("tab:orange", "tab:blue", "tab:green")


def parity_plot(
    path: Path,
    reference: tuple[Tensor, Tensor],
    predictions: Mapping[str, tuple[Tensor, Tensor]],
    title: str,
) -> None:
    """Draws predicted against reference values, with the errors below.

    Args:
        path: The image to write.
        reference: Energies in eV and forces in eV/Å.
        predictions: The same of each model, by its name.
        title: What the values are of.
    """
    # A figure of its own, without pyplot, needs no display.
    figure = Figure(figsize=(9.0, 5.6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2, 2, sharex="col", height_ratios=[3, 1])
    # Total energies are large; what matters is how they differ.
    centre = reference[0].mean()
    energies = {name: energy - centre for name, (energy, _) in predictions.items()}
    forces = {name: force.flatten() for name, (_, force) in predictions.items()}
    _parity(axes[:, 0], reference[0] - centre, energies, "energy − mean", "eV", 12)
    _parity(axes[:, 1], reference[1].flatten(), forces, "force component", "eV/Å", 5)
    figure.savefig(path, dpi=150)


def _parity(
    axes: tuple[Axes, Axes],
    reference: Tensor,
    predictions: Mapping[str, Tensor],
    quantity: str,
    unit: str,
    size: float,
) -> None:
    values, errors = axes
    low, high = float(reference.min()), float(reference.max())
    values.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=0)
    errors.axhline(0.0, color="black", linewidth=0.8, zorder=0)
    for (name, predicted), color in zip(predictions.items(), COLORS, strict=False):
        error = 1e3 * (predicted - reference)
        label = f"{name}: MAE {float(error.abs().mean()):.1f} m{unit}"
        style: dict[str, Any] = {"s": size, "color": color, "alpha": 0.6, "linewidths": 0}
        values.scatter(reference, predicted, label=label, **style)
        errors.scatter(reference, error, **style)
    values.set_ylabel(f"predicted {quantity} ({unit})")
    errors.set_ylabel(f"error (m{unit})")
    errors.set_xlabel(f"reference {quantity} ({unit})")
    values.legend(loc="upper left", frameon=False, markerscale=2)


def property_plot(path: Path, reference: Tensor, predicted: Tensor, name: str, unit: str) -> None:
    """Draws the predicted against the reference values of a property of molecules.

    Args:
        path: The image to write.
        reference: The reference value of each molecule.
        predicted: The predicted values.
        name: The name of the property.
        unit: Its unit.
    """
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    low, high = float(reference.min()), float(reference.max())
    axes.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=0)
    label = f"MAE {float((predicted - reference).abs().mean()):.3f} {unit}"
    axes.scatter(reference, predicted, s=12, alpha=0.6, linewidths=0, label=label)
    axes.set_xlabel(f"reference {name} ({unit})")
    axes.set_ylabel(f"predicted {name} ({unit})")
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=150)


def error_plot(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draws the test errors of runs, a point for each, by model and split.

    Args:
        path: The image to write.
        records: With ``case`` and ``test``, as the accuracy examples write them.
    """
    cases = sorted({record["case"] for record in records})
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    panels = {
        "energy_mae_mev": "energy MAE (meV)",
        "force_mae_mev_per_angstrom": "force MAE (meV/Å)",
    }
    for axes, (key, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for place, case in enumerate(cases):
            errors = [record["test"][key] for record in records if record["case"] == case]
            axes.plot(errors, [place] * len(errors), "o", color=COLORS["schnet" not in case])
        axes.set_yticks(range(len(cases)), cases)
        axes.set_ylim(-0.5, len(cases) - 0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def energy_plot(
    path: Path,
    times: np.ndarray,
    energies: Mapping[str, np.ndarray],
    num_atoms: int,
    title: str,
) -> None:
    """Draws potential, kinetic and total energy against time, and the total one by itself.

    Args:
        path: The image to write.
        times: Times in ps.
        energies: ``potential``, ``kinetic`` and ``total`` in eV.
        num_atoms: Number of atoms.
        title: What is run.
    """
    figure = Figure(figsize=(7.0, 5.0), layout="constrained")
    figure.suptitle(title)
    parts, total = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    scale = 1e3 / num_atoms
    for (name, values), color in zip(energies.items(), COLORS, strict=False):
        base = 0.0 if name == "kinetic" else energies["potential"].min()
        parts.plot(times, scale * (values - base), label=name, color=color, linewidth=1)
    parts.set_ylabel("meV/atom, lowest potential energy = 0")
    parts.legend(frameon=False, ncols=3)
    total.plot(times, scale * (energies["total"] - energies["total"].mean()), color=COLORS[2])
    total.set_ylabel("total − mean (meV/atom)")
    total.set_xlabel("time (ps)")
    figure.savefig(path, dpi=150)


def rdf_plot(
    path: Path,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    title: str,
) -> None:
    """Draws radial distribution functions.

    Args:
        path: The image to write.
        curves: Distances in Å and values of each, by its name.
        title: What they are of.
    """
    figure = Figure(figsize=(6.0, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    for name, (distances, values) in curves.items():
        axes.plot(distances, values, label=name)
    axes.axhline(1.0, color="black", linewidth=0.6, zorder=0)
    axes.set_xlabel("distance (Å)")
    axes.set_ylabel("g(r)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
