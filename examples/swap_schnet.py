"""Put ``E2FormerConv`` into PyG's SchNet, in the place of its continuous-filter convolution.

    python examples/swap_schnet.py

trains SchNet as it is and with the other convolution on energies and forces of the bundled ethanol
frames, for the same time, and prints the errors of both on unseen frames. Embedding, readout, data
and training settings are the same; two of the new interactions stand in for four of the old ones,
since each sees more and costs more. All seeds are 0, but training ends by the clock, so that the
numbers differ a little from run to run.
"""

from __future__ import annotations

import argparse

import torch
from ethanol_data import load_ethanol, split_frames
from ethanol_settings import NUM_TRAIN, SETTINGS
from quickstart import header, row
from torch import Tensor, nn
from torch_geometric.nn import SchNet
from training import SchNetPotential, Settings, evaluate, fit_references, mean_predictor, train

from e2former_pyg import E2FormerConv
from e2former_pyg.nn import BilinearInvariants


class Interaction(nn.Module):
    """What replaces an interaction block of SchNet: from scalars of atoms to scalars of atoms.

    CFConv sums neighbours weighted by their distance. Here the sums have directions as well, as
    degrees 1 to ``lmax``, and their inner products tell the angles between neighbours.
    """

    def __init__(self, channels: int, lmax: int, cutoff: float) -> None:
        super().__init__()
        self.conv = E2FormerConv(
            channels,
            channels,
            lmax,
            lmax_in=0,
            order=range(lmax + 1),
            cutoff=cutoff,
            avg_num_neighbors=8.0,
        )
        self.invariants = BilinearInvariants(channels, channels, lmax)

    def forward(self, x: Tensor, pos: Tensor, edge_index: Tensor, z: Tensor) -> Tensor:
        return self.invariants(self.conv(x, pos, edge_index, z))


class SwappedSchNet(SchNet):
    """PyG's SchNet with other interactions. It has a forward pass of its own because SchNet hands
    distances to its interactions, and ours take positions.
    """

    def __init__(self, hidden_channels: int, num_interactions: int, lmax: int, **kwargs) -> None:
        super().__init__(hidden_channels, num_interactions=0, **kwargs)
        self.interactions = nn.ModuleList(
            Interaction(hidden_channels, lmax, self.cutoff) for _ in range(num_interactions)
        )

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor | None = None) -> Tensor:
        h = self.embedding(z)
        edge_index, _ = self.interaction_graph(pos, batch)
        for interaction in self.interactions:
            h = h + interaction(h, pos, edge_index, z)
        h = self.lin2(self.act(self.lin1(h)))
        return self.readout(h, batch, dim=0)


def swapped_potential(lmax: int = 2, num_interactions: int = 2) -> SchNetPotential:
    """The baseline with :class:`SwappedSchNet` inside."""
    model = SchNetPotential()
    old = model.schnet
    model.schnet = SwappedSchNet(
        old.hidden_channels,
        num_interactions,
        lmax,
        cutoff=old.cutoff,
        interaction_graph=old.interaction_graph,
    )
    return model


def main(args: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Trains both, prints the table and returns its errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="training time of each model")
    parser.add_argument("--lmax", type=int, default=2, help="highest degree inside the convolution")
    arguments = parser.parse_args(args)
    torch.set_num_threads(1)  # the tensors are small
    train_frames, test_frames = split_frames(load_ethanol(), NUM_TRAIN, "time", seed=0)

    torch.manual_seed(0)
    models = {
        "SchNet (PyG)": SchNetPotential(),
        "+ E2FormerConv": swapped_potential(arguments.lmax),
    }
    settings = Settings(minutes=arguments.seconds / 60, **SETTINGS["schnet"])
    errors = {"mean predictor": mean_predictor(train_frames, test_frames)}
    rows = [row("mean predictor", errors["mean predictor"])]
    for name, model in models.items():
        fit_references(model, train_frames)
        trained, state = train(model, train_frames, settings, description=f"{name:<14}")
        errors[name] = evaluate(trained, test_frames)
        size = sum(parameter.numel() for parameter in model.parameters())
        rest = f"{state['elapsed']:.0f}", f"{state['step']:,}", f"{size:,}"
        rows.append(row(name, errors[name], *rest))
    print(f"\nErrors on {len(test_frames)} unseen frames\n\n{header()}", *rows, sep="\n")
    return errors


if __name__ == "__main__":
    main()
