"""Accuracy of a small potential on ethanol after minutes of a CPU's time.

    python examples/ethanol.py --split random --seed 0 --minutes 10

trains on 800 frames, for so many minutes by the clock of the CPU, and reports mean absolute errors
on the 250 others. The state is kept in ``runs/ethanol``: an interrupted run goes on where it
stopped. ``--collect`` gathers all finished runs into ``benchmarks/results/ethanol_cpu.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
from ethanol_data import load_ethanol, split_frames
from ethanol_settings import MODEL, NUM_TRAIN, SETTINGS
from plots import error_plot
from training import (
    SchNetPotential,
    Settings,
    evaluate,
    fit_references,
    mean_predictor,
    train,
)

from e2former_pyg import E2FormerPotential

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from common import environment, write_result  # noqa: E402


def run(arguments: argparse.Namespace) -> None:
    frames = load_ethanol()
    train_frames, test_frames = split_frames(frames, NUM_TRAIN, arguments.split, arguments.seed)
    torch.manual_seed(arguments.seed)
    model = E2FormerPotential(**MODEL) if arguments.model == "e2former" else SchNetPotential()
    fit_references(model, train_frames)
    settings = Settings(minutes=arguments.minutes, seed=arguments.seed, **SETTINGS[arguments.model])
    name = f"{arguments.model}-{arguments.split}-{arguments.seed}"
    arguments.directory.mkdir(parents=True, exist_ok=True)
    trained, state = train(
        model,
        train_frames,
        settings,
        checkpoint=arguments.directory / f"{name}.pt",
        pause_after=arguments.pause_after,
        description=name,
        clock=time.process_time,
    )
    if state["elapsed"] < 60 * settings.minutes:
        print(f"{name}: paused after {state['elapsed'] / 60:.1f} minutes")
        return
    record = {
        "case": f"{arguments.model}/{arguments.split}",
        "model": arguments.model,
        "split": arguments.split,
        "seed": arguments.seed,
        "training_frames": NUM_TRAIN,
        "test_frames": len(test_frames),
        "training_minutes": state["elapsed"] / 60,
        "clock": "cpu",
        "steps": state["step"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "test": evaluate(trained, test_frames),
        "train": evaluate(trained, train_frames),
        "mean_predictor": mean_predictor(train_frames, test_frames),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "environment": environment(),
    }
    (arguments.directory / f"{name}.json").write_text(json.dumps(record, indent=1))
    if isinstance(trained, E2FormerPotential):
        trained.save(arguments.directory / f"{name}.safetensors")
    print(json.dumps({key: record[key] for key in ("case", "seed", "steps", "test", "train")}))


def collect(directory: Path) -> None:
    """Gathers finished runs into one result file and a plot of their errors."""
    records = [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]
    path = write_result("ethanol_cpu", records)
    error_plot(path.with_suffix(".png"), records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["e2former", "schnet"], default="e2former")
    parser.add_argument("--split", choices=["random", "time"], default="random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pause-after", type=float, default=float("inf"))
    parser.add_argument("--directory", type=Path, default=REPOSITORY / "runs" / "ethanol")
    parser.add_argument("--collect", action="store_true", help="gather finished runs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.collect:
        collect(arguments.directory)
    else:
        run(arguments)


if __name__ == "__main__":
    main()
