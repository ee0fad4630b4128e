r"""Units of energy in eV and of length in Å, which the whole package reads here:
:obj:`ENERGY_UNITS` and :obj:`LENGTH_UNITS` by name, :obj:`HARTREE`, :obj:`BOHR` and
:obj:`KILOJOULE_PER_MOLE`.
"""

# CODATA 2022; the electron volt and the mole are exact.
HARTREE = 27.211386245981
BOHR = 0.529177210544
KILOJOULE_PER_MOLE = 1e3 / (1.602176634e-19 * 6.02214076e23)
ENERGY_UNITS = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": HARTREE,
    "kJ/mol": KILOJOULE_PER_MOLE,
    "kcal/mol": 4.184 * KILOJOULE_PER_MOLE,
}
LENGTH_UNITS = {"Angstrom": 1.0, "nm": 10.0, "Bohr": BOHR}
