"""Plots time and peak memory of other libraries beside ours.

python benchmarks/peers_plots.py benchmarks/results/peers_h100.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Record = dict[str, Any]
QUANTITIES = (("milliseconds", "ms"), ("MiB beyond inputs and outputs", "peak_mib"))
MODELS = "energy+forces"


def _measured(records: list[Record]) -> list[tuple[str, str]]:
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
        for offset, side, label in ((-0.2, "peer", "the other"), (0.2, "ours", "e2former_pyg")):
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


def plot_atoms(records: list[Record], path: Path) -> None:
    """Models against the number of atoms, ours from the cases without a peer."""
    quantities = _measured(records)
    size = (max(5 * len(quantities), 6), 4.2)
    figure, panels = plt.subplots(1, len(quantities), squeeze=False, figsize=size)
    panels = panels.flatten()
    names = dict.fromkeys(record["peer"] for record in records)
    for panel, (title, key) in zip(panels, quantities, strict=True):
        for name in names:
            side = "peer" if name else "ours"
            rows = sorted(
                (r for r in records if r["peer"] == name and r[f"{side}_{key}"]),
                key=lambda record: record["atoms"],
            )
            points = [(record["atoms"], record[f"{side}_{key}"]) for record in rows]
            if points:
                panel.plot(*zip(*points, strict=True), marker="o", label=name or "e2former_pyg")
        panel.set(xscale="log", yscale="log", xlabel="atoms", ylabel=title)
        panel.grid(alpha=0.3, which="both")
    figure.suptitle(f"Energy and forces, {_machine(records[0])}", fontsize=10)
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="lower center", ncols=5, fontsize=8)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _machine(record: Record) -> str:
    here = record["environment"]
    return here["gpu"] or here["cpu"]


def plot_all(source: Path) -> list[Path]:
    """Writes the plots for which there are results beside them."""
    records = [record for record in json.loads(source.read_text()) if record.get("right")]
    paths = []
    if compared := [record for record in records if record["peer"]]:
        paths.append(source.with_name(f"{source.stem}_bars.png"))
        plot_bars(compared, paths[-1])
    if models := [record for record in records if record["pass"] == MODELS]:
        paths.append(source.with_name(f"{source.stem}_atoms.png"))
        plot_atoms(models, paths[-1])
    return paths


if __name__ == "__main__":
    for written in plot_all(Path(sys.argv[1])):
        print(f"wrote {written}")
