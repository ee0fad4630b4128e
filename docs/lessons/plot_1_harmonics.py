r"""
Spherical harmonics
===================

A direction is a point on a sphere, and *spherical harmonics* :math:`Y^\ell_m` are functions of
directions: one of degree 0, three of degree 1, five of degree 2, :math:`2\ell+1` of degree
:math:`\ell`. They are to directions what sines and cosines are to a circle: the higher the degree,
the finer the detail.

In each picture the surface is as far from the centre as the harmonic is large in that direction;
red is positive, blue negative.
"""

import matplotlib.pyplot as plt
import torch
from e3nn.o3 import Irrep, rand_matrix

from e2former_pyg.so3 import spherical_harmonics

polar, around = torch.meshgrid(
    torch.linspace(0, torch.pi, 50), torch.linspace(0, 2 * torch.pi, 75), indexing="ij"
)
sphere = torch.stack(
    [polar.sin() * around.cos(), polar.sin() * around.sin(), polar.cos()], dim=-1
)  # points of the unit sphere, [50, 75, 3]
values = spherical_harmonics(2, sphere)  # [50, 75, 9]

# %%
# A feature with ``lmax=2`` has nine rows: row :math:`\ell^2 + \ell + m` is of degree
# :math:`\ell` and order :math:`m`. Degree 1 is
# :math:`\sqrt{3}\,(x, y, z)` in this order, so that the rows of degree 1 *are* a vector.

figure = plt.figure(figsize=(8, 5.4))
for row in range(9):
    degree = int(row**0.5)
    m = row - degree * (degree + 1)
    axes = figure.add_subplot(3, 5, 5 * degree + 3 + m, projection="3d", proj_type="ortho")
    points = values[..., row : row + 1].abs() * sphere
    colors = plt.colormaps["coolwarm"](0.1 + 0.8 * (values[..., row] > 0).double())
    axes.plot_surface(*points.unbind(-1), facecolors=colors, rcount=50, ccount=75)
    axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), zlim=(-1.3, 1.3))
    axes.set_title(f"row {row}: l={degree}, m={m}", fontsize=9)
    axes.set_axis_off()
plt.subplots_adjust(0, 0, 1, 0.95, wspace=0, hspace=0.1)
plt.show()

# %%
# What makes them useful: turn all directions by a rotation :math:`R`, and the harmonics of one
# degree mix only among themselves, by a matrix :math:`D^\ell(R)` that is the same for all
# directions. e3nn knows these *Wigner matrices*, and ours is its basis.

rotation = rand_matrix()
directions = torch.randn(100, 3)
before = spherical_harmonics(2, directions)
after = spherical_harmonics(2, directions @ rotation.T)
for degree in range(3):
    rows = slice(degree**2, (degree + 1) ** 2)
    matrix = Irrep(degree, 1).D_from_matrix(rotation)
    error = (after[:, rows] - before[:, rows] @ matrix.T).abs().max()
    print(f"degree {degree}: {2 * degree + 1} x {2 * degree + 1} matrix, error {error:.0e}")
