r"""
A rotated molecule and its rotated features
===========================================

*Equivariance* means: rotate the input, and the output rotates with it. A layer that has this built
in need not learn it from rotated copies of the data, and cannot get it wrong.

Here is an untrained layer on a water molecule. Its output has nine rows for each atom. One channel
of them, as a function of direction, :math:`\sum_{\ell m} x_{\ell m} Y^\ell_m(\hat{\mathbf r})`,
is drawn as a surface around the atom.
"""

import matplotlib.pyplot as plt
import torch
from e3nn.o3 import Irrep, matrix_x, matrix_z
from torch_geometric.data import Data

from e2former_pyg import E2FormerConv
from e2former_pyg.so3 import spherical_harmonics
from e2former_pyg.transforms import RadiusGraph, RandomRotation

torch.manual_seed(1)
water = Data(
    z=torch.tensor([8, 1, 1]),
    pos=torch.tensor([[0.00, 0.00, 0.12], [0.00, 0.76, -0.47], [0.00, -0.76, -0.47]]),
)
water = RadiusGraph(cutoff=5.0)(water)
rotation = matrix_x(torch.tensor(1.0)) @ matrix_z(torch.tensor(0.5))  # angles in radians
rotated = RandomRotation(rotation)(water)

embedding = torch.nn.Embedding(10, 16)  # scalars for each element: they do not rotate
layer = E2FormerConv(16, 16, lmax=2, lmax_in=0, order=range(3), cutoff=5.0)


def features(data: Data) -> torch.Tensor:
    with torch.no_grad():
        return layer(embedding(data.z), data.pos, data.edge_index, data.z)  # [3, 9, 16]


# %%
# The layer sees only positions and elements: the two pictures come from two calls. Each surface has
# turned with its atom.

polar, around = torch.meshgrid(
    torch.linspace(0, torch.pi, 40), torch.linspace(0, 2 * torch.pi, 60), indexing="ij"
)
sphere = torch.stack([polar.sin() * around.cos(), polar.sin() * around.sin(), polar.cos()], dim=-1)
harmonics = spherical_harmonics(2, sphere)

figure = plt.figure(figsize=(8, 3.4))
for panel, (title, data) in enumerate({"water": water, "rotated water": rotated}.items(), start=1):
    axes = figure.add_subplot(1, 2, panel, projection="3d", proj_type="ortho")
    x = features(data)[:, :, 0]
    for atom in range(3):
        value = harmonics @ x[atom]
        size = 0.4 / value.abs().max()  # atoms have features of different size
        points = data.pos[atom] + size * value.abs().unsqueeze(-1) * sphere
        colors = plt.colormaps["coolwarm"](0.1 + 0.8 * (value > 0).double())
        axes.plot_surface(*points.unbind(-1), facecolors=colors, rcount=40, ccount=60)
    for hydrogen in (1, 2):
        axes.plot(*data.pos[[0, hydrogen]].T, color="black", linewidth=2, zorder=10)
    axes.set(xlim=(-1, 1), ylim=(-0.8, 1.2), zlim=(-1.2, 0.8), title=title)
    axes.set_box_aspect((1, 1, 1), zoom=1.3)
    axes.view_init(elev=15, azim=20)
    axes.set_axis_off()
plt.subplots_adjust(0, 0, 1, 0.93, wspace=0)
plt.show()

# %%
# The same in numbers. Scalars (row 0) stay, vectors (rows 1 to 3) turn with the rotation matrix
# itself, and rows 4 to 8 with the Wigner matrix of degree 2.

before, after = features(water), features(rotated)
wigner = Irrep("2e").D_from_matrix(rotation)
print(f"scalars: {float((after[:, 0] - before[:, 0]).abs().max()):.0e}")
print(f"vectors: {float((after[:, 1:4] - rotation @ before[:, 1:4]).abs().max()):.0e}")
print(f"degree 2: {float((after[:, 4:] - wigner @ before[:, 4:]).abs().max()):.0e}")
