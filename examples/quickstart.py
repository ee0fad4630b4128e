"""Train a small potential on ethanol, beside PyG's SchNet, in minutes on a CPU.

    python examples/quickstart.py

trains both on energies and forces of the bundled frames for the same time, prints their errors on
unseen frames, and writes a checkpoint and a parity plot to ``runs/quickstart``.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path
from typing import Any

import torch
from ethanol_data import load_ethanol, split_frames
from ethanol_settings import MODEL, NUM_TRAIN, SETTINGS
from plots import parity_plot
from training import (
    SchNetPotential,
    Settings,
    fit_references,
    labels,
    mean_absolute_errors,
    mean_predictor,
    predict,
    train,
)

from e2former_pyg import E2FormerPotential

OUTPUT = Path(__file__).resolve().parent.parent / "runs" / "quickstart"
ROW = "{:<16}{:>12}{:>12}{:>11}{:>9}{:>13}"


def row(name: str, errors: dict[str, float], *rest: str) -> str:
    values = (f"{value:.1f}" for value in errors.values())
    return ROW.format(name, *values, *(rest or ("-", "-", "-")))


def header() -> str:
    names = ROW.format("", "energy MAE", "force MAE", "training", "steps", "parameters")
    units = ROW.format("", "meV", "meV/Å", "s", "", "").rstrip()
    return f"{names}\n{units}\n{'-' * len(names)}"


def check_reloaded(path: Path, frames: list, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Raises unless the checkpoint predicts what the model did, bit for bit."""
    reloaded = predict(E2FormerPotential.load(path), frames)
    for ours, theirs in zip(reloaded, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=85.0, help="training time of each model")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder to write to")
    arguments = parser.parse_args()
    started = time.perf_counter()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # In step with the progress bars, in a file too.
        sys.stdout.reconfigure(line_buffering=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    # The tensors are small: where something else takes a core, two threads are the slower choice.
    torch.set_num_threads(1)

    train_frames, test_frames = split_frames(load_ethanol(), NUM_TRAIN, "time", seed=0)
    print(
        f"Ethanol: {len(train_frames)} training frames, {len(test_frames)} unseen frames "
        "from other parts of the trajectory"
    )

    torch.manual_seed(0)
    models: dict[str, tuple[str, E2FormerPotential | SchNetPotential]] = {
        "schnet": ("SchNet (PyG)", SchNetPotential()),
        "e2former": ("E2Former", E2FormerPotential(**MODEL)),
    }
    reference = labels(test_frames)
    rows = [row("mean predictor", mean_predictor(train_frames, test_frames))]
    predictions: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    trained: dict[str, Any] = {}
    for key, (name, model) in models.items():
        fit_references(model, train_frames)
        settings = Settings(minutes=arguments.seconds / 60, **SETTINGS[key])
        trained[key], state = train(model, train_frames, settings, description=f"{name:<12}")
        predictions[name] = predict(trained[key], test_frames)
        size = sum(parameter.numel() for parameter in model.parameters())
        rest = f"{state['elapsed']:.0f}", f"{state['step']:,}", f"{size:,}"
        rows.append(row(name, mean_absolute_errors(predictions[name], reference), *rest))

    checkpoint, plot = arguments.output / "ethanol.safetensors", arguments.output / "parity.png"
    trained["e2former"].save(checkpoint)
    check_reloaded(checkpoint, test_frames, predictions["E2Former"])
    title = f"Ethanol, {len(test_frames)} unseen frames"
    parity_plot(plot, reference, predictions, title)

    print(f"\nErrors on the unseen frames\n\n{header()}", *rows, sep="\n")
    print("\nThe reloaded checkpoint gives the same energies and forces.")
    print(f"Done in {time.perf_counter() - started:.0f} s. Written:\n  {checkpoint}\n  {plot}")


if __name__ == "__main__":
    main()
