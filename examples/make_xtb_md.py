"""Make frames of a molecule with energies and forces, as the bundled ones were made.

    pip install '.[ase,examples]' tblite
    python examples/make_xtb_md.py CH3CH2OH --output runs/ethanol.npz

runs molecular dynamics with GFN2-xTB (tblite, through ASE) and writes every 20th frame in the
layout of ``e2former_pyg.data.NPZDataset``, with the settings of the bundled molecules: relaxed,
then Langevin, 500 K, 0.5 fs, friction 0.01/fs, the first picosecond left out. The molecule is one
of ``ase.build.molecule`` or a file that ASE reads. ``--calculator emt`` needs ASE alone, for a look
at the script: its molecules are not real ones.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.collections import g2
from ase.md.langevin import Langevin
from ase.neighborlist import natural_cutoffs, neighbor_list
from ase.optimize import BFGS
from tqdm import tqdm

BROKEN = 1.6  # times its length in the relaxed molecule a bond is none


def load_molecule(name: str) -> Atoms:
    if name in g2.names:
        return molecule(name)
    if Path(name).is_file():
        return ase.io.read(name)
    raise ValueError(f"`molecule` must be a file or a name such as 'CH3CH2OH', found {name!r}")


def make_calculator(name: str, charge: int) -> Any:
    if name == "emt":
        return EMT()
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise ImportError("GFN2-xTB needs tblite: pip install tblite") from error
    return TBLite(method="GFN2-xTB", accuracy=0.1, charge=charge, verbosity=0)


def sample(atoms: Atoms, arguments: argparse.Namespace) -> dict[str, Any]:
    """Relaxes the molecule and samples frames from its dynamics; it keeps the calculator."""
    BFGS(atoms, logfile=None).run(fmax=0.01, steps=1000)
    first, second, bonds = neighbor_list("ijd", atoms, natural_cutoffs(atoms, mult=1.2))
    rng = np.random.default_rng(arguments.seed)
    spread = np.sqrt(units.kB * arguments.temperature * atoms.get_masses())[:, None]
    atoms.set_momenta(spread * rng.standard_normal((len(atoms), 3)))
    options = {"temperature_K": arguments.temperature, "friction": 0.01 / units.fs}
    dynamics = Langevin(atoms, 0.5 * units.fs, **options, fixcm=False, rng=rng)
    dynamics.run(arguments.equilibrate)
    columns: dict[str, list] = {name: [] for name in ("pos", "energy", "forces", "temperature")}
    for _ in tqdm(range(arguments.frames), desc="frames", mininterval=1.0):
        dynamics.run(arguments.every)
        stretch = float(np.max(atoms.get_all_distances()[first, second] / bonds, initial=1.0))
        if stretch > BROKEN:
            raise RuntimeError(f"A bond broke ({stretch:.2f} times its length): try another seed")
        # The centre of mass moves as well, and float32 has its digits for the atoms.
        columns["pos"].append(atoms.positions - atoms.get_center_of_mass())
        columns["energy"].append(atoms.get_potential_energy())
        columns["forces"].append(atoms.get_forces())
        columns["temperature"].append(atoms.get_temperature())
    return {name: np.array(values) for name, values in columns.items()}


def save(path: Path, atoms: Atoms, frames: dict[str, Any], settings: dict[str, Any]) -> None:
    """Writes the frames, the last tenth of them for validation; whole or not at all."""
    count = len(frames["energy"])
    arrays = {
        "z": atoms.numbers.astype(np.uint8),
        "pos": frames["pos"].astype(np.float32),
        "energy": frames["energy"],
        "forces": frames["forces"].astype(np.float32),
        "split": (np.arange(count) >= count - count // 10).astype(np.uint8),
        "meta": np.array(json.dumps(settings)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp.npz")
    np.savez_compressed(temporary, **arrays)
    os.replace(temporary, path)


def main(args: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("molecule", help="a name such as CH3CH2OH, or a file")
    parser.add_argument("--output", type=Path, default=Path("runs/xtb_md.npz"))
    parser.add_argument("--calculator", choices=["xtb", "emt"], default="xtb")
    parser.add_argument("--charge", type=int, default=0, help="total charge (of xTB)")
    parser.add_argument("--frames", type=int, default=1050)
    parser.add_argument("--every", type=int, default=20, help="steps from one frame to the next")
    parser.add_argument("--equilibrate", type=int, default=2000, help="steps left out at first")
    parser.add_argument("--temperature", type=float, default=500.0, help="in K")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(args)
    atoms = load_molecule(arguments.molecule)
    atoms.calc = make_calculator(arguments.calculator, arguments.charge)
    frames = sample(atoms, arguments)
    save(arguments.output, atoms, frames, {**vars(arguments), "output": str(arguments.output)})
    energy, kelvin = frames["energy"], frames["temperature"].mean()
    print(f"{len(energy)} frames of {atoms.get_chemical_formula()} at {kelvin:.0f} K")
    print(f"energy {energy.mean():.3f} eV, standard deviation {energy.std():.3f} eV")
    print(f"force RMS per component {np.sqrt(np.mean(frames['forces'] ** 2)):.3f} eV/Å")
    print(f"written: {arguments.output}")
    return arguments.output


if __name__ == "__main__":
    main()
