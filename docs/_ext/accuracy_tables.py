"""The tables of what models learn in a given time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from result_files import Content, Load, Record

TRAINED = {"e2former": "ours", "visnet": "ViSNet", "dimenet": "DimeNet++", "schnet": "SchNet"}
"""The models of the accuracy benchmark, as columns."""
DATA = {
    "ethanol": "ethanol",
    "malonaldehyde": "malonaldehyde",
    "paracetamol": "paracetamol",
    "aspirin": "aspirin",
    "ala_dipeptide": "alanine dipeptide",
    "organic": "organic molecules",
    "alloys": "alloys",
    "qm9-energy": "QM9, energy of atomisation",
    "qm9-gap": "QM9, gap",
    "qm9-mu": "QM9, dipole moment",
}
ERRORS = {
    "energy_mae_mev": "energy (meV)",
    "energy_mae_mev_per_atom": "energy (meV per atom)",
    "force_mae_mev_per_angstrom": "forces (meV/Å)",
    "stress_mae_mev_per_angstrom3": "stress (meV/Å³)",
    "mae_mev": "meV",
    "mae_debye": "Debye",
}


def ethanol(load: Load) -> Content:
    """Means over seeds; of forces also the smallest and the largest."""
    rows = []
    for model, label in (("e2former", "E2FormerPotential"), ("schnet", "PyG's SchNet")):
        for split, how in (("random", "at random"), ("time", "in time blocks")):
            runs = [row for row in load("ethanol_cpu") if row["case"] == f"{model}/{split}"]
            energy, forces = (
                [run["test"][key] for run in runs]
                for key in ("energy_mae_mev", "force_mae_mev_per_angstrom")
            )
            seeds, steps = len(runs), sum(run["steps"] for run in runs) / len(runs)
            errors = [f"{sum(energy) / seeds:.2f}", f"{sum(forces) / seeds:.1f}"]
            if seeds > 1:
                errors[1] += f" ({min(forces):.1f} to {max(forces):.1f})"
            size = f"{runs[0]['parameters']:,}"
            rows.append([label, size, how, str(seeds), f"{steps:,.0f}", *errors])
    errors = ["energy (meV)", "forces (meV/Å)"]
    return ["model", "parameters", "frames split", "seeds", "steps", *errors], rows


def _digits(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:#.3g}".rstrip(".")


def _trained(load: Load, name: str) -> dict[str, dict[str, list[Record]]]:
    """The runs of each model, one for each seed, on each row of data that has any."""
    found: dict[str, dict[str, list[Record]]] = {row: {} for row in DATA}
    for run in load(name):
        found[run["row"]].setdefault(run["model"], []).append(run)
    return {row: runs for row, runs in found.items() if runs}


def _of_trained(runs: dict[str, list[Record]], cell: Callable[[Record], float], form: Any) -> list:
    """A cell for each model: the mean over its seeds."""
    cells = []
    for model in TRAINED:
        values = [cell(run) for run in runs.get(model, [])]
        cells.append(form(sum(values) / len(values)) if values else "not run")
    return cells


def accuracy(load: Load) -> Content:
    rows = []
    for row, runs in _trained(load, "accuracy_cpu").items():
        present = next(iter(runs.values()))[0]["test"]
        for key, label in ERRORS.items():
            if key in present:
                cells = _of_trained(runs, lambda run, key=key: run["test"][key], _digits)
                rows.append([DATA[row], label, *cells])
    return ["data", "error", *TRAINED.values()], rows


def accuracy_forces(load: Load) -> Content:
    """Of one small and one larger molecule, and of many."""
    key = "force_mae_mev_per_angstrom"
    trained = _trained(load, "accuracy_cpu")
    rows = [
        [DATA[row], *_of_trained(trained[row], lambda run: run["test"][key], _digits)]
        for row in ("ethanol", "aspirin", "organic")
    ]
    return ["forces in meV/Å", *TRAINED.values()], rows


def accuracy_runs(load: Load) -> Content:
    """What was trained, for how many steps."""
    rows = []
    for row, runs in _trained(load, "accuracy_cpu").items():
        run = next(iter(runs.values()))[0]
        frames = f"{run['training_frames']:,}", f"{run['test_frames']:,}"
        steps, sizes = (
            _of_trained(runs, lambda run, key=key: run[key], "{:,.0f}".format)
            for key in ("steps", "parameters")
        )
        rows.append([DATA[row], *frames, *steps, *sizes])
    theirs = [f"{name}'s" for name in list(TRAINED.values())[1:]]
    header = ["data", "trained on", "tested on", "our steps", *theirs]
    return [*header, "our parameters", *theirs], rows


def optimizers(load: Load) -> Content:
    models = {"e2former": "ours", "schnet": "SchNet", "visnet": "ViSNet"}
    names = {"adamw": "AdamW", "muon": "Muon"}
    keys = "energy_mae_mev", "force_mae_mev_per_angstrom"
    rows = []
    for row in load("optimizers_cpu"):
        errors = [_digits(row[part][key]) for part in ("test", "train") for key in keys]
        run = models[row["model"]], names[row["optimizer"]], f"{row['lr']:g}", f"{row['steps']:,}"
        rows.append([*run, *errors])
    errors = ["energy (meV)", "forces (meV/Å)", "energy, training", "forces, training"]
    return ["model", "optimizer", "learning rate", "steps", *errors], rows


def accuracy_gpu(load: Load) -> Content:
    header = ["data", "energy (meV)", "forces (meV/Å)", "energy, training", "forces, training"]
    keys = "energy_mae_mev", "force_mae_mev_per_angstrom"
    rows = []
    for row, runs in _trained(load, "accuracy_gpu").items():
        for run in runs["e2former"]:
            errors = [_digits(run[part][key]) for part in ("test", "train") for key in keys]
            rows.append([DATA[row], *errors, f"{run['steps']:,}"])
    return [*header, "steps"], rows


def precision(load: Load) -> Content:
    names = {
        "float64": "float64",
        "float32": "float32",
        "autocast": "autocast to bfloat16",
        "bfloat16": "weights in bfloat16",
    }
    rows = []
    trained = [run for run in load("precision_cpu") if "test" in run]  # solids have no labels
    for run in trained:
        row, mode = run["case"].split("/")
        errors = run["test"]["energy_mae_mev"], run["test"]["force_mae_mev_per_angstrom"]
        cells = map(_digits, (*errors, run["deviation_mev_per_angstrom"]))
        rows.append([DATA[row], names[mode], *cells])
    header = ["data", "precision", "energy (meV)", "forces (meV/Å)"]
    return [*header, "forces beside float64 (meV/Å)"], rows


def _swap(load: Load, which: str, errors: dict[str, tuple[str, str]]) -> Content:
    """Means over seeds; of the ratios to ours also the smallest and the largest."""
    groups: dict[str, list[Record]] = {}
    for row in load("swap"):
        if row["swap"] == which:
            groups.setdefault(row["baseline"], []).append(row)

    def cells(runs: list[Record], side: str) -> list[str]:
        steps = sum(run["steps"][side] for run in runs) / len(runs)
        found = [f"{runs[0]['parameters'][side]:,}", f"{steps:,.0f}"]
        for key, (_, form) in errors.items():
            found.append(format(sum(run["errors"][side][key] for run in runs) / len(runs), form))
        return found

    rows = []
    main = list(errors)[-1]
    for name, runs in groups.items():
        ratios = [run["ratio"][main] for run in runs]
        mean = sum(ratios) / len(ratios)
        ratio = f"{mean:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        label = name.replace("-wide", ", more channels")
        rows.append([label, *cells(runs, "baseline"), ratio])
    ours = next(iter(groups.values()))
    rows.append([ours[0]["swapped"], *cells(ours, "swapped"), "1"])
    titles = [title for title, _ in errors.values()]
    return ["layer", "parameters", "steps", *titles, "ours, relative to it"], rows


def swap_schnet(load: Load) -> Content:
    errors = {
        "energy_mae_mev": ("energy (meV)", ".1f"),
        "force_mae_mev_per_angstrom": ("forces (meV/Å)", ".1f"),
    }
    return _swap(load, "schnet", errors)


def swap_attention(load: Load) -> Content:
    return _swap(load, "attention", {"gap_mae_ev": ("gap (eV)", ".3f")})


TABLES: dict[str, Callable[[Load], Content]] = {
    "ethanol": ethanol,
    "accuracy": accuracy,
    "accuracy-forces": accuracy_forces,
    "accuracy-runs": accuracy_runs,
    "accuracy-gpu": accuracy_gpu,
    "precision": precision,
    "optimizers": optimizers,
    "swap-schnet": swap_schnet,
    "swap-attention": swap_attention,
}
