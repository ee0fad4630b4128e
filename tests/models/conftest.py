"""Models and systems for the tests of models/, handed out as fixtures."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from e3nn import o3
from torch import Tensor, nn
from torch_geometric.data import Data

from e2former_pyg.models import E2Former, E2FormerPotential, E2FormerProperty

SETTINGS = {
    "hidden_channels": 8,
    "num_layers": 2,
    "lmax": 2,
    "heads": 2,
    "cutoff": 3.5,
    "num_radial": 6,
    "qk_channels": 4,
    "avg_num_neighbors": 6.0,
    "directional": True,
}
CLASSES = {"backbone": E2Former, "potential": E2FormerPotential, "property": E2FormerProperty}


def fill_zeros(model: nn.Module, seed: int = 1) -> None:
    """Replaces parameters that start at zero, which could hide what they multiply."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if not parameter.any():
            values = 0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            parameter.data.copy_(values)


def make(kind: str, *, dtype=torch.float64, seed=0, **kwargs) -> nn.Module:
    """A small model in eval mode, whose references and scale are not trivial."""
    torch.manual_seed(seed)
    model = CLASSES[kind](**(SETTINGS | kwargs)).to(dtype)
    fill_zeros(model)
    if kind == "potential":
        generator = torch.Generator().manual_seed(seed + 2)
        energies = torch.randn(119, dtype=torch.float64, generator=generator)
        model.references.energies.copy_(energies)
        model.references.scale.fill_(1.7)
    return model.eval()


def molecule(num_atoms: int = 8, seed: int = 0, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    """Elements and positions: the first atom at the origin, the next on the axes."""
    on_axes = [[0, 0, 0], [0, 1.1, 0], [1.2, 0, 0], [0, 0, -1.0], [0, -2.3, 0], [0, 0, 1.3]]
    generator = torch.Generator().manual_seed(seed)
    count = max(num_atoms - len(on_axes), 0)
    steps = 0.9 + 0.3 * torch.rand(count, 3, dtype=torch.float64, generator=generator)
    signs = torch.tensor([[1, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]]).repeat(count, 1)
    rest = signs[:count] * steps
    pos = torch.cat([torch.tensor(on_axes, dtype=torch.float64), rest])[:num_atoms]
    z = torch.tensor([6, 1, 8, 1, 6, 7, 1, 1, 8, 6])[:num_atoms]
    return z, pos.to(dtype)


def crystal(seed: int = 0, dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Elements, positions and a triclinic cell smaller than the cutoff."""
    cell = torch.tensor([[3.1, 0, 0], [0.7, 2.9, 0], [-0.4, 0.5, 3.3]], dtype=torch.float64)
    fractions = torch.tensor([[0, 0, 0], [0.5, 0.45, 0.1], [0.1, 0.5, 0.55]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    noise = 0.05 * torch.randn(3, 3, dtype=torch.float64, generator=generator)
    return torch.tensor([6, 8, 1]), (fractions @ cell + noise).to(dtype), cell.to(dtype)


def as_data(*parts: Tensor) -> Data:
    names = ("z", "pos", "cell")
    return Data(**dict(zip(names, parts, strict=False)))


def relative(value: Tensor, expected: Tensor) -> float:
    """The norm of the deviation over that of what is expected, which must not vanish."""
    assert value.shape == expected.shape
    norm = float(expected.detach().double().norm())
    assert norm > 0
    return float((value.detach().double() - expected.detach().double()).norm()) / norm


def rotation(seed: int = 0, improper: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    q = q * torch.linalg.det(q).sign()
    return -q if improper else q


def natural(lmax: int) -> o3.Irreps:
    return o3.Irreps([(1, (degree, (-1) ** degree)) for degree in range(lmax + 1)])


@pytest.fixture
def double_default() -> Iterator[None]:
    """e3nn computes Wigner matrices in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def wigner(double_default) -> Callable[[o3.Irreps, Tensor], Tensor]:
    return lambda irreps, matrix: o3.Irreps(irreps).D_from_matrix(matrix)


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """The functions above."""
    functions = (fill_zeros, make, molecule, crystal, as_data, relative, rotation, natural)
    return SimpleNamespace(**{function.__name__: function for function in functions})
