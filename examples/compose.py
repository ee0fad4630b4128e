"""Compose layers in ``torch_geometric.nn.Sequential`` and predict a vector.

    python examples/compose.py

trains a model of dipole moments on 1,200 bundled molecules of QM9. The data hold only the length of
each dipole moment; the model predicts the vector, since a rotated molecule must give the rotated
vector whatever the weights. The error on 300 other molecules and that of the rotation are printed.
All seeds are 0, but training ends by the clock: numbers differ a little from run to run.
"""

from __future__ import annotations

import argparse

import torch
from e3nn.o3 import rand_matrix
from molecules_data import SETTINGS, evaluate_loss, load_molecules, targets
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import Sequential, global_add_pool, global_mean_pool
from training import Settings, train

from e2former_pyg import E2FormerAttention, E2FormerBlock, E2FormerConv
from e2former_pyg.nn import RMSNorm
from e2former_pyg.transforms import RandomRotation

CHANNELS, LMAX, CUTOFF = 32, 2, 5.0


class DipoleHead(nn.Module):
    """Charges times positions plus a vector from each atom, summed over each molecule (Debye)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # No biases: one would cancel, and a constant vector would not turn with the molecule.
        self.charge = nn.Linear(channels, 1, bias=False)
        self.vector = nn.Linear(channels, 1, bias=False)

    def forward(self, x: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
        charge = self.charge(x[:, 0])
        # Only of neutral molecules does the dipole moment not depend on the origin.
        charge = charge - global_mean_pool(charge, batch)[batch]
        # Degree 1 are rows 1 to 3, in the order x, y, z.
        vector = self.vector(x[:, 1:4]).squeeze(-1)
        return global_add_pool(charge * pos + vector, batch)


class DipoleModel(nn.Module):
    """A convolution makes vectors and tensors of the scalars of elements; attention follows.

    With ``parity="o3"`` a mirrored molecule gives the mirrored vector as well.
    """

    def __init__(self) -> None:
        super().__init__()
        options = {"cutoff": CUTOFF, "parity": "o3"}
        conv = E2FormerConv(CHANNELS, CHANNELS, LMAX, lmax_in=0, avg_num_neighbors=16, **options)
        attention = E2FormerAttention(CHANNELS, CHANNELS, LMAX, heads=4, **options)
        # The same with norm, residual connection and feed-forward network, ready-made.
        block = E2FormerBlock(CHANNELS, LMAX, heads=4, **options)
        layers = [
            (nn.Embedding(100, CHANNELS), "z -> x"),
            (conv, "x, pos, edge_index, z -> x"),
            (RMSNorm(CHANNELS, LMAX), "x -> h"),
            (attention, "h, pos, edge_index, z -> h"),
            (lambda x, h: x + h, "x, h -> x"),
            (block, "x, pos, edge_index, z -> x"),
            (DipoleHead(CHANNELS), "x, pos, batch -> dipole"),
        ]
        self.layers = Sequential("z, pos, edge_index, batch", layers)

    def forward(self, data: Data) -> Tensor:
        return self.layers(data.z, data.pos, data.edge_index, data.batch)


def loss(dipole: Tensor, data: Data) -> Tensor:
    # The small constant keeps the derivative of a length finite at zero.
    return ((dipole.square().sum(-1) + 1e-8).sqrt() - data.y).abs().mean()


@torch.no_grad()
def equivariance_error(model: nn.Module, molecules: list[Data], rotation: Tensor) -> float:
    """How far vectors of rotated molecules are from the rotated vectors, relative to these."""
    rotate = RandomRotation(rotation)
    expected = model(Batch.from_data_list(molecules)) @ rotation.t()
    rotated = model(Batch.from_data_list([rotate(data.clone()) for data in molecules]))
    return float((rotated - expected).norm() / expected.norm())


def main(args: list[str] | None = None) -> dict[str, float]:
    """Trains the model, prints the errors and returns them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="training time")
    arguments = parser.parse_args(args)
    torch.set_num_threads(1)  # the tensors are small
    train_set, test_set = load_molecules("mu", CUTOFF)
    torch.manual_seed(0)
    model = DipoleModel()
    settings = Settings(minutes=arguments.seconds / 60, **SETTINGS)
    trained, state = train(model, train_set, settings, description="dipole", loss=loss)

    mean, rotation = targets(train_set).mean(), rand_matrix()
    errors = {
        "mean predictor": float((targets(test_set) - mean).abs().mean()),
        "model": evaluate_loss(trained, test_set, loss),
        "rotation": equivariance_error(trained, test_set, rotation),
        "mirror image": equivariance_error(trained, test_set, -rotation),
    }
    print(f"\n{state['step']:,} steps in {state['elapsed']:.0f} s")
    print(f"\nLength of the dipole moment of {len(test_set)} other molecules, MAE in Debye")
    print(*(f"  {name:<15}{errors[name]:9.3f}" for name in ("mean predictor", "model")), sep="\n")
    print("\nThe vector of the moved molecule, relative to the moved vector")
    print(*(f"  {name:<15}{errors[name]:9.1e}" for name in ("rotation", "mirror image")), sep="\n")
    return errors


if __name__ == "__main__":
    main()
