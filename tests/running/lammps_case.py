"""Runs LAMMPS on a structure, on as many ranks as it is started on, and writes what it gave.

    mpiexec -n 2 python lammps_case.py FOLDER [FAULT]

reads ``start.traj`` and ``potential.safetensors`` there. The test that starts it compares with ASE.
"""

import json
import sys
from pathlib import Path

import numpy as np
from ase.calculators.lammps import Prism
from ase.io import read
from ase.io.lammpsdata import write_lammps_data
from lammps import lammps

from e2former_pyg.lammps import E2FormerFix

ELEMENTS = ["H", "C", "O"]
STEPS, TIME_STEP = 20, 0.0005  # ps

folder, fault = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
atoms = read(folder / "start.traj")
prism = Prism(atoms.cell.array, atoms.pbc)
lmp = lammps(cmdargs=["-screen", "none", "-log", "none"])
rank = lmp.extract_setting("world_rank")
data = folder / "start.data"
if rank == 0:
    write_lammps_data(
        data, atoms, specorder=ELEMENTS, prismobj=prism, masses=True, velocities=True, units="metal"
    )
if lmp.extract_setting("world_size") > 1:
    lmp.get_mpi_comm().Barrier()
lmp.commands_string(
    f"""
    units metal
    boundary {" ".join("p" if periodic else "s" for periodic in atoms.pbc)}
    atom_modify map yes
    box tilt large
    read_data {data}
    pair_style none
    neighbor 0.3 bin
    neigh_modify every 1 delay 0 check yes
    timestep {TIME_STEP}
    fix integrate all nve
    thermo_modify norm no
    thermo 1
    """
)
fix = E2FormerFix(lmp, folder / "potential.safetensors", ELEMENTS, neighbor_skin=0.3)
if fault == "nan" and rank == lmp.extract_setting("world_size") - 1:
    evaluate = fix._evaluate

    def fail(*args):
        raise ValueError("`pos` must be finite")

    fix._evaluate = fail
try:
    results = {}
    for name, steps in (("start", 0), ("end", STEPS)):
        fix.run(steps)
        results[name] = {
            "energy": lmp.get_thermo("pe"),
            "pressure": [lmp.get_thermo(f"p{k}") for k in ("xx", "yy", "zz", "yz", "xz", "xy")],
            "kinetic": lmp.get_thermo("ke"),
            "forces": np.array(lmp.gather_atoms("f", 1, 3)).reshape(-1, 3),
            "positions": np.array(lmp.gather_atoms("x", 1, 3)).reshape(-1, 3),
            "local": int(lmp.extract_setting("nlocal")),
        }
    if rank == 0:
        for values in results.values():
            values["forces"] = prism.vector_to_ase(values["forces"]).tolist()
            values["positions"] = prism.vector_to_ase(values["positions"]).tolist()
        (folder / "results.json").write_text(json.dumps(results))
except (ValueError, RuntimeError) as error:
    (folder / f"error{rank}").write_text(str(error))
