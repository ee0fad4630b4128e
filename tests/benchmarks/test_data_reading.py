"""The layouts hold the same molecules, and what is measured of reading them is there."""

import data_reading
import numpy as np
import pytest
import torch
from data_layouts import LAYOUTS, random_molecules

LINUX = pytest.mark.skipif(
    not data_reading.Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux"
)


def write(layout, folder, molecules):
    path = folder / f"data.{LAYOUTS[layout].ending}"
    LAYOUTS[layout].write(path, molecules)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_hold_the_same(layout, tmp_path):
    molecules = random_molecules(23, conformations=5)
    path = write(layout, tmp_path, molecules)
    dataset = LAYOUTS[layout].read(path, dtype=torch.float64)
    assert len(dataset) == 23
    index = 0
    for molecule in molecules:
        for row in range(len(molecule.pos)):
            data = dataset[index]
            assert data.z.tolist() == molecule.z.tolist()
            np.testing.assert_allclose(data.energy, molecule.energy[row], rtol=1e-12)
            np.testing.assert_allclose(data.pos, molecule.pos[row], rtol=1e-6)
            np.testing.assert_allclose(data.forces, molecule.forces[row], rtol=1e-5)
            index += 1


@LINUX
@pytest.mark.slow
def test_measurements(tmp_path, capsys):
    records = {record["case"]: record for record in data_reading.run(100, 3, tmp_path)}
    kinds = ("read", "train")
    cases = [f"data-reading/{kind}/{name}" for kind in kinds for name in LAYOUTS]
    others = [f"data-reading/train/{name}" for name in ("npz-with-edges", "alloys")]
    assert list(records) == [*cases, *others]
    for layout in LAYOUTS:
        read, train = (records[f"data-reading/{kind}/{layout}"] for kind in kinds)
        assert read["records"] == read["reads"] == (100 if layout == "spice" else 20)
        assert 5 <= read["atoms_per_record"] <= 55
        assert read["records_per_cpu_second"] > 0
        assert len(read["anonymous_growth_mib_by_quarter"]) == 4
        assert 0 <= train["wait_ms"] <= train["step_ms"]
        assert 0 <= train["share_of_time_waiting"] < 1
        assert train["batch_cpu_ms"] > 0 and train["step_cpu_ms"] > 0
    assert capsys.readouterr().out.count("data-reading/") == 8


@LINUX
@pytest.mark.slow
def test_memory_is_seen(tmp_path):
    """What a process takes shows, or the bound below would say nothing."""
    molecules = random_molecules(20_000)
    npz = data_reading.read_in_process("npz", write("npz", tmp_path, molecules), reads=100)
    spice = data_reading.read_in_process("spice", write("spice", tmp_path, molecules), reads=100)
    # One keeps all graphs in memory, the other one none.
    assert npz["peak_rss_growth_mib"] > 2 * npz["file_mib"] > 28
    assert spice["peak_rss_growth_mib"] < npz["peak_rss_growth_mib"] / 2


@LINUX
@pytest.mark.slow
def test_memory_of_spice_is_bounded(tmp_path):
    """Checking 100,000 conformations and reading every tenth of them takes less than the file."""
    molecules = random_molecules(100_000, conformations=50)
    positions = sum(molecule.pos.size for molecule in molecules)
    path = write("spice", tmp_path, molecules)
    assert path.stat().st_size > 2 * 4 * positions > 60 * data_reading.MIB
    del molecules
    found = data_reading.read_in_process("spice", path, reads=10_000)
    assert found["records"] == 100_000 and found["reads"] == 10_000
    # The index, a list of the order, what is read at a time, and HDF5's own cache of up to 32 MiB.
    assert found["peak_rss_growth_mib"] < 48
