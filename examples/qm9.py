"""Train a property model on molecules of QM9.

    python examples/qm9.py

trains ``E2FormerProperty`` on 1,200 bundled molecules, prints its error on 300 others, and writes
a checkpoint and a plot to ``runs/qm9``. ``--target mu`` learns the length of the dipole moment as
that of a vector. All seeds are 0, but training ends by the clock: numbers differ a little from run
to run. All of QM9 comes through PyG's ``QM9`` with the transforms ``SelectTarget`` and
``RadiusGraph``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from molecules_data import SETTINGS, load_molecules, targets
from plots import property_plot
from torch import Tensor
from torch_geometric.data import Batch, Data
from training import Settings, train

from e2former_pyg import E2FormerProperty

OUTPUT = Path(__file__).resolve().parent.parent / "runs" / "qm9"
UNITS = {"gap": "eV", "homo": "eV", "lumo": "eV", "mu": "Debye"}
MODEL = {"hidden_channels": 64, "num_layers": 2, "lmax": 1, "heads": 4, "cutoff": 5.0}
ROW = "{:<18}{:>12}{:>15}{:>9}{:>13}"


def make_model(target: str, train_set: list[Data]) -> E2FormerProperty:
    """A scalar that is the mean over the atoms, or a vector that is their sum."""
    torch.manual_seed(0)
    if target == "mu":
        # With this parity the vector of a mirrored molecule is the mirrored vector.
        return E2FormerProperty("1o", reduce="sum", parity="o3", **MODEL)
    return E2FormerProperty("0e", reduce="mean", **MODEL).fit_scale(targets(train_set))


def value(out: Tensor) -> Tensor:
    """The property of each molecule: the scalar itself, or the length of the vector."""
    if out.size(1) == 1:
        return out.squeeze(1)
    # The small constant keeps the derivative of a length finite at zero.
    return (out.square().sum(1) + 1e-8).sqrt()


def loss(out: Tensor, data: Data) -> Tensor:
    return (value(out) - data.y).abs().mean()


@torch.no_grad()
def predict(model: E2FormerProperty, molecules: list[Data]) -> Tensor:
    return value(model(Batch.from_data_list(molecules)))


def main(args: list[str] | None = None) -> dict[str, float]:
    """Trains the model, prints the table and returns its errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="training time")
    parser.add_argument("--target", choices=list(UNITS), default="gap")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder to write to")
    arguments = parser.parse_args(args)
    target, unit = arguments.target, UNITS[arguments.target]
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the tensors are small
    train_set, test_set = load_molecules(target, MODEL["cutoff"])
    model = make_model(target, train_set)
    settings = Settings(minutes=arguments.seconds / 60, **SETTINGS)
    trained, state = train(model, train_set, settings, description=target, loss=loss)

    checkpoint = arguments.output / f"{target}.safetensors"
    plot = arguments.output / f"{target}.png"
    trained.save(checkpoint)
    reference, predicted = targets(test_set), predict(trained, test_set)
    reloaded = predict(E2FormerProperty.load(checkpoint), test_set)
    torch.testing.assert_close(reloaded, predicted, rtol=0, atol=0)
    property_plot(plot, reference, predicted, target, unit)

    errors = {
        "mean predictor": float((reference - targets(train_set).mean()).abs().mean()),
        "E2FormerProperty": float((reference - predicted).abs().mean()),
    }
    size = sum(parameter.numel() for parameter in model.parameters())
    rest = f"{state['elapsed']:.0f}", f"{state['step']:,}", f"{size:,}"
    print(f"\nErrors of {target} on {len(test_set)} other molecules\n")
    print(ROW.format("", f"MAE ({unit})", "training (s)", "steps", "parameters"))
    print(ROW.format("mean predictor", f"{errors['mean predictor']:.3f}", "-", "-", "-"))
    print(ROW.format("E2FormerProperty", f"{errors['E2FormerProperty']:.3f}", *rest))
    print(f"\nWritten:\n  {checkpoint}\n  {plot}")
    return errors


if __name__ == "__main__":
    main()
