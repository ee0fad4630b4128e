"""What the interfaces to simulation programs share: the potential that they run and the checks of
what they are given.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import torch

from .graph import VerletList
from .models import E2FormerPotential
from .models.embedding import MAX_CHARGE, MAX_SPIN

# The values that a potential takes for granted where it does not read them, and the allowed ones.
LABELS = {"charge": (0, -MAX_CHARGE, MAX_CHARGE), "spin": (1, 1, MAX_SPIN)}
# Of atomic numbers 1 to 118.
SYMBOLS = """
H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb
Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf
Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""


def prepare(
    potential: E2FormerPotential | str | Path,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> E2FormerPotential:
    """A potential of one's own to run, in eval mode and without gradients by parameters."""
    if isinstance(potential, (str, Path)):
        potential = E2FormerPotential.load(potential)
    elif isinstance(potential, E2FormerPotential):
        potential = copy.deepcopy(potential)  # neither mode nor dtype of the caller's changes
    else:
        raise TypeError(
            "`potential` must be an E2FormerPotential or the path of a checkpoint, got "
            f"{type(potential).__name__}"
        )
    if dtype is not None and dtype not in (torch.float32, torch.float64):
        raise ValueError(f"`dtype` must be torch.float32 or torch.float64, got {dtype}")
    return potential.to(device=device, dtype=dtype).eval().requires_grad_(False)


def neighbor_list(cutoff: float, skin: float | None, device: torch.device) -> VerletList:
    """The neighbour list of a simulation that runs an :class:`InferencePotential`, which on a GPU
    leaves out edges beyond the cutoff: there a wide skin, whose list serves longer, costs little.
    """
    if skin is None:
        skin = 1.0 if device.type == "cuda" else 0.5
    return VerletList(cutoff, skin, device)


def check_elements(potential: E2FormerPotential, numbers: Iterable[int]) -> None:
    """Raises on elements that the potential has not seen in training, where that is known."""
    known = potential.elements
    unseen = sorted(set(numbers) - set(known)) if known is not None else []
    if unseen:
        raise ValueError(
            f"`numbers` must be elements that the potential was trained on, {known}, found {unseen}"
        )


def check_label(potential: E2FormerPotential, name: str, value: float) -> int | None:
    """The total charge or spin multiplicity to give to the potential, if it reads it."""
    default, low, high = LABELS[name]
    number = float(value)
    if not (number.is_integer() and low <= number <= high):
        raise ValueError(f"`{name}` must be an integer in {low}..{high}, found {value}")
    if potential.backbone.config[name]:
        return int(number)
    if number != default:
        raise ValueError(
            f"`{name}` is {value}, but the potential does not read it: it was built with "
            f"{name}=False"
        )
    return None


def atomic_numbers(elements: Iterable[int | str]) -> list[int]:
    """The atomic numbers of symbols or atomic numbers."""
    symbols = SYMBOLS.split()
    numbers = []
    for element in elements:
        known = element in symbols if isinstance(element, str) else 1 <= element <= len(symbols)
        if not known:
            raise ValueError(
                f"`elements` must hold symbols or atomic numbers in 1..118, found {element!r}"
            )
        numbers.append(symbols.index(element) + 1 if isinstance(element, str) else int(element))
    return numbers
