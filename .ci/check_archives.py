"""Check what a wheel and an sdist hold: the package with its kernels, and nothing beside it."""

import sys
import tarfile
import zipfile
from pathlib import Path

NEEDED = {
    "e2former_pyg/__init__.py",
    "e2former_pyg/_version.py",
    "e2former_pyg/kernels/__init__.py",
    "e2former_pyg/py.typed",
}


def wheel_files(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def sdist_files(path: Path) -> set[str]:
    """Return the regular files: a symlink would not survive unpacking everywhere."""
    with tarfile.open(path) as archive:
        return {m.name.split("/", 1)[1] for m in archive.getmembers() if m.isfile()}


def main(paths: list[Path]) -> None:
    wheels = [path for path in paths if path.suffix == ".whl"]
    sdists = [path for path in paths if path.name.endswith(".tar.gz")]
    if len(wheels) != 1 or len(sdists) != 1:
        raise SystemExit(f"expected one wheel and one sdist, found {[p.name for p in paths]}")
    for path, files in ((wheels[0], wheel_files(wheels[0])), (sdists[0], sdist_files(sdists[0]))):
        if missing := NEEDED - files:
            raise SystemExit(f"{path.name} lacks {sorted(missing)}")
    top = {name.split("/", 1)[0] for name in wheel_files(wheels[0])}
    metadata = {name for name in top if name.endswith(".dist-info")}
    if extra := top - metadata - {"e2former_pyg"}:
        raise SystemExit(f"{wheels[0].name} also installs {sorted(extra)}")
    print(f"{wheels[0].name} and {sdists[0].name} hold what they should")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
