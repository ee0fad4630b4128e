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
    for run in load("precision_cpu"):
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
