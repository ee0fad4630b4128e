r"""
Smooth where neighbours leave
=============================

Forces are derivatives of the energy. Where the energy jumps, because an atom crosses the cutoff,
molecular dynamics does not conserve energy. Here an argon atom leaves another two; the energy of an
untrained potential and its force are drawn until nothing is left within the cutoff of 5 Å.
"""

import matplotlib.pyplot as plt
import torch

from e2former_pyg import E2FormerPotential
from e2former_pyg.radial import envelope

torch.manual_seed(0)
potential = E2FormerPotential(hidden_channels=32, num_layers=2, lmax=2, cutoff=5.0)
potential = potential.double().eval()
pair = torch.tensor([[0.0, 0.0, 0.0], [3.5, 0.0, 0.0]])


def evaluate(distances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies in eV, and forces on the leaving atom along its way in eV/Å."""
    count = len(distances)
    pos = pair.double().repeat(count, 1, 1)
    third = torch.stack([torch.zeros(count), distances, torch.zeros(count)], dim=-1)
    pos = torch.cat([pos, third.double().unsqueeze(1)], dim=1).flatten(0, 1)
    batch = torch.arange(count).repeat_interleave(3)
    out = potential(torch.full((3 * count,), 18), pos, batch)
    return out.energy, out.forces.view(count, 3, 3)[:, 2, 1]


distances = torch.linspace(3.0, 5.5, 251, dtype=torch.float64)
with torch.no_grad():
    energy, force = evaluate(distances)

figure, panels = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
panels[0].plot(distances, energy - energy[-1])
panels[0].set(xlabel="distance of the leaving atom (Å)", ylabel="energy (eV)")
panels[1].plot(distances, force, color="C1")
panels[1].set(xlabel="distance of the leaving atom (Å)", ylabel="force (eV/Å)")
for panel in panels:
    panel.axvline(5.0, color="grey", linewidth=0.8)
    panel.grid(alpha=0.3)
plt.show()

# %%
# Two things make it so. The envelope multiplies each neighbour's weight *inside* the softmax and
# goes to zero with two continuous derivatives; and the softmax has a *sink*, a constant in its
# denominator, so that the weights of the last neighbour fade instead of staying one. Beside it: an
# ordinary softmax, in which the last neighbour has the whole weight until it is cut off.

env = envelope(distances, cutoff=5.0)
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
axes.plot(distances, env / (1 + env), label="envelope and sink")
axes.plot(distances, (distances < 5.0).double(), label="softmax with a cutoff")
axes.set(xlabel="distance of the only neighbour (Å)", ylabel="its attention weight")
axes.legend(frameon=False)
axes.grid(alpha=0.3)
plt.show()

# %%
# How much energy and force change between points 0.01 Å apart: at most anywhere, and across the
# cutoff.

cutoff = int((distances - 5.0).abs().argmin())
for name, values in (("energy (eV)", energy), ("force (eV/Å)", force)):
    steps = values.diff().abs()
    across = steps[cutoff - 1]  # from 4.99 to 5.00 Å
    print(f"{name}: at most {float(steps.max()):.1e}, at the cutoff {float(across):.1e}")
