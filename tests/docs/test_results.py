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
    text = number("train_step_cpu | train-step/e2former/threads=1 | ratio_to schnet | .2f")
    ratio = record("train_step_cpu", "train-step/e2former/threads=1")["ratio_to"]["schnet"]
    assert text == f"{ratio:.2f}"


@pytest.mark.parametrize(
    ("role", "error"),
    [
        ("no_such_file | a | b | .1f", FileNotFoundError),
        ("attention_h100 | no/such/case | ours_ms | .1f", LookupError),
        ("attention_h100 | op/forward/float32 | no_such_key | .1f", KeyError),
        ("attention_h100 | op/forward/float32", ValueError),
    ],
)
def test_what_is_missing_is_an_error(role: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        number(role)


def test_every_role_of_the_pages_resolves() -> None:
    assert ROLES
    for role in ROLES:
        assert re.fullmatch(r"[\d.,]+", number(" ".join(role.split())))


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_complete(name: str) -> None:
    header, rows = TABLES[name](load)
    assert rows
    assert all(len(row) == len(header) for row in rows)
    assert all(cell for row in rows for cell in row)


def test_readme_has_the_same_tables() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("attention", "potentials"):
        for row in TABLES[name](load)[1]:
            assert f"| {' | '.join(row)} |" in readme


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
