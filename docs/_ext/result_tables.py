"""The tables of measured numbers: functions of the result files that give a header and rows."""

from __future__ import annotations

from collections.abc import Callable

import accuracy_tables
from result_files import Content, Load, Record

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
TRAINING = {
    "train/20 ethanol": "20 ethanol molecules, 3 layers, 64 channels",
    "train/64 aspirin": "64 aspirin molecules, the same model",
    "train/5000 atoms": "5,000 atoms, 4 layers, 128 channels",
}
MODELS = {
    None: "ours",
    "mace": "MACE",
    "nequip": "NequIP",
    "schnet": "SchNet",
    "visnet": "ViSNet",
}
PASSES = {"forward": "forward", "forward+backward": "backward", "energy+forces": "forces"}


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


def molecules_cpu(load: Load) -> Content:
    """A row for each model, a column for each number of threads."""
    cases = _cases(load("model_cpu"))
    names = dict.fromkeys(case.split("/")[1] for case in cases)
    threads = sorted({row["threads"] for row in cases.values()})
    rows = []
    for name in names:
        found = [cases[f"aspirin/{name}/threads={count}"] for count in threads]
        times = [f"{row['ms']:.0f}" for row in found]
        rows.append([name, *times, *(f"{row['to_schnet']:.2f}" for row in found)])
    header = [f"{what}, {n} threads" for what in ("ms", "relative to SchNet") for n in threads]
    return ["model", *(title.replace("1 threads", "1 thread") for title in header)], rows


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
        if method not in found:
            text = "not run"
        else:  # no time: it did not fit into the memory of the card
            text = cell(found[method]) if found[method]["ms"] else "out of memory"
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


def _convolutions(load: Load, name: str) -> Content:
    methods = ["direct", "factorized", "e3nn on edges"]
    groups: dict[tuple[int, str, str], list[Record]] = {}
    for row in load(name):
        if row["case"].startswith("convolution/"):
            key = row["lmax"], ", ".join(map(str, row["orders"])), row["pass"]
            groups.setdefault(key, []).append(row)
    names = {"forward": "forward", "forward+backward": "with backward"}

    def cell(row: Record) -> str:
        return f"{row['ms']:.1f} ms, {row['peak_mib']:,.0f} MiB"

    rows = [
        [str(lmax), orders, names[which], *_by_method(group, methods, cell)]
        for (lmax, orders, which), group in groups.items()
    ]
    return ["lmax", "orders", "pass", *methods], rows


def convolutions_cpu(load: Load) -> Content:
    return _convolutions(load, "wigner6j_cpu")


def convolutions_gpu(load: Load) -> Content:
    return _convolutions(load, "wigner6j_h100")


def potentials(load: Load) -> Content:
    header = ["atoms", "energy and forces (ms)", "one by one", "PyTorch backend", "MiB"]
    rows = []
    for row in load("model_h200"):
        if row["case"].startswith("evaluate/"):
            slow = f"{row['baseline_ms']:.0f}" if row.get("baseline_ms") else "–"
            times = f"{row['ours_ms']:.1f}", f"{row['eager_ms']:.0f}", slow
            memory, search = f"{row['peak_mib']:,.0f}", f"{row['search_ms']:.0f}"
            rows.append([f"{row['atoms']:,}", *times, memory, search])
    return [*header, "search for neighbours (ms)"], rows


def training_steps(load: Load) -> Content:
    header = ["", "CUDA graph (ms)", "autograd", "PyTorch backend", "MiB", "PyTorch backend"]
    rows = []
    for row in load("model_h200"):
        if row["case"].startswith("train/"):
            times = f"{row['ours_ms']:.1f}", f"{row['eager_ms']:.0f}", f"{row['baseline_ms']:.0f}"
            memory = f"{row['peak_mib']:,.0f}", f"{row['baseline_peak_mib']:,.0f}"
            rows.append([TRAINING[row["case"]], *times, *memory])
    return header, rows


def peers(load: Load) -> Content:
    header = ["beside", "pass", "atoms", "their ms", "ours", "ratio", "their MiB", "ours"]
    rows = []
    for row in load("peers_h100"):
        sizes = row["series"] == "atoms"
        if sizes and row.get("peer") and row["right"] and row.get("peer_ms"):
            ratio = row["peer_ms"] / row["ours_ms"]
            times = f"{row['peer_ms']:.1f}", f"{row['ours_ms']:.2f}"
            memory = f"{row['peer_peak_mib']:,.0f}", f"{row['ours_peak_mib']:,.0f}"
            what = f"{row['peer_what']} ({row['version'].split(',')[0]})"
            if "paths" in row:
                what = f"{what}, {row['paths']} paths"
            which = PASSES[row["pass"]]
            number = f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"
            rows.append([what, which, f"{row['atoms']:,}", *times, number, *memory])
    return header, rows


