r"""
A crystal: periodic neighbours and stress
=========================================

The primitive cell of silicon has two atoms, and each has many neighbours: images of both in other
cells. :obj:`edge_shift` holds the offset in Å of the image that an edge comes from.
"""

import matplotlib.pyplot as plt
import torch
from torch_geometric.data import Data

from e2former_pyg import E2FormerPotential
from e2former_pyg.transforms import RadiusGraph

a = 5.43  # Å
cell = a / 2 * torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
silicon = Data(
    z=torch.tensor([14, 14]),
    pos=torch.tensor([[0.0, 0.0, 0.0], [a / 4, a / 4, a / 4]]),
    cell=cell.unsqueeze(0),
    pbc=torch.tensor([[True, True, True]]),
)
graph = RadiusGraph(cutoff=5.0)(silicon)
source, target = graph.edge_index
vectors = graph.pos[target] - graph.pos[source] - graph.edge_shift
lengths, counts = vectors.norm(dim=-1).mul(100).round().div(100).unique(return_counts=True)
for length, count in zip(lengths, counts // 2, strict=True):
    print(f"{count:3d} neighbours of each atom at {length:.2f} Å")

# %%
# The stress is the derivative of the energy by a strain of the cell, divided by its volume. Here it
# is held against finite differences of the energy, for an untrained potential.

torch.manual_seed(0)
potential = (
    E2FormerPotential(hidden_channels=32, num_layers=2, lmax=2, cutoff=5.0, stress=True)
    .double()
    .eval()
)


def strained(amount: float) -> Data:
    """The crystal stretched by a fraction along x."""
    stretch = torch.diag(torch.tensor([1 + amount, 1.0, 1.0], dtype=torch.float64))
    return Data(
        z=silicon.z,
        pos=silicon.pos.double() @ stretch,
        cell=silicon.cell.double() @ stretch,
        pbc=silicon.pbc,
    )


strains = torch.linspace(-0.05, 0.05, 21, dtype=torch.float64)
with torch.no_grad():
    outputs = [potential(strained(float(s))) for s in strains]
energies = torch.cat([out.energy for out in outputs])
stresses = torch.stack([out.stress[0, 0, 0] for out in outputs])
volumes = torch.stack([strained(float(s)).cell[0].det().abs() for s in strains])
# dE/ds at strain s is V sigma / (1 + s): the strain is counted from the unstrained cell.
differences = (energies[2:] - energies[:-2]) / (strains[2:] - strains[:-2])
differences = differences * (1 + strains[1:-1]) / volumes[1:-1]
print(f"largest difference: {float((differences - stresses[1:-1]).abs().max()):.1e} eV/Å³")

figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
axes.plot(strains, stresses, label="stress of the potential")
axes.plot(strains[1:-1], differences, ".", label="finite differences of the energy")
axes.set(xlabel="strain along x", ylabel="stress (eV/Å³)")
axes.legend(frameon=False)
axes.grid(alpha=0.3)
plt.show()
