"""The plots of the performance page, from the result files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from attention_plots import SWEEPS, plot_sweep
from matplotlib.figure import Figure
from peers_plots import plots_of

Record = dict[str, Any]


def radius_graph(records: list[Record], path: Path) -> None:
    """Time to build a radius graph against the number of atoms."""
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, system in zip(panels, ("open", "periodic"), strict=True):
        for method in ("e2former_pyg", "vesin", "ase"):
            rows = [r for r in records if r.get("system") == system and r["method"] == method]
            rows.sort(key=lambda row: row["atoms"])
            times = [1e3 * row["seconds"] for row in rows]
            panel.loglog([row["atoms"] for row in rows], times, "o-", label=method)
        panel.set(title=system, xlabel="atoms")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("ms")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


def convolutions(records: list[Record], path: Path) -> None:
    """Time of the convolutions on a CPU, forward and backward."""
    rows = [r for r in records if r["case"].startswith("convolution/")]
    rows = [r for r in rows if r["pass"] == "forward+backward"]
    labels = list(dict.fromkeys((r["lmax"], tuple(r["orders"])) for r in rows))
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    panel = figure.subplots()
    for n, method in enumerate(("direct", "factorized", "e3nn on edges")):
        times = {(r["lmax"], tuple(r["orders"])): r["ms"] for r in rows if r["method"] == method}
        places = [place + 0.27 * (n - 1) for place in range(len(labels))]
        panel.bar(places, [times[label] for label in labels], 0.25, label=method)
    names = [f"lmax {lmax}\n{{{', '.join(map(str, orders))}}}" for lmax, orders in labels]
    panel.set_xticks(range(len(labels)), names)
    panel.set(yscale="log", ylabel="ms, forward and backward")
    panel.grid(alpha=0.3, axis="y")
    panel.legend(frameon=False)
    figure.savefig(path, dpi=120)


def draw_all(load: Callable[[str], list[Record]], folder: Path) -> None:
    """Draws every plot into a folder."""
    for sweep in SWEEPS:
        records = [row for row in load("attention_h100") if row["group"] == sweep]
        records = [row for row in records if row["case"] != "atoms/layer/forward/1024000"]
        plot_sweep(records, sweep, folder / f"attention_{sweep}.png")
    for name, draw in plots_of(load("peers_h100")).items():
        draw(folder / f"peers_{name}.png")
    radius_graph(load("radius_graph_cpu"), folder / "radius_graph.png")
    convolutions(load("wigner6j_cpu"), folder / "convolutions.png")