def _of_models(records: list[Record], label: Callable[[Record], str], key: str) -> list[list[str]]:
    """A row for each label with a quantity of ours and of each other model."""
    rows: dict[str, dict[str | None, str]] = {}
    for row in records:
        side = "peer" if row["peer"] else "ours"
        value = row.get(f"{side}_{key}")
        rows.setdefault(label(row), {})[row["peer"]] = "–" if value is None else f"{value:.3g}"
    return [[name, *(found.get(peer, "–") for peer in MODELS)] for name, found in rows.items()]


def peer_speeds(load: Load) -> Content:
    """ns/day."""
    records = [
        row
        for row in load("peers_h100")
        if row["series"] == "atoms" and row["pass"] == "energy+forces" and "error" not in row
    ]
    records.sort(key=lambda row: row["atoms"])
    return ["atoms", *MODELS.values()], _of_models(
        records, lambda row: f"{row['atoms']:,}", "ns_per_day"
    )


def peers_training(load: Load) -> Content:
    batches = {"ethanol": "20 ethanol", "aspirin": "64 aspirin", "solid": "5,000 atoms"}
    rows = []
    for row in load("peers_h100"):
        if row["series"] == "training" and row.get("peer") and row["right"] and row.get("peer_ms"):
            times = f"{row['peer_ms']:.1f}", f"{row['ours_ms']:.2f}"
            memory = f"{row['peer_peak_mib']:,.0f}", f"{row['ours_peak_mib']:,.0f}"
            ratio = row["peer_ms"] / row["ours_ms"]
            number = f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"
            rows.append([batches[row["part"]], row["peer_what"], *times, number, *memory])
    return ["batch", "beside", "their ms", "ours", "ratio", "their MiB", "ours"], rows


def md_speed(load: Load) -> Content:
    engines = {"ase": "ASE", "torchsim": "TorchSim"}
    rows = []
    for row in load("md_speed_h200"):
        outside = row.get("outside_of_model_percent")
        rows.append(
            [
                engines[row["case"].split("/")[0]],
                f"{row['atoms']:,}",
                f"{row['step_ms']:.1f}",
                f"{row['median_ms']:.1f}",
                "–" if outside is None else f"{outside:.0f}",
                f"{row['ns_per_day']:.1f}",
                f"{row['mace_ms']:.0f}",
            ]
        )
    header = ["engine", "atoms", "ms for a step", "median", "% beside the model", "ns/day"]
    return [*header, "MACE, one evaluation (ms)"], rows


def data_reading(load: Load) -> Content:
    names = {"spice": "SPICEDataset", "aselmdb": "OMol25Dataset", "npz": "NPZDataset"}
    rows = []
    for row in load("data_reading_cpu"):
        _, kind, name = row["case"].split("/")
        if kind == "read":
            rate = f"{row['records_per_cpu_second']:,.0f}"
            memory = f"{row['file_mib']:.0f}", f"{row['peak_rss_growth_mib']:.0f}"
            count, opening = f"{row['records']:,}", f"{row['open_seconds']:.1f}"
            rows.append([names[name], count, rate, opening, *memory])
    header = ["", "records", "read in a second of CPU", "s to open", "MiB in the file", "in memory"]
    return header, rows


TABLES: dict[str, Callable[[Load], Content]] = {
    "attention": attention,
    "transformer-conv": transformer_conv,
    "atoms": atoms,
    "small": small,
    "molecules-cpu": molecules_cpu,
    "train-step": train_step,
    "radius-graph": radius_graph,
    "products-cpu": products_cpu,
    "products-gpu": products_gpu,
    "convolutions-cpu": convolutions_cpu,
    "convolutions-gpu": convolutions_gpu,
    "potentials": potentials,
    "training-steps": training_steps,
    "peers": peers,
    "peer-speeds": peer_speeds,
    "peers-training": peers_training,
    "md-speed": md_speed,
    "data-reading": data_reading,
    **accuracy_tables.TABLES,
}
