"""Errors on ethanol after equal training times with AdamW and with Muon: ours, SchNet, ViSNet.

Data, models and all other settings are those of the row ``ethanol`` of ``accuracy.py``, but that
ours has orders 0 and 1 and 16 splines, which learn faster where steps are few; training takes
``--minutes`` of the CPU's time. SchNet and ViSNet are trained at two learning rates, ours at the
one chosen for AdamW. Runs are processes of ``--threads`` threads, ``--jobs`` at a time
(``jobs.py``). Finished ones are gathered into ``results/optimizers_cpu.json``.

    python benchmarks/optimizers.py --data DATA --jobs 2       # ten runs of four minutes
    python benchmarks/optimizers.py --data DATA --models visnet --optimizers muon --lr 0.005
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import product
from pathlib import Path

import torch
from accuracy_models import make_model, settings_of
from accuracy_rows import load
from common import write_result
from jobs import add_arguments, run_jobs, write_record

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
from training import Settings, evaluate, train

ROW = "ethanol"
MODEL = {"order": (0, 1), "num_radial": 16}
"""Of ours."""
LEARNING_RATES = {"e2former": (5e-3,), "schnet": (1e-3, 3e-3), "visnet": (1e-3, 3e-3)}
OPTIMIZERS = ("adamw", "muon")


def run(name: str, optimizer: str, lr: float, seed: int, args: argparse.Namespace) -> None:
    """One run, or what is left of it."""
    torch.set_num_threads(args.threads)
    data = load(ROW, args.data, seed, args.train_frames)
    torch.manual_seed(seed)
    model = make_model(name, ROW, data, **MODEL)
    chosen = settings_of(name, ROW) | {"optimizer": optimizer, "lr": lr}
    settings = Settings(minutes=args.minutes, seed=seed, **chosen)
    label = f"{name}-{optimizer}-{lr:g}-{seed}"
    file = args.directory / f"{label}.pt"
    options = {"clock": time.process_time, "description": label}
    trained, state = train(model, data.train, settings, file, args.pause_after, **options)
    if state["elapsed"] < 60 * args.minutes:
        return
    record = {
        "case": f"{name}/{optimizer}/{lr:g}/{seed}",
        "model": name,
        "optimizer": optimizer,
        "seed": seed,
        "lr": settings.lr,
        "training_minutes": state["elapsed"] / 60,
        "clock": "cpu",
        "steps": state["step"],
        "test": evaluate(trained, data.test),
        "train": evaluate(trained, data.train),
    }
    write_record(label, record, args)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the .npz files")
    names = tuple(LEARNING_RATES)
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="MODEL")
    parser.add_argument(
        "--optimizers", nargs="+", choices=OPTIMIZERS, default=OPTIMIZERS, metavar="OPTIMIZER"
    )
    parser.add_argument("--lr", type=float, nargs="+", help="instead of those of each model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--train-frames", type=int, default=800)
    add_arguments(parser, "optimizers", minutes=4.0, threads=1)
    args = parser.parse_args(arguments)
    runs = [
        (name, *rest)
        for name in args.models
        for rest in product(args.optimizers, args.lr or LEARNING_RATES[name], args.seeds)
    ]
    if args.single:
        run(*runs[0], args)
        return 0
    chosen = {
        f"{name}-{optimizer}-{lr:g}-{seed}": [
            *("--models", name),
            *("--optimizers", optimizer),
            *("--lr", str(lr)),
            *("--seeds", str(seed)),
        ]
        for name, optimizer, lr, seed in runs
    }
    given = sys.argv[1:] if arguments is None else arguments
    records, code = run_jobs(__file__, given, chosen, args)
    for record in records:
        test = {name: round(error, 2) for name, error in record["test"].items()}
        print(f"{record['case']:24}{record['steps']:8} steps  {test}")
    if records:
        print(f"wrote {write_result('optimizers_cpu', records, args.out)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
