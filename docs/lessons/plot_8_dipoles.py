"""
Dipole vectors from composed layers
===================================

``examples/compose.py`` composes a convolution, attention and a block in PyG's ``Sequential`` and
learns dipole moments of QM9, of which the data hold only the lengths. Here it trains for twenty
seconds instead of sixty and prints, beside the error, how exactly the predicted vectors follow
rotated and mirrored molecules. :doc:`/guides/compose` shows the model.
"""

import compose
import matplotlib.pyplot as plt
import torch
from e3nn.o3 import matrix_y
from molecules_data import load_molecules
from torch_geometric.data import Batch

from e2former_pyg.transforms import RandomRotation

errors = compose.main(["--seconds", "20"])

# %%
# The vector of one molecule while it turns around the y axis, by a model that has not been trained
# at all: x and z follow the turn, y and the length stay.

torch.manual_seed(0)
model = compose.DipoleModel()
molecule = load_molecules("mu")[1][0]
angles = torch.linspace(0, 2 * torch.pi, 49)
turned = [RandomRotation(matrix_y(angle))(molecule) for angle in angles]
with torch.no_grad():
    vectors = model(Batch.from_data_list(turned))

figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for component, name in enumerate("xyz"):
    axes.plot(angles.rad2deg(), vectors[:, component], label=name)
axes.plot(angles.rad2deg(), vectors.norm(dim=-1), "--", color="black", label="length")
axes.set(xlabel="angle of the molecule (degrees)", ylabel="dipole vector (Debye, untrained)")
axes.set_xticks(range(0, 361, 90))
axes.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.16))
axes.grid(alpha=0.3)
plt.show()
