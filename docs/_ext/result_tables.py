"""The tables of measured numbers: functions of the result files that give a header and rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Record = dict[str, Any]
Load = Callable[[str], list[Record]]
Content = tuple[list[str], list[list[str]]]

OPERATIONS = {
    "attention": "op/forward/float32",
    "attention with backward": "op/forward+backward/float32",
    "attention, second order": "op/second-order/float32",
    "attention, bfloat16 features": "op/forward/bfloat16",
    "convolution, order 1": "conv/forward/float32",
    "convolution with backward": "conv/forward+backward/float32",
    "attention layer": "layer/forward/float32/edge-tensors",
    "attention layer with backward": "layer/forward+backward/float32/edge-tensors",
}


def _cases(records: list[Record]) -> dict[str, Record]:
    return {row["case"]: row for row in records}


def attention(load: Load) -> Content:
    cases = _cases(load("attention_h100"))
    header = ["", "ms", "edge tensors", "ratio", "memory beyond results in MiB", "edge tensors"]
    rows = []
    for name, case in OPERATIONS.items():
        row = cases[case]
        times = f"{row['ours_ms']:.2f}", f"{row['baseline_ms']:.1f}", f"{row['ratio']:.0f}"
        memory = f"{row['peak_mib']:.0f}", f"{row['baseline_peak_mib']:.0f}"
        rows.append([name, *times, *memory])
    return header, rows


def transformer_conv(load: Load) -> Content:
    cases = _cases(load("attention_h100"))
    rows = []
    for name, case in (
        ("forward", "layer/forward/float32"),
        ("with backward", "layer/forward+backward/float32"),
    ):
        row = cases[case]
        times = f"{row['ours_ms']:.2f}", f"{row['baseline_ms']:.2f}", f"{row['ratio']:.1f}"
        rows.append([name, *times, f"{row['peak_mib']:.0f}", f"{row['baseline_peak_mib']:.0f}"])
    return ["", "ms", "TransformerConv", "ratio", "MiB", "TransformerConv"], rows


def atoms(load: Load) -> Content:
    rows = []
    for row in load("attention_h100"):
        if row["group"] == "atoms" and row["pass"] == "forward+backward":
            fits = row["baseline_ms"] is not None
            other = f"{row['baseline_ms']:.1f}" if fits else "out of memory"
            memory = f"{row['baseline_peak_mib']:.0f}" if fits else "–"
            ours = f"{row['ours_ms']:.2f}", other, f"{row['peak_mib']:.0f}", memory
            rows.append([f"{row['atoms']:,}", f"{row['edges']:,}", *ours])
    return ["atoms", "edges", "ms", "edge tensors", "MiB", "edge tensors"], rows


def small(load: Load) -> Content:
    rows = []
    for row in load("attention_h100"):
        if row["group"] == "small":
            how = {"eager": "launched one by one", "graph": "CUDA graph"}[row["case"].split("/")[3]]
            times = f"{row['ours_ms']:.3f}", f"{row['baseline_ms']:.3f}", f"{row['ratio']:.1f}"
            rows.append([how, *times])
    return ["layer of 100 atoms, forward", "ms", "edge tensors", "ratio"], rows


def train_step(load: Load) -> Content:
    names = {
        "e2former": "E2FormerPotential",
        "e2former-traced": "E2FormerPotential, traced",
        "schnet": "SchNet",
        "schnet-traced": "SchNet, traced",
    }
    rows = []
    for row in load("train_step_cpu"):
        _, name, threads = row["case"].split("/")
        ratio = row["ratio_to"].get("schnet")
        more = f"{ratio:.2f}" if ratio else "1"
        rows.append([names[name], threads.split("=")[1], f"{row['step_ms']:.1f}", more])
    return ["model", "threads", "ms for a step", "relative to SchNet"], rows


def radius_graph(load: Load) -> Content:
    cases = _cases(load("radius_graph_cpu"))
    rows = []
    for system in ("open", "periodic"):
        for size in (1000, 10000, 100000):
            row: list[str] = [system, f"{size:,}"]
            for method in ("e2former_pyg", "vesin", "ase"):
                found = cases.get(f"radius-graph/{method}/{system}/{size}")
                row.append(f"{1e3 * found['seconds']:.0f}" if found else "not run")
            rows.append(row)
    return ["system", "atoms", "e2former_pyg (ms)", "vesin (ms)", "ASE (ms)"], rows


def _by_method(rows: list[Record], methods: list[str], cell: Callable[[Record], str]) -> list[str]:
    found = {row["method"]: row for row in rows}
    best = rows[0]["fastest"]
    cells = []
    for method in methods:
        text = cell(found[method]) if method in found else "not run"
        cells.append(f"**{text}**" if method == best else text)
    return cells


def _products(load: Load, name: str) -> Content:
    methods = ["aligned", "dense", "full tensor", "e3nn"]
    header = ["lmax", "orders", "aligned (ms)", "one matrix per node", "full tensor", "e3nn"]
    records = [row for row in load(name) if row["case"].startswith("product/")]
    groups: dict[tuple[int, str], list[Record]] = {}
    for row in records:
        if row["pass"] == "forward":
            orders = "1" if row["orders"] == [1] else "all"
            groups.setdefault((row["lmax"], orders), []).append(row)
    rows = [
        [str(lmax), orders, *_by_method(group, methods, lambda row: f"{row['ms']:.2f}")]
        for (lmax, orders), group in groups.items()
    ]
    return header, rows


def products_cpu(load: Load) -> Content:
    return _products(load, "wigner6j_cpu")


def products_gpu(load: Load) -> Content:
    return _products(load, "wigner6j_h100")


def convolutions(load: Load) -> Content:
    methods = ["direct", "factorized", "e3nn on edges"]
    groups: dict[tuple[int, str, str], list[Record]] = {}
    for row in load("wigner6j_cpu"):
        if row["case"].startswith("convolution/"):
            key = row["lmax"], ", ".join(map(str, row["orders"])), row["pass"]
            groups.setdefault(key, []).append(row)
    names = {"forward": "forward", "forward+backward": "with backward"}

    def cell(row: Record) -> str:
        return f"{row['ms']:.1f} ms, {row['peak_mib']:.0f} MiB"

    rows = [
        [str(lmax), orders, names[which], *_by_method(group, methods, cell)]
        for (lmax, orders, which), group in groups.items()
    ]
    return ["lmax", "orders", "pass", *methods], rows


def ethanol(load: Load) -> Content:
    rows = []
    for model, label in (("e2former", "E2FormerPotential"), ("schnet", "PyG's SchNet")):
        for split, how in (("random", "at random"), ("time", "in time blocks")):
            runs = [row for row in load("ethanol_cpu") if row["case"] == f"{model}/{split}"]
            errors = [
                sum(run["test"][key] for run in runs) / len(runs)
                for key in ("energy_mae_mev", "force_mae_mev_per_angstrom")
            ]
            size = f"{runs[0]['parameters']:,}"
            rows.append([label, size, str(len(runs)), how, f"{errors[0]:.2f}", f"{errors[1]:.1f}"])
    return ["model", "parameters", "seeds", "frames split", "energy (meV)", "forces (meV/Å)"], rows


TABLES: dict[str, Callable[[Load], Content]] = {
    "attention": attention,
    "transformer-conv": transformer_conv,
    "atoms": atoms,
    "small": small,
    "train-step": train_step,
    "radius-graph": radius_graph,
    "products-cpu": products_cpu,
    "products-gpu": products_gpu,
    "convolutions": convolutions,
    "ethanol": ethanol,
}
