"""A classical model of water made of ASE's calculators, for the example of a liquid to learn."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.ff import ForceField
from ase.calculators.mixing import SumCalculator
from ase.calculators.tip3p import TIP3P, angleHOH, rOH
from ase.utils.ff import Angle, Bond


def box(side: int = 3) -> Atoms:
    """Water molecules in random orientations on a grid, at 1 g/cm³."""
    rng, length = np.random.default_rng(0), (29.9 * side**3) ** (1 / 3)
    water = molecule("H2O")
    atoms = Atoms(cell=3 * [length], pbc=True)
    for place in np.ndindex(side, side, side):
        one = water.copy()
        one.euler_rotate(*(360 * rng.random(3)), center=one.positions[0])
        one.translate((np.array(place) + 0.5) * length / side - one.positions[0])
        atoms += one
    return atoms


def reference(atoms: Atoms) -> SumCalculator:
    """Flexible TIP3P, with the force constants of SPC/Fw."""
    oxygens = range(0, len(atoms), 3)
    bonds = [Bond(o, o + k, 45.93, rOH) for o in oxygens for k in (1, 2)]
    angles = [Angle(o + 1, o, o + 2, 3.291, angleHOH) for o in oxygens]
    return SumCalculator([TIP3P(rc=4.5, width=1.0), ForceField(bonds=bonds, angles=angles)])
