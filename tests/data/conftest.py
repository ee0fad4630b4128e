"""Small files in the published layouts."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def molecule() -> dict[str, np.ndarray]:
    """Five frames of one molecule of three atoms, in the layout of the single-molecule files."""
    rng = np.random.default_rng(0)
    rest = np.array([[0.0, 0.0, 0.1], [0.0, 0.76, -0.5], [0.0, -0.76, -0.5]])
    return {
        "z": np.array([8, 1, 1], dtype=np.uint8),
        "pos": (rest + 0.05 * rng.standard_normal((5, 3, 3))).astype(np.float32),
        "forces": rng.standard_normal((5, 3, 3)).astype(np.float32),
        # More digits than float32 has.
        "energy": -2079.0 - 1e-6 * np.arange(5.0),
        "split": np.array([0, 0, 1, 0, 1], dtype=np.uint8),
        "frame": np.arange(5, dtype=np.int32),
        "meta": np.array('{"name": "water"}'),
    }


@pytest.fixture
def crystals() -> dict[str, np.ndarray]:
    """Three periodic frames of 2, 3 and 1 atoms, in the layout of the ragged files."""
    rng = np.random.default_rng(1)
    ptr = np.array([0, 2, 5, 6], dtype=np.int32)
    return {
        "z": np.array([29, 47, 29, 29, 79, 28], dtype=np.uint8),
        "pos": (1.9 * np.arange(6)[:, None] + 0.1 * rng.random((6, 3))).astype(np.float32),
        "forces": rng.standard_normal((6, 3)).astype(np.float32),
        "ptr": ptr,
        "energy": rng.standard_normal(3),
        "cell": 20.0 * np.eye(3) + rng.random((3, 3, 3)),
        "stress": rng.standard_normal((3, 3, 3)).astype(np.float32),
        "pbc": np.array([True, True, False]),
        "charge": np.array([0, 1, -1]),
        "spin": np.array([1, 2, 2]),
        "gap": rng.standard_normal(3),
        "meta": np.array("{}"),
    }


@pytest.fixture
def write_npz(tmp_path: Path):
    def write(arrays: dict[str, np.ndarray], name: str = "data.npz") -> Path:
        path = tmp_path / name
        np.savez_compressed(path, **arrays)
        return path

    return write
