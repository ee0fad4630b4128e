"""The cases of the comparison with other libraries, those that matter most first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

CUEQUIVARIANCE = ("cuequivariance-torch", "cuequivariance-ops-torch-cu13")
# What is compared, and the distributions whose versions a record names.
PACKAGES: dict[str, tuple[str, ...]] = {
    "potential": (),
    "mace": ("mace-torch", *CUEQUIVARIANCE),
    "nequip": ("nequip", *CUEQUIVARIANCE),
    "escn": ("fairchem-core",),
    "equiformer": ("fairchem-core",),
    "cuequivariance": CUEQUIVARIANCE,
    "openequivariance": ("openequivariance",),
    "e3nn": ("e3nn",),
    "transformer": ("torch-geometric",),
    "schnet": ("torch-geometric",),
    "visnet": ("torch-geometric",),
}
GROUPS = tuple(PACKAGES)
PASSES = ("forward", "forward+backward")
ORDERS: dict[str, tuple[int, ...]] = {"order1": (1,), "orders012": (0, 1, 2)}
SMALL = 100  # atoms


@dataclass(frozen=True)
class Case:
    """One record."""

    group: str
    part: str
    """What of the library is measured: the ``model``, a ``block``, a convolution's orders, ..."""
    which: str
    """A pass of a layer, ``energy+forces``, or the same with the ``neighbours`` found anew."""
    atoms: int
    channels: int

    @property
    def name(self) -> str:
        return f"{self.group}/{self.part}/{self.which}/{self.atoms}"


def all_cases(atoms: int, channels: int) -> Iterator[Case]:
    few = max(atoms // 10, 1)

    def layer(group: str, part: str, size: int) -> Iterator[Case]:
        for which in PASSES:
            yield Case(group, part, which, size, channels)

    for size in sorted({min(SMALL, few), few, atoms, 10 * atoms}):
        for which in ("energy+forces", "neighbours+energy+forces"):
            yield Case("potential", "model", which, size, channels)
    for group, sizes in (("mace", (few, atoms)), ("nequip", (atoms, few))):
        for size in sizes:
            yield Case(group, "model", "energy+forces", size, channels)
    for size in (atoms, few):
        yield from layer("escn", "block", size)
        yield from layer("escn", "edges", size)
        yield from layer("equiformer", "attention", size)
        for group in ("cuequivariance", "openequivariance"):
            for part in ORDERS:
                yield from layer(group, part, size)
        for part in ORDERS:
            yield from layer("e3nn", part, size)
        yield from layer("transformer", "scalars", size)
        for group in ("schnet", "visnet"):
            yield Case(group, "model", "energy+forces", size, channels)
