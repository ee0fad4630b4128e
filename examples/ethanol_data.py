"""The bundled ethanol frames, through PyG's own ``MD17`` dataset."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from torch_geometric.data import Data
from torch_geometric.datasets import MD17
from torch_geometric.transforms import Compose

from e2former_pyg.transforms import ConvertUnits, RadiusGraph

RAW = Path(__file__).parent / "data" / "ethanol" / "raw" / "md17_ethanol.npz"
BLOCK = 25
"""Frames of a block of the split in time: 0.25 ps."""


def load_ethanol(cutoff: float = 5.0) -> list[Data]:
    """All frames in eV and Å with their edges, in the order of time."""
    transform = Compose([ConvertUnits(energy="kcal/mol"), RadiusGraph(cutoff)])
    # Datasets write what they process beside the raw file, where runs at the same time would get
    # in each other's way and the folder may be read-only; processing takes less than a second.
    with tempfile.TemporaryDirectory() as root:
        raw = Path(root, "ethanol", "raw")
        raw.mkdir(parents=True)
        shutil.copyfile(RAW, raw / RAW.name)
        return list(MD17(root, "ethanol", transform=transform))


def split_frames(
    frames: list[Data], num_train: int, how: str, seed: int
) -> tuple[list[Data], list[Data]]:
    """Training frames and the others.

    Args:
        frames: All frames, in the order of time.
        num_train: Number of training frames.
        how: ``"random"``, or ``"time"``: blocks of consecutive frames are drawn instead of
            single ones, so that few unseen frames have a training frame next to them.
        seed: Seed of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    if how == "random":
        order = torch.randperm(len(frames), generator=generator).tolist()
    elif how == "time":
        starts = torch.randperm(-(-len(frames) // BLOCK), generator=generator).tolist()
        order = [
            index
            for start in starts
            for index in range(start * BLOCK, min((start + 1) * BLOCK, len(frames)))
        ]
    else:
        raise ValueError(f"`how` must be 'random' or 'time', got {how!r}")
    train, rest = sorted(order[:num_train]), sorted(order[num_train:])
    return [frames[index] for index in train], [frames[index] for index in rest]
