"""The documentation takes measured numbers from the result files, and says so when it cannot."""

import re
from pathlib import Path

import pytest
from result_files import ROOT, conditions, load, number, record
from result_tables import TABLES

PAGES = sorted((ROOT / "docs").glob("*/*.rst"))
ROLES = [
    role
    for page in PAGES
    for role in re.findall(r":result:`([^`]+)`", page.read_text(encoding="utf-8"))
]


def test_number_is_that_of_the_file() -> None:
    expected = record("attention_h100", "op/forward/float32")
    text = number("attention_h100 | op/forward/float32 | ours_ms | .3f")
    assert text == f"{expected['ours_ms']:.3f}"
    text = number("attention_h100 | op/forward/float32 | baseline_peak_mib / 1024 | .2f")
    assert text == f"{expected['baseline_peak_mib'] / 1024:.2f}"
    text = number("attention_h100 | op/forward/float32 | baseline_ms / ours_ms | .0f")
    assert text == f"{expected['baseline_ms'] / expected['ours_ms']:.0f}"
    text = number("train_step_cpu | train-step/e2former/threads=1 | ratio_to schnet | .2f")
    ratio = record("train_step_cpu", "train-step/e2former/threads=1")["ratio_to"]["schnet"]
    assert text == f"{ratio:.2f}"


@pytest.mark.parametrize(
    ("role", "error"),
    [
        ("no_such_file | a | b | .1f", FileNotFoundError),
        ("attention_h100 | no/such/case | ours_ms | .1f", LookupError),
        ("attention_h100 | op/forward/float32 | no_such_key | .1f", KeyError),
        ("attention_h100 | op/forward/float32 | ours_ms / no_such_key | .1f", ValueError),
        ("attention_h100 | op/forward/float32", ValueError),
    ],
)
def test_what_is_missing_is_an_error(role: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        number(role)


def test_every_role_of_the_pages_resolves() -> None:
    assert ROLES
    for role in ROLES:
        assert re.fullmatch(r"-?[\d.,]+", number(" ".join(role.split())))


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_complete(name: str) -> None:
    header, rows = TABLES[name](load)
    assert rows
    assert all(len(row) == len(header) for row in rows)
    assert all(cell for row in rows for cell in row)


def test_readme_has_the_same_tables() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("attention", "potentials", "accuracy-forces"):
        for row in TABLES[name](load)[1]:
            assert f"| {' | '.join(row)} |" in readme


def test_accuracy_runs_are_those_of_the_text() -> None:
    for run in load("accuracy_cpu"):
        assert (run["clock"], run["threads"]) == ("cpu", 1)
        assert run["seed"] in ((0, 1, 2) if run["row"] in ("ethanol", "qm9-mu") else (0,))
        minutes = 3 if run["row"].startswith("qm9") else 20
        assert abs(run["training_minutes"] - minutes) < 0.1
    ours, visnet = (
        [float(row[column]) for row in TABLES["accuracy-forces"](load)[1]] for column in (1, 2)
    )
    ratios = [f"{mine / theirs:.1f}" for mine, theirs in zip(ours, visnet, strict=True)]
    text = " ".join((ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split())
    assert f"forces are {ratios[0]}, {ratios[1]} and {ratios[2]} times ViSNet's" in text


def test_accuracy_takes_what_has_been_run() -> None:
    """Rows of other quantities, a second seed, and models that have not been run."""

    def run(row: str, model: str, **test: float) -> dict:
        sizes = {"training_frames": 1200, "test_frames": 100, "steps": 5000, "parameters": 10**5}
        return {"row": row, "model": model, "test": test, **sizes}

    stresses = {"energy_mae_mev_per_atom": 1.234, "stress_mae_mev_per_angstrom3": 0.4567}
    runs = [
        run("qm9-mu", "schnet", mae_debye=0.02),
        run("qm9-mu", "schnet", mae_debye=0.04),
        run("alloys", "visnet", **stresses),
        run("qm9-energy", "e2former", mae_mev=1234.5),
    ]
    assert TABLES["accuracy"](lambda _: runs)[1] == [
        ["alloys", "energy (meV per atom)", "not run", "1.23", "not run", "not run"],
        ["alloys", "stress (meV/Å³)", "not run", "0.457", "not run", "not run"],
        ["QM9, energy of atomisation", "meV", "1,234", "not run", "not run", "not run"],
        ["QM9, dipole moment", "Debye", "not run", "not run", "not run", "0.0300"],
    ]
    missing = ["not run", "not run"]
    counts = ["1,200", "100", "not run", "5,000", *missing, "not run", "100,000", *missing]
    assert TABLES["accuracy-runs"](lambda _: runs)[1][0] == ["alloys", *counts]


def test_swaps_have_three_seeds() -> None:
    """As the guide says."""
    seeds: dict[str, set[int]] = {}
    for run in load("swap"):
        seeds.setdefault(run["baseline"], set()).add(run["seed"])
    assert len(seeds) == 4 and all(found == {0, 1, 2} for found in seeds.values())


def test_wrong_results_are_not_shown() -> None:
    assert all(row["right"] for row in load("attention_h100"))


def test_pages_type_no_measured_times() -> None:
    """Milliseconds and mebibytes in the text come from roles and directives."""
    for page in PAGES:
        if "generated" in page.parts or "gallery" in page.parts:
            continue
        text = re.sub(r":result:`[^`]+`", "", page.read_text(encoding="utf-8"))
        assert not re.search(r"\d[\d.,]* (ms|MiB|GiB)\b", text), page.name


def test_conditions_name_machine_versions_and_day() -> None:
    files = sorted(Path(path).stem for path in (ROOT / "benchmarks/results").glob("*.json"))
    for name in files:
        text = conditions(name)
        assert re.search(r"torch \d", text)
        assert re.search(r"20\d\d-\d\d-\d\d", text)
    # Runs on the CPU of a machine that has a GPU.
    assert "NVIDIA" not in conditions("accuracy_cpu") and "NVIDIA" in conditions("accuracy_gpu")
