r"""Units of energy in eV and of length in Å, which the whole package reads here."""

__all__ = ["BOHR", "ENERGY_UNITS", "HARTREE", "KILOJOULE_PER_MOLE", "LENGTH_UNITS"]

# CODATA 2022; the electron volt and the mole are exact.
HARTREE = 27.211386245981
"""A hartree in eV."""
BOHR = 0.529177210544
"""A bohr in Å."""
KILOJOULE_PER_MOLE = 1e3 / (1.602176634e-19 * 6.02214076e23)
"""A kJ/mol in eV."""
ENERGY_UNITS = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": HARTREE,
    "kJ/mol": KILOJOULE_PER_MOLE,
    "kcal/mol": 4.184 * KILOJOULE_PER_MOLE,
}
"""Units of energy by name, in eV."""
LENGTH_UNITS = {"Angstrom": 1.0, "nm": 10.0, "Bohr": BOHR}
"""Units of length by name, in Å."""
