"""Plots time and peak memory of the attention against atoms, degree and lmax.

python benchmarks/attention_plots.py benchmarks/results/attention_h100.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Record = dict[str, Any]

SWEEPS: dict[str, tuple[str, Callable[[Record], float]]] = {
    "atoms": ("atoms", lambda record: record["atoms"]),
    "degree": ("neighbours", lambda record: record["edges"] / record["atoms"]),
    "lmax": ("lmax", lambda record: record["lmax"]),
}
MARKERS = {"forward": "o", "forward+backward": "s", "second-order": "^"}


def _lines(panel: Axes, records: list[Record], x: Callable[[Record], float], keys: Record) -> None:
    """One line for each pass, of ours and of the baseline where it fitted into memory."""
    for which in MARKERS:
        rows = sorted((r for r in records if r["pass"] == which), key=x)
        for color, name in (("C0", "ours"), ("C1", "baseline")):
            found = [(x(r), r[keys[name]]) for r in rows if r["right"] and r[keys[name]]]
            if found:
                label = "e2former_pyg" if name == "ours" else rows[0]["baseline"]
                line = panel.plot(*zip(*found, strict=True), label=f"{label}, {which}")[0]
                line.set(marker=MARKERS[which], color=color)


def plot_sweep(records: list[Record], sweep: str, path: Path) -> None:
    label, x = SWEEPS[sweep]
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2))
    quantities = (
        ("milliseconds", {"ours": "ours_ms", "baseline": "baseline_ms"}),
        ("MiB beyond inputs and outputs", {"ours": "peak_mib", "baseline": "baseline_peak_mib"}),
    )
    for panel, (quantity, keys) in zip(panels, quantities, strict=True):
        _lines(panel, records, x, keys)
        panel.set(xlabel=label, ylabel=quantity, yscale="log")
        if sweep == "atoms":
            panel.set_xscale("log")
        panel.grid(alpha=0.3, which="both")
    first = records[0]
    sizes = "" if sweep == "atoms" else f", {first['atoms']} atoms"
    figure.suptitle(f"Attention on {first['card']}, {first['dtype']}{sizes}", fontsize=10)
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="lower center", ncols=3, fontsize=8)
    figure.tight_layout(rect=(0, 0.11, 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_all(source: Path) -> list[Path]:
    """Writes a plot beside the results for each sweep in them."""
    records = [record for record in json.loads(source.read_text()) if "error" not in record]
    paths = []
    for sweep in SWEEPS:
        rows = [record for record in records if record["group"] == sweep]
        if rows:
            paths.append(source.with_name(f"{source.stem}_{sweep}.png"))
            plot_sweep(rows, sweep, paths[-1])
    return paths


if __name__ == "__main__":
    for written in plot_all(Path(sys.argv[1])):
        print(f"wrote {written}")
