"""Accuracy after equal training time on a CPU: our models, PyG's SchNet, ViSNet and, where
torch-sparse is installed, DimeNet++.

Rows: 800 frames of one molecule (``ethanol``, ``malonaldehyde``, ``paracetamol``, ``aspirin``,
``ala_dipeptide``), the others for testing, at random by the seed; ``organic``, molecules of nine
elements, tested on others; ``alloys``, periodic, with stresses; ``qm9-energy`` (atomisation,
without what a sum over elements gives), ``qm9-gap`` and ``qm9-mu`` (length of the dipole moment).
The files, in the layout of ``NPZDataset``, are in the folder ``--data`` (``xtbmd_<row>.npz``,
``xtb_organic.npz``, ``emt_alloys.npz``, ``qm9_subset.npz``); ``examples/make_xtb_md.py`` makes the
first ones. Errors are mean absolute ones. Training is that of ``examples/training.py`` for
``--minutes`` of the CPU's time, so that other work beside a run takes nothing from it. All models
are given their edges.

Runs are processes of ``--threads`` threads, ``--jobs`` at a time (``jobs.py``). Finished ones are
gathered into ``results/accuracy_cpu.json``, with ``--gpu`` (``accuracy_gpu.py``) into
``results/accuracy_gpu.json``, in the place of what is there, or with ``--add`` beside it.

    python benchmarks/accuracy.py --data DATA --jobs 8
    python benchmarks/accuracy.py --data DATA --rows ethanol aspirin --models e2former --seeds 0 1 2
    python benchmarks/accuracy.py --data DATA --gpu --minutes 16 --pause-after 8   # twice
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import product
from pathlib import Path

import torch
from accuracy_dimenet import has_torch_sparse
from accuracy_gpu import GPU_ROWS, GPU_SETTINGS, gpu_training, make_gpu_model
from accuracy_models import make_model, settings_of
from accuracy_rows import PROPERTIES, ROWS, load, measure, property_loss, trivial
from common import write_result
from jobs import add_arguments, run_jobs, write_record

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
import alloy_training
from training import Settings, train

MODELS = ("e2former", "schnet", "visnet", "dimenet")


def run(row: str, name: str, seed: int, args: argparse.Namespace) -> None:
    """One run, or the next part of it."""
    torch.set_num_threads(args.threads)
    data = load(row, args.data, seed, args.train_frames)
    torch.manual_seed(seed)
    label = f"{row}-{name}-{seed}"
    loss = {"alloys": alloy_training.loss, **dict.fromkeys(PROPERTIES, property_loss)}.get(row)
    if args.gpu:
        model = make_gpu_model(row, data)
        settings = Settings(minutes=args.minutes, seed=seed, **GPU_SETTINGS[row])
        options = gpu_training(row, model, data, settings)
    else:
        model = make_model(name, row, data)
        settings = Settings(minutes=args.minutes, seed=seed, **settings_of(name, row))
        options = {"loss": loss, "clock": time.process_time}
    file = args.directory / f"{label}.pt"
    trained, state = train(model, data.train, settings, file, args.pause_after, label, **options)
    if state["elapsed"] < 60 * args.minutes:
        return
    if row == "alloys" and name == "e2former":
        trained.save(args.directory / f"{label}.safetensors")
    record = {
        "case": f"{row}/{name}/{seed}",
        "row": row,
        "model": name,
        "seed": seed,
        "training_frames": len(data.train),
        "test_frames": len(data.test),
        "training_minutes": state["elapsed"] / 60,
        "clock": "wall" if args.gpu else "cpu",
        "steps": state["step"],
        "batch_size": settings.batch_size,
        "optimizer": settings.optimizer,
        "lr": settings.lr,
        "weight_decay": settings.weight_decay,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "test": measure(row, trained, data.test),
        "train": measure(row, trained, data.train),
        "mean_predictor": trivial(row, data),
    }
    write_record(label, record, args)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(".")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the .npz files")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW")
    parser.add_argument("--models", nargs="+", choices=MODELS, metavar="MODEL")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--train-frames", type=int, default=800, help="of a molecule")
    parser.add_argument("--gpu", action="store_true", help="a larger model of ours on a GPU")
    parser.add_argument("--add", action="store_true", help="keep other records of the result")
    add_arguments(parser, "accuracy", minutes=20.0, threads=1)
    args = parser.parse_args(arguments)
    rows = args.rows or (GPU_ROWS if args.gpu else ROWS)
    available = MODELS if has_torch_sparse() else MODELS[:-1]
    models = args.models or (MODELS[:1] if args.gpu else available)
    if args.gpu and (set(rows) - set(GPU_ROWS) or tuple(models) != MODELS[:1]):
        parser.error(f"--gpu is for rows {', '.join(GPU_ROWS)} and the model {MODELS[0]}")
    runs = list(product(rows, models, args.seeds))
    if args.single:
        run(*runs[0], args)
        return 0
    chosen = {
        f"{row}-{name}-{seed}": ["--rows", row, "--models", name, "--seeds", str(seed)]
        for row, name, seed in runs
    }
    given = sys.argv[1:] if arguments is None else arguments
    records, code = run_jobs(__file__, given, chosen, args)
    for record in records:
        test = {name: round(error, 3) for name, error in record["test"].items()}
        print(f"{record['case']:32}{record['steps']:8} steps  {test}")
    if records:
        name = "accuracy_gpu" if args.gpu else "accuracy_cpu"
        print(f"wrote {write_result(name, records, args.out, add=args.add)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
