"""Plots time, peak memory and speed of other libraries beside ours.

python benchmarks/peers_plots.py benchmarks/results/peers_h100.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Record = dict[str, Any]
Quantities = Sequence[tuple[str, str]]
QUANTITIES = (("milliseconds", "ms"), ("MiB beyond inputs and outputs", "peak_mib"))
SPEED = (("ns/day with steps of 1 fs, evaluations alone", "ns_per_day"),)
MODELS = "energy+forces"
OURS = "e2former_pyg"
# Each has its colour in all plots.
MODEL_PEERS = ("mace", "nequip", "schnet", "visnet")
OTHERS = ("e3nn", "cuequivariance", "openequivariance", "escn", "equiformer", "transformer")
COLORS = {name: f"C{n}" for n, name in enumerate((*MODEL_PEERS, *OTHERS))} | {OURS: "black"}
SWEEPS: dict[str, tuple[str, Callable[[Record], float]]] = {
    "degree": ("neighbours", lambda record: record["edges"] / record["atoms"]),
    "lmax": ("lmax", lambda record: record["lmax"]),
}
# What a peer is compared for, where it is no convolution.
PURPOSES = {"escn": "block, no gradients of weights"}
PURPOSES |= dict.fromkeys(("equiformer", "transformer"), "attention layer")


def _measured(records: list[Record]) -> Quantities:
    """Memory is measured on GPUs alone."""
    return [
        (title, key)
        for title, key in QUANTITIES
        if any(record[f"{side}_{key}"] for record in records for side in ("ours", "peer"))
    ]


def _label(record: Record) -> str:
    return f"{record['peer']}, {record['part']}\n{record['pass']}"


def plot_bars(records: list[Record], path: Path) -> None:
    """Two bars for each case of the largest size at which there is a peer."""
    atoms = max(record["atoms"] for record in records)
    rows = [record for record in records if record["atoms"] == atoms]
    quantities = _measured(rows)
    size = (1 + 5 * len(quantities), 1.2 + 0.5 * len(rows))
    figure, panels = plt.subplots(1, len(quantities), sharey=True, squeeze=False, figsize=size)
    places = range(len(rows))
    panels = panels.flatten()
    for panel, (title, key) in zip(panels, quantities, strict=True):
        for offset, side, label in ((-0.2, "peer", "the other"), (0.2, "ours", OURS)):
            values = [record[f"{side}_{key}"] or 0.0 for record in rows]
            heights = [place + offset for place in places]
            bars = panel.barh(heights, values, height=0.38, label=label)
            panel.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)
        panel.set(xscale="log", xlabel=title, yticks=list(places))
        panel.set_yticklabels([_label(record) for record in rows], fontsize=8)
        panel.margins(x=0.2)
        panel.grid(alpha=0.3, axis="x")
    panels[0].invert_yaxis()
    figure.suptitle(f"{atoms} atoms, {rows[0]['edges']} edges, {_machine(rows[0])}", fontsize=10)
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="lower center", ncols=2, fontsize=8)
    figure.tight_layout(rect=(0, 0.5 / size[1], 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _sides(records: list[Record]) -> dict[str, list[Record]]:
    """Records by what they say of: each peer, and ours from the records without one."""
    named: dict[str, list[Record]] = {name: [] for name in (OURS, *MODEL_PEERS)}
    for record in records:
        named[record["peer"] or OURS].append(record)
    return {name: rows for name, rows in named.items() if rows}


def _side(name: str) -> str:
    return "ours" if name == OURS else "peer"


def _finish(figure: Figure, panels: Iterable[Axes], title: str, path: Path) -> None:
    """One legend for all panels, below them."""
    labelled: dict[str, Any] = {}
    for panel in panels:
        panel.grid(alpha=0.3, which="both")
        for line, label in zip(*panel.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, line)
    figure.suptitle(title, fontsize=10)
    rows = -(-len(labelled) // 4)
    figure.legend(labelled.values(), labelled.keys(), loc="lower center", ncols=4, fontsize=8)
    height = figure.get_size_inches()[1]
    figure.tight_layout(rect=(0, (0.12 + 0.2 * rows) / height, 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_atoms(quantities: Quantities, records: list[Record], path: Path) -> None:
    """Models against the number of atoms, ours from the cases without a peer."""
    size = (max(5 * len(quantities), 6), 4.2)
    figure, panels = plt.subplots(1, len(quantities), squeeze=False, figsize=size)
    for panel, (title, key) in zip(panels.flatten(), quantities, strict=True):
        for name, rows in _sides(records).items():
            found = [(r["atoms"], r[f"{_side(name)}_{key}"]) for r in rows]
            points = sorted(point for point in found if point[1])
            if points:
                panel.plot(*zip(*points, strict=True), "o-", label=name, color=COLORS[name])
        panel.set(xscale="log", yscale="log", xlabel="atoms", ylabel=title)
    _finish(figure, panels.flatten(), f"Energy and forces, {_machine(records[0])}", path)


def plot_training(records: list[Record], path: Path) -> None:
    """Steps in a second of each model, for each system."""
    parts = list(dict.fromkeys(record["part"] for record in records))
    figure, panels = plt.subplots(1, len(parts), squeeze=False, figsize=(1 + 3.2 * len(parts), 3.6))
    for panel, part in zip(panels.flatten(), parts, strict=True):
        rows = [record for record in records if record["part"] == part]
        for place, (name, found) in enumerate(_sides(rows).items()):
            steps = found[0][f"{_side(name)}_steps_per_s"] or 0.0
            bar = panel.bar(place, steps, label=name, color=COLORS[name])
            panel.bar_label(bar, fmt="%.3g", fontsize=8)
        what = f"{rows[0]['atoms']} atoms, {rows[0]['edges']} edges"
        panel.set(yscale="log", xticks=[], title=f"{part}, {what}", ylabel="training steps/s")
        panel.title.set_fontsize(8)
        panel.margins(y=0.15)
    _finish(figure, panels.flatten(), f"Training, {_machine(records[0])}", path)


def plot_sweep(series: str, records: list[Record], path: Path) -> None:
    """A row of panels for each purpose, with all that serve it, ours as beside each of them."""
    label, place = SWEEPS[series]
    purposes = list(dict.fromkeys(_purpose(record) for record in records))
    size = (10, 3.2 * len(purposes))
    figure, panels = plt.subplots(len(purposes), 2, squeeze=False, figsize=size)
    for row, purpose in zip(panels, purposes, strict=True):
        found = [record for record in records if _purpose(record) == purpose]
        for panel, (title, key) in zip(row, QUANTITIES, strict=True):
            lines: dict[str, dict[float, float]] = {OURS: {}}
            for record in found:
                for side, name in (("ours", OURS), ("peer", record["peer"])):
                    if record[f"{side}_{key}"] is not None:
                        lines.setdefault(name, {})[place(record)] = record[f"{side}_{key}"]
            for name, points in lines.items():
                x = sorted(points)
                panel.plot(x, [points[n] for n in x], "o-", label=name, color=COLORS[name])
            if series == "lmax":
                panel.set_xticks(sorted({place(record) for record in found}))
            # Nothing at all is a result for memory.
            scale = {"value": "log"} if key == "ms" else {"value": "symlog", "linthresh": 1.0}
            panel.set_yscale(**scale)
            panel.set(xlabel=label, ylabel=title, title=purpose)
            panel.title.set_fontsize(9)
    first = records[0]
    title = f"{first['atoms']} atoms, {first['pass']}, {_machine(first)}"
    _finish(figure, panels.flatten(), title, path)


def _purpose(record: Record) -> str:
    return PURPOSES.get(record["peer"], f"convolution, {record['part']}")


def _machine(record: Record) -> str:
    here = record["environment"]
    return here["gpu"] or here["cpu"]


def plots_of(records: list[Record]) -> dict[str, Callable[[Path], None]]:
    """The plots for which there are records, by name, as functions that write them."""
    records = [record for record in records if record.get("right")]
    by_series: dict[str, list[Record]] = {}
    for record in records:
        by_series.setdefault(record["series"], []).append(record)
    sizes = by_series.get("atoms", [])
    models = [record for record in sizes if record["pass"] == MODELS]
    drawn: dict[str, tuple[list[Record], Callable[[list[Record], Path], None]]] = {
        "bars": ([record for record in sizes if record["peer"]], plot_bars),
        "atoms": (models, partial(plot_atoms, _measured(models))),
        "ns_per_day": (models, partial(plot_atoms, SPEED)),
        "training": (by_series.get("training", []), plot_training),
    }
    for name in SWEEPS:
        drawn[name] = (by_series.get(name, []), partial(plot_sweep, name))
    return {name: partial(draw, rows) for name, (rows, draw) in drawn.items() if rows}


def plot_all(source: Path) -> list[Path]:
    """Writes the plots beside the results."""
    paths = []
    for name, draw in plots_of(json.loads(source.read_text())).items():
        paths.append(source.with_name(f"{source.stem}_{name}.png"))
        draw(paths[-1])
    return paths


if __name__ == "__main__":
    for written in plot_all(Path(sys.argv[1])):
        print(f"wrote {written}")
