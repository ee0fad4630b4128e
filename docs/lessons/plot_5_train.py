r"""
Train a potential on ethanol
============================

Energies and forces of the bundled ethanol frames, half a minute of training: enough to see how it
is done, not enough for a good potential. ``make quickstart`` trains three times as long and beside
PyG's SchNet; :doc:`/background/performance` has the accuracy after longer training.
"""

import time

import matplotlib.pyplot as plt
import torch
from ethanol_data import load_ethanol, split_frames
from torch_geometric.loader import DataLoader

from e2former_pyg import E2FormerPotential

torch.manual_seed(0)
# Energies in eV, forces in eV/Å, edges within 5 Å; frames are split in blocks of time.
train_frames, test_frames = split_frames(load_ethanol(cutoff=5.0), 800, "time", seed=0)
print(train_frames[0])

# %%
# Total energies of molecules are thousands of eV, of which a network needs to learn the last
# fraction. :meth:`~e2former_pyg.models.E2FormerPotential.fit_references` takes the energies of
# elements, and the scale of the forces, from the training data.

potential = E2FormerPotential(
    hidden_channels=32, num_layers=2, lmax=2, heads=4, cutoff=5.0, avg_num_neighbors=8.0
)
everything = next(iter(DataLoader(train_frames, batch_size=len(train_frames))))
potential.fit_references(
    everything.z, everything.energy, everything.batch, forces=everything.forces
)

# %%
# The loss is on energies and forces; forces are derivatives of the energy, so the gradient by the
# parameters goes through second derivatives. Nothing needs to be done for it.

optimizer = torch.optim.AdamW(potential.parameters(), lr=3e-3)
loader = DataLoader(train_frames, batch_size=10, shuffle=True)
seconds, history, started = 30.0, [], time.perf_counter()
while time.perf_counter() - started < seconds:
    for data in loader:
        for group in optimizer.param_groups:  # down to zero at the end
            group["lr"] = 3e-3 * max(0.0, 1 - (time.perf_counter() - started) / seconds)
        out = potential(data)
        energy_loss = (out.energy - data.energy).abs().mean()
        force_loss = (out.forces - data.forces).abs().mean()
        optimizer.zero_grad()
        (0.03 * energy_loss + force_loss).backward()
        torch.nn.utils.clip_grad_norm_(potential.parameters(), 10.0)
        optimizer.step()
        history.append(1e3 * force_loss.item())
        if time.perf_counter() - started > seconds:
            break
print(f"{len(history)} steps")

# %%
# Errors on frames from other parts of the trajectory.

potential.eval()
with torch.no_grad():  # forces work here too
    test = next(iter(DataLoader(test_frames, batch_size=len(test_frames))))
    out = potential(test)
energy_error = 1e3 * float((out.energy - test.energy).abs().mean())
force_error = 1e3 * float((out.forces - test.forces).abs().mean())
print(f"energy {energy_error:.1f} meV, forces {force_error:.0f} meV/Å")

figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
panels[0].semilogy(history, linewidth=0.7)
panels[0].set(xlabel="step", ylabel="training force error (meV/Å)")
panels[1].plot(test.forces.flatten(), out.forces.flatten(), ".", markersize=2)
panels[1].plot([-5, 5], [-5, 5], color="black", linewidth=0.8)
panels[1].set(xlabel="reference force (eV/Å)", ylabel="predicted force (eV/Å)")
for panel in panels:
    panel.grid(alpha=0.3)
plt.show()
