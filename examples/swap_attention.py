"""Put ``E2FormerAttention`` into a graph transformer, in the place of PyG's ``TransformerConv``.

    python examples/swap_attention.py

trains a property model with each on 1,200 bundled molecules of QM9, for the same time, and prints
the errors of both on 300 others. Data, training settings and the rest of the model are the same,
except that norms and feed-forward networks have vectors to carry as well with our layer. All seeds
are 0, but training ends by the clock, so that the numbers differ a little from run to run.
"""

from __future__ import annotations

import argparse

import torch
from molecules_data import SETTINGS, evaluate_loss, load_molecules, targets
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import TransformerConv, global_mean_pool
from torch_geometric.nn.models.schnet import GaussianSmearing
from training import Settings, train

from e2former_pyg import E2FormerAttention
from e2former_pyg.nn import GatedFeedForward, RMSNorm

CHANNELS, HEADS, LAYERS, CUTOFF = 64, 4, 3, 5.0
ROW = "{:<20}{:>10}{:>15}{:>9}{:>13}"


class InvariantAttention(nn.Module):
    """PyG's layer on scalars; it sees geometry through the lengths of edges."""

    lmax = 0

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.smearing = GaussianSmearing(0.0, CUTOFF, 32)
        self.conv = TransformerConv(channels, channels // HEADS, HEADS, edge_dim=32)

    def forward(self, x: Tensor, data: Data) -> Tensor:
        source, target = data.edge_index
        length = (data.pos[target] - data.pos[source]).norm(dim=-1)
        return self.conv(x.squeeze(1), data.edge_index, self.smearing(length)).unsqueeze(1)


class EquivariantAttention(nn.Module):
    """Our layer, which takes positions and passes on vectors besides scalars."""

    lmax = 1

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.conv = E2FormerAttention(channels, channels, self.lmax, heads=HEADS, cutoff=CUTOFF)

    def forward(self, x: Tensor, data: Data) -> Tensor:
        return self.conv(x, data.pos, data.edge_index, data.z)


class GraphTransformer(nn.Module):
    """A property of a molecule as the mean over its atoms.

    Features are ``[N, (lmax + 1)**2, C]``, which with ``lmax = 0`` are those of any other model.
    """

    def __init__(
        self, attention: type[InvariantAttention | EquivariantAttention], channels: int = CHANNELS
    ) -> None:
        super().__init__()
        lmax, self.rows = attention.lmax, (attention.lmax + 1) ** 2
        self.embedding = nn.Embedding(100, channels)
        self.norms = nn.ModuleList(RMSNorm(channels, lmax) for _ in range(LAYERS))
        self.attentions = nn.ModuleList(attention(channels) for _ in range(LAYERS))
        self.feed_forwards = nn.ModuleList(GatedFeedForward(channels, lmax) for _ in range(LAYERS))
        self.head = nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, 1))

    def forward(self, data: Data) -> Tensor:
        x = nn.functional.pad(self.embedding(data.z).unsqueeze(1), (0, 0, 0, self.rows - 1))
        layers = zip(self.norms, self.attentions, self.feed_forwards, strict=True)
        for norm, attention, feed_forward in layers:
            x = x + attention(norm(x), data)
            x = x + feed_forward(x)
        return self.head(global_mean_pool(x[:, 0], data.batch)).squeeze(-1)


MODELS = {"TransformerConv": InvariantAttention, "E2FormerAttention": EquivariantAttention}


def loss(predicted: Tensor, data: Data) -> Tensor:
    return (predicted - data.y).abs().mean()


def main(args: list[str] | None = None) -> dict[str, float]:
    """Trains both, prints the table and returns its errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="training time of each model")
    parser.add_argument("--target", choices=["gap", "homo", "lumo"], default="gap")
    arguments = parser.parse_args(args)
    torch.set_num_threads(1)  # the tensors are small
    train_set, test_set = load_molecules(arguments.target, CUTOFF)
    mean = float(targets(train_set).mean())
    settings = Settings(minutes=arguments.seconds / 60, **SETTINGS)
    errors = {"mean predictor": float((targets(test_set) - mean).abs().mean())}
    rows = [ROW.format("mean predictor", f"{errors['mean predictor']:.3f}", "-", "-", "-")]
    for name, attention in MODELS.items():
        torch.manual_seed(0)
        model = GraphTransformer(attention)
        nn.init.constant_(model.head[-1].bias, mean)  # start from what is known without training
        trained, state = train(model, train_set, settings, description=f"{name:<17}", loss=loss)
        errors[name] = evaluate_loss(trained, test_set, loss)
        size = sum(parameter.numel() for parameter in model.parameters())
        rest = f"{state['elapsed']:.0f}", f"{state['step']:,}", f"{size:,}"
        rows.append(ROW.format(name, f"{errors[name]:.3f}", *rest))
    header = ROW.format(arguments.target, "MAE (eV)", "training (s)", "steps", "parameters")
    print(f"\nErrors on {len(test_set)} other molecules\n\n{header}", *rows, sep="\n")
    return errors


if __name__ == "__main__":
    main()
