"""The bundled frames and their splits."""

import numpy as np
import pytest
import torch
from ethanol_data import BLOCK, RAW, load_ethanol, split_frames


def test_frames_are_the_raw_ones_in_electronvolts() -> None:
    bundled = RAW.parents[1]
    before = sorted(bundled.rglob("*"))
    frames = load_ethanol()
    assert sorted(bundled.rglob("*")) == before  # nothing is written beside the data

    raw = np.load(RAW)
    kcal_per_mol = 0.0433641  # eV
    assert len(frames) == len(raw["E"]) == 1050
    for frame, energy, forces, pos in zip(frames, raw["E"], raw["F"], raw["R"], strict=True):
        assert frame.z.tolist() == raw["z"].tolist()
        assert float(frame.energy) == pytest.approx(float(energy[0]) * kcal_per_mol, rel=2e-6)
        np.testing.assert_allclose(frame.forces, forces * kcal_per_mol, rtol=2e-6, atol=1e-6)
        np.testing.assert_allclose(frame.pos, pos, rtol=1e-6, atol=1e-6)
    source, target = frames[-1].edge_index
    distance = torch.pdist(frames[-1].pos)
    assert source.numel() == 2 * int((distance < 5.0).sum())
    assert bool((target.diff() >= 0).all())


@pytest.mark.parametrize("how", ["random", "time"])
def test_splits_are_disjoint_and_complete(how: str) -> None:
    frames = list(range(260))
    train, rest = split_frames(frames, 90, how, seed=1)
    assert len(train) == 90
    assert sorted(train + rest) == frames
    assert split_frames(frames, 90, how, seed=1) == (train, rest)
    assert split_frames(frames, 90, how, seed=2) != (train, rest)


def test_split_in_time_draws_blocks() -> None:
    train, rest = split_frames(list(range(260)), 90, "time", seed=1)
    blocks = [{frame // BLOCK for frame in part} for part in (train, rest)]
    assert len(blocks[0] & blocks[1]) == 1  # 90 frames are three blocks and a part of one
    apart = sum({frame - 1, frame + 1}.isdisjoint(train) for frame in rest)
    assert apart >= len(rest) - 2 * len(blocks[0])


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`how` must be 'random' or 'time', got 'scaffold'"):
        split_frames([], 0, "scaffold", seed=0)
