"""The cases of the attention benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from attention_systems import Setting

# Parts of --atoms; 10,240 of them in the published numbers, so that the sizes go from 1,024 to
# 102,400, and the largest forward pass has 1,024,000.
SIZES = (0.1, 0.2, 0.5, 1, 2, 5, 10)
LARGEST = 100
SMALL = 100  # atoms
CUTOFFS = (4.0, 5.0, 6.0, 7.0, 8.0)
PASSES = ("forward", "forward+backward", "second-order")


@dataclass(frozen=True)
class Case:
    """One record."""

    group: str
    name: str
    kind: str  # attention, convolution or layer
    which: str  # the pass
    setting: Setting
    atoms: int
    baseline: str | None = "edge-tensors"
    shrink: bool = False
    """Whether the number of atoms is halved until the baseline fits into memory."""
    mode: str = "stream"
    """``stream``: launches run ahead; ``eager``: they do not; ``graph``: a CUDA graph."""


def all_cases(atoms: int, channels: int) -> Iterator[Case]:
    setting = Setting(channels=channels)
    for which in PASSES:
        yield Case("op", f"op/{which}/float32", "attention", which, setting, atoms)
    half = replace(setting, dtype=torch.bfloat16)
    yield Case("op", "op/forward/bfloat16", "attention", "forward", half, atoms)

    for which in PASSES[:2]:
        case = Case("layer", f"layer/{which}/float32", "layer", which, setting, atoms)
        yield replace(case, baseline="TransformerConv")
        yield replace(case, name=f"{case.name}/edge-tensors")

    first = replace(setting, orders=(1,))
    for which in PASSES[:2]:
        yield Case("conv", f"conv/{which}/float32", "convolution", which, first, atoms)

    small = Case("small", "", "layer", "forward", setting, min(SMALL, atoms))
    for mode in ("eager", "graph"):
        yield replace(small, name=f"small/layer/forward/{mode}", mode=mode)

    # The largest sizes of edge tensors last among these: they leave the memory fragmented.
    high = replace(setting, lmax=4, orders=(0, 1, 2, 3, 4))
    for which in PASSES[:2]:
        case = Case("lmax4", f"op/{which}/lmax4/full-size", "attention", which, high, atoms)
        yield replace(case, baseline=None)
        yield replace(case, name=f"op/{which}/lmax4", atoms=2 * atoms, shrink=True)
    case = Case("largest", "op/second-order/largest", "attention", PASSES[2], setting, 2 * atoms)
    yield replace(case, shrink=True)

    yield from _sweeps(setting, atoms)


def _sweeps(setting: Setting, atoms: int) -> Iterator[Case]:
    which = "forward+backward"
    for part in SIZES:
        size = max(round(part * atoms), 1)
        yield Case("atoms", f"atoms/{which}/{size}", "attention", which, setting, size)
    size = LARGEST * atoms
    case = Case("million", f"atoms/layer/forward/{size}", "layer", "forward", setting, size)
    yield replace(case, baseline=None)
    for cutoff in CUTOFFS:
        changed = replace(setting, cutoff=cutoff)
        for which in PASSES:
            name = f"degree/{which}/cutoff={cutoff:g}"
            yield Case("degree", name, "attention", which, changed, atoms)
    for lmax in range(7):
        changed = replace(setting, lmax=lmax, orders=(0, 1) if lmax > 0 else (0,))
        for which in PASSES[:2]:
            name = f"lmax/{which}/lmax={lmax}"
            yield Case("lmax", name, "attention", which, changed, atoms)


GROUPS = tuple(dict.fromkeys(case.group for case in all_cases(1, 8)))
