r"""Angular algebra of SO(3): coupling coefficients, harmonics, and layouts of features."""

from e2former_pyg.so3.addition import addition_coefficient, recoupling_coefficient
from e2former_pyg.so3.coupling import clebsch_gordan, wigner_6j
from e2former_pyg.so3.degrees import degree_index
from e2former_pyg.so3.harmonics import solid_harmonics, spherical_harmonics
from e2former_pyg.so3.irreps import default_irreps, from_irreps, to_irreps
from e2former_pyg.so3.product import axis_aligned_product

__all__ = [
    "addition_coefficient",
    "axis_aligned_product",
    "clebsch_gordan",
    "default_irreps",
    "degree_index",
    "from_irreps",
    "recoupling_coefficient",
    "solid_harmonics",
    "spherical_harmonics",
    "to_irreps",
    "wigner_6j",
]
