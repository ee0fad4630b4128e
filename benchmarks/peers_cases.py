"""The cases of the comparison with other libraries, those that matter most first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attention_systems import Setting

CUEQUIVARIANCE = ("cuequivariance-torch", "cuequivariance-ops-torch-cu13")
# What is compared, and the distributions whose versions a record names.
PACKAGES: dict[str, tuple[str, ...]] = {
    "potential": (),
    "mace": ("mace-torch", *CUEQUIVARIANCE),
    "nequip": ("nequip", *CUEQUIVARIANCE, "openequivariance"),
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
# What records are drawn against; trained models have no axis.
SERIES = ("atoms", "training", "degree", "lmax")
TRAINING = "training step"
SMALL = 100  # atoms
CUTOFFS = (4.0, 5.0, 6.0, 7.0, 8.0)  # 27 to 214 neighbours
DEGREES = (1, 2, 3, 4)
# Their kernels are not compiled in minutes for more paths than those of order 1 at high degrees.
SWEPT = (
    ("cuequivariance", "order1"),
    ("openequivariance", "order1"),
    ("e3nn", "order1"),
    ("escn", "block"),
    ("equiformer", "attention"),
    ("transformer", "scalars"),
)
TRAINED = ("potential", "mace", "nequip", "schnet", "visnet")
# Atoms and copies of the molecules that models are trained on.
MOLECULES = {"ethanol": (9, 20), "aspirin": (21, 64)}
TRAINED_ATOMS = 5000
MOLECULE_CHANNELS = 64


@dataclass(frozen=True)
class Case:
    """One record."""

    group: str
    part: str
    """What of the library is measured: the ``model``, a ``block``, a convolution's orders, ... or
    what a model is trained on.
    """
    which: str
    """A pass of a layer, ``energy+forces``, the same with the ``neighbours`` found anew, or a
    ``training step``.
    """
    atoms: int
    channels: int
    series: str = "atoms"
    cutoff: float = Setting.cutoff
    lmax: int = Setting.lmax

    @property
    def name(self) -> str:
        name = f"{self.group}/{self.part}/{self.which}/{self.atoms}"
        if self.series == "degree":
            return f"{name}/cutoff={self.cutoff:g}"
        return f"{name}/lmax={self.lmax}" if self.series == "lmax" else name

    @property
    def setting(self) -> Setting:
        """Of a layer or a convolution."""
        orders = ORDERS.get(self.part, Setting.orders)
        return Setting(self.lmax, orders, self.cutoff, channels=self.channels)


def all_cases(atoms: int, channels: int) -> Iterator[Case]:
    few = max(atoms // 10, 1)

    def layer(group: str, part: str, size: int) -> Iterator[Case]:
        for which in PASSES:
            yield Case(group, part, which, size, channels)

    for size in sorted({min(SMALL, few), few, atoms, 10 * atoms}):
        for which in ("energy+forces", "neighbours+energy+forces"):
            yield Case("potential", "model", which, size, channels)
    usual, least, most = (few, atoms), min(SMALL, few), 10 * atoms
    for group, sizes in (
        ("mace", (*usual, least, most)),
        ("nequip", (*usual, least)),  # 14 GB at the usual size
        ("schnet", (*usual, least, most)),
        ("visnet", (*usual, least)),  # 59 GB
    ):
        for size in dict.fromkeys(sizes):
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
    yield from _training(atoms, channels)
    yield from _sweeps(atoms, channels)


def _training(atoms: int, channels: int) -> Iterator[Case]:
    """All models on one system after the other, so that ours is traced once for each."""
    systems = [
        (name, size * min(copies, max(atoms // size, 1)), min(channels, MOLECULE_CHANNELS))
        for name, (size, copies) in MOLECULES.items()
    ]
    for part, size, width in (*systems, ("solid", min(TRAINED_ATOMS, atoms), channels)):
        for group in TRAINED:
            yield Case(group, part, TRAINING, size, width, "training")


def _sweeps(atoms: int, channels: int) -> Iterator[Case]:
    size, which = max(2 * atoms // 5, 1), "forward+backward"
    for cutoff in CUTOFFS:
        for group, part in SWEPT:
            yield Case(group, part, which, size, channels, "degree", cutoff)
    for lmax in DEGREES:
        for group, part in SWEPT:
            if group != "transformer":  # it has scalars alone
                yield Case(group, part, which, size, channels, "lmax", lmax=lmax)
