"""Errors of PyG's baselines and of the same with our layer in place of theirs, after equal times.

The models are those of ``examples/swap_schnet.py`` (energies and forces of ethanol) and
``examples/swap_attention.py`` (the gap of molecules of QM9), with the data and the settings that
they have there. Our layers have more parameters, so that each baseline is trained again with so
many channels that it has at least as many. The seed draws training and test data, weights and
batches. Runs are processes of ``--threads`` threads, ``--jobs`` at a time (``jobs.py``). Pairs of
finished ones are gathered into ``results/swap.json``; a ``ratio`` below one: our layer has the
smaller error.

    python benchmarks/swap.py --jobs 4                # 18 runs of five minutes
    python benchmarks/swap.py --cases schnet --seeds 0 --minutes 0.1 --directory dry --out dry
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import write_result
from jobs import add_arguments, run_jobs, write_record
from torch import nn
from torch_geometric.data import Data

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
from ethanol_data import load_ethanol, split_frames
from ethanol_settings import NUM_TRAIN, SETTINGS
from molecules_data import SETTINGS as MOLECULE_SETTINGS
from molecules_data import evaluate_loss, load_molecules, targets
from swap_attention import (
    CUTOFF,
    EquivariantAttention,
    GraphTransformer,
    InvariantAttention,
    loss,
)
from swap_schnet import swapped_potential
from training import (
    SchNetPotential,
    Settings,
    evaluate,
    fit_references,
    mean_predictor,
    train,
)

Frames = Sequence[Data]
MODELS: dict[str, dict[str, Callable[[], nn.Module]]] = {
    "schnet": {
        "SchNet": SchNetPotential,
        "SchNet-wide": lambda: SchNetPotential(hidden_channels=96),
        "E2FormerConv": swapped_potential,
    },
    "attention": {
        "TransformerConv": lambda: GraphTransformer(InvariantAttention),
        "TransformerConv-wide": lambda: GraphTransformer(InvariantAttention, channels=132),
        "E2FormerAttention": lambda: GraphTransformer(EquivariantAttention),
    },
}
"""The models of each swap, ours last."""


def prepare(
    swap: str, seed: int, args: argparse.Namespace
) -> tuple[Frames, Frames, Settings, dict[str, float]]:
    """Training and test data, settings, and the errors of predicting means."""
    if swap == "schnet":
        train_set, test_set = split_frames(load_ethanol(), NUM_TRAIN, "time", seed)
        settings = Settings(args.minutes, seed=seed, **SETTINGS["schnet"])
        return train_set, test_set, settings, mean_predictor(train_set, test_set)
    train_set, test_set = load_molecules("gap", CUTOFF, seed)
    trivial = float((targets(test_set) - targets(train_set).mean()).abs().mean())
    settings = Settings(args.minutes, seed=seed, **MOLECULE_SETTINGS)
    return train_set, test_set, settings, {"gap_mae_ev": trivial}


def run(swap: str, name: str, seed: int, args: argparse.Namespace) -> None:
    """One run, or the next part of it."""
    torch.set_num_threads(args.threads)
    train_set, test_set, settings, trivial = prepare(swap, seed, args)
    torch.manual_seed(seed)
    model = MODELS[swap][name]()
    label = f"{swap}-{name}-{seed}"
    kept = args.directory / f"{label}.pt"
    if swap == "schnet":
        fit_references(model, train_set)
        trained, state = train(
            model, train_set, settings, kept, args.pause_after, label, clock=time.process_time
        )
    else:
        nn.init.constant_(model.head[-1].bias, float(targets(train_set).mean()))
        trained, state = train(
            model, train_set, settings, kept, args.pause_after, label, loss, clock=time.process_time
        )
    if state["elapsed"] < 60 * args.minutes:
        return
    if swap == "schnet":
        errors = evaluate(trained, test_set)
    else:
        errors = {"gap_mae_ev": evaluate_loss(trained, test_set, loss)}
    record = {
        "swap": swap,
        "model": name,
        "seed": seed,
        "errors": errors,
        "mean_predictor": trivial,
        "training_graphs": len(train_set),
        "test_graphs": len(test_set),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": state["step"],
        "minutes": state["elapsed"] / 60,
    }
    write_record(label, record, args)


def pairs(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each finished baseline beside our model of the same swap and seed, where that is finished."""
    runs = {(record["swap"], record["model"], record["seed"]): record for record in records}
    found = []
    for (swap, name, seed), theirs in runs.items():
        own = list(MODELS[swap])[-1]
        ours = runs.get((swap, own, seed))
        if name == own or ours is None:  # itself, or not finished
            continue
        pair = {"case": f"{swap}/{name}/{seed}", "baseline": name, "swapped": own}
        for key in ("swap", "seed", "mean_predictor", "training_graphs", "test_graphs", "threads"):
            pair[key] = ours[key]
        for key in ("errors", "parameters", "steps", "minutes", "jobs"):
            pair[key] = {"baseline": theirs[key], "swapped": ours[key]}
        errors = theirs["errors"].items()
        pair["ratio"] = {key: ours["errors"][key] / error for key, error in errors}
        found.append(pair | {"environment": ours["environment"]})
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=MODELS, default=list(MODELS))
    names = [name for models in MODELS.values() for name in models]
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="MODEL")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add_arguments(parser, "swap", minutes=5.0, threads=1)
    args = parser.parse_args(arguments)
    runs = [
        (swap, name, seed)
        for seed, swap in product(args.seeds, args.cases)
        for name in MODELS[swap]
        if name in args.models
    ]
    if args.single:
        run(*runs[0], args)
        return 0
    chosen = {
        f"{swap}-{name}-{seed}": ["--cases", swap, "--models", name, "--seeds", str(seed)]
        for swap, name, seed in runs
    }
    given = sys.argv[1:] if arguments is None else arguments
    records, code = run_jobs(__file__, given, chosen, args)
    found = pairs(records)
    for pair in found:
        ratios = {name: round(ratio, 3) for name, ratio in pair["ratio"].items()}
        print(f"{pair['case']:32}{pair['swapped']:>20} over baseline: {ratios}")
    if found:
        print(f"wrote {write_result('swap', found, args.out)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
