r"""Transforms of :class:`~torch_geometric.data.Data` and
:class:`~torch_geometric.data.Batch` objects that hold atomistic graphs. The
object passed in is never changed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import BaseTransform

from .graph import radius_graph
from .units import ENERGY_UNITS, LENGTH_UNITS

QM9_TARGETS = (
    *("mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "cv"),
    *("U0_atom", "U_atom", "H_atom", "G_atom", "A", "B", "C"),
)
"""The columns of :obj:`y` in PyG's :class:`~torch_geometric.datasets.QM9`."""


class RadiusGraph(BaseTransform):
    r"""Connects all atoms within a cutoff, periodic images included, by
    :meth:`~e2former_pyg.graph.radius_graph`.

    Reads :obj:`data.pos` and, where present, :obj:`data.cell` and
    :obj:`data.pbc`. Sets :obj:`data.edge_index`, sorted by target,
    :obj:`data.edge_cutoff` and, if there is a :obj:`data.cell`,
    :obj:`data.edge_shift`, the Cartesian offset in Å of the source of each
    edge (zero inside open systems). Attributes of former edges
    (:obj:`edge_attr`, :obj:`edge_weight`) are removed.

    It is also callable as :obj:`interaction_graph(pos, batch)`, which gives
    the edges and their lengths, as :class:`torch_geometric.nn.SchNet` and
    others expect.

    Args:
        cutoff (float): The cutoff in Å.
        max_num_neighbors (int, optional): Keep only so many neighbours of each
            atom, the nearest ones, and warn where this leaves any out.
            (default: :obj:`None`)

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> from e2former_pyg.transforms import RadiusGraph
        >>> data = Data(pos=torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.5]]))
        >>> RadiusGraph(cutoff=2.0)(data).edge_index
        tensor([[1, 0],
                [0, 1]])
    """

    def __init__(self, cutoff: float, max_num_neighbors: int | None = None) -> None:
        self.cutoff = float(cutoff)
        self.max_num_neighbors = max_num_neighbors

    def __call__(self, data: Any, batch: Tensor | None = None) -> Any:
        if isinstance(data, Tensor):
            return self.interaction_graph(data, batch)
        return super().__call__(data)

    def forward(self, data: Data | Batch) -> Data | Batch:
        pos = _position(data)
        cell = data.get("cell")
        is_batch = isinstance(data, Batch)
        edge_index, edge_shift = radius_graph(
            pos,
            self.cutoff,
            batch=data.get("batch"),
            cell=cell,
            pbc=_flags(data.get("pbc")),
            max_num_neighbors=self.max_num_neighbors,
            batch_size=data.num_graphs if is_batch else None,
        )
        data.edge_index = edge_index
        data.edge_shift = None if cell is None else edge_shift
        data.edge_attr = data.edge_weight = None
        data.edge_cutoff = self.cutoff
        if is_batch:
            data.edge_cutoff = torch.full((data.num_graphs,), self.cutoff, dtype=torch.float64)
            _register_edges(data)
        return data

    def interaction_graph(self, pos: Tensor, batch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Returns the edges of open systems and their lengths in Å, which are
        differentiable with respect to the positions.
        """
        edge_index, _ = radius_graph(
            pos, self.cutoff, batch, max_num_neighbors=self.max_num_neighbors
        )
        source, target = edge_index
        return edge_index, (pos[target] - pos[source]).norm(dim=-1)

    def __repr__(self) -> str:
        limit = self.max_num_neighbors
        more = "" if limit is None else f", max_num_neighbors={limit}"
        return f"{self.__class__.__name__}(cutoff={self.cutoff}{more})"


class RandomRotation(BaseTransform):
    r"""Rotates positions, cells, edge offsets, forces and stresses alike:
    :math:`\mathbf{v} \mapsto \mathbf{R} \mathbf{v}` for vectors, which are
    rows here, and :math:`\mathbf{R} \mathbf{\sigma} \mathbf{R}^{\top}` for
    stresses.

    Args:
        rotation (torch.Tensor, optional): The orthogonal matrix to apply, of
            shape :math:`(3, 3)`. If :obj:`None`, each call draws one
            uniformly at random, the same for all graphs of a batch.
            (default: :obj:`None`)
        generator (torch.Generator, optional): The source of random numbers.
            (default: :obj:`None`)

    Raises:
        ValueError: If :obj:`rotation` is not an orthogonal :math:`(3, 3)`
            matrix, or a cell or stress is not made of :math:`(3, 3)` matrices.
    """

    vectors = ("pos", "cell", "edge_shift", "forces", "force")

    def __init__(
        self, rotation: Tensor | None = None, generator: torch.Generator | None = None
    ) -> None:
        if rotation is not None:
            rotation = torch.as_tensor(rotation).detach().to("cpu", torch.float64)
            if rotation.shape != (3, 3):
                raise ValueError(f"`rotation` must have shape [3, 3], found {list(rotation.shape)}")
            deviation = float((rotation @ rotation.t() - torch.eye(3).double()).abs().max())
            if not deviation < 1e-5:
                raise ValueError(
                    f"`rotation` must be orthogonal, found R R^T - 1 = {deviation:.3g}"
                )
        self.rotation = rotation
        self.generator = generator

    def __repr__(self) -> str:
        # Processed files are told apart by this text.
        matrix = "" if self.rotation is None else f"rotation={self.rotation.tolist()}"
        return f"{self.__class__.__name__}({matrix})"

    def forward(self, data: Data | Batch) -> Data | Batch:
        rotation = self._draw() if self.rotation is None else self.rotation
        for key in self.vectors:
            value = data.get(key)
            if value is not None:
                _check_last(key, value, (3,))
                data[key] = value @ rotation.to(value).t()
        stress = data.get("stress")
        if stress is not None:
            matrices = stress.reshape(-1, 3, 3) if stress.size(-1) == 3 else stress
            _check_last("stress", matrices, (3, 3))
            rotation = rotation.to(stress)
            data.stress = (rotation @ matrices @ rotation.t()).view_as(stress)
        return data

    def _draw(self) -> Tensor:
        # A normally distributed quaternion has a uniformly distributed direction.
        q = torch.randn(4, dtype=torch.float64, generator=self.generator)
        w, x, y, z = (q / q.norm()).tolist()
        return torch.tensor(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ],
            dtype=torch.float64,
        )


class ConvertUnits(BaseTransform):
    r"""Converts a data set to eV and Å.

    Lengths are :obj:`pos`, :obj:`cell`, :obj:`edge_shift` and
    :obj:`edge_cutoff`; forces (:obj:`forces`, or :obj:`force` as in PyG's
    :class:`~torch_geometric.datasets.MD17`, which becomes :obj:`forces`) are
    energies per length, and :obj:`stress` is an energy per volume. Energies
    are returned in float64, since total energies need more digits than
    float32 has.

    Args:
        energy (float or str, optional): The unit of energy, in eV or by name:
            :obj:`"eV"`, :obj:`"meV"`, :obj:`"Hartree"`, :obj:`"kJ/mol"` or
            :obj:`"kcal/mol"`. (default: :obj:`1.0`)
        length (float or str, optional): The unit of length, in Å or by name:
            :obj:`"Angstrom"`, :obj:`"nm"` or :obj:`"Bohr"`.
            (default: :obj:`1.0`)
        energy_keys (list of str, optional): The attributes that are energies.
            Name :obj:`"y"` here where it is one.
            (default: :obj:`("energy",)`)

    Raises:
        ValueError: If a unit is unknown or not positive, or data have both
            :obj:`force` and :obj:`forces`.
    """

    def __init__(
        self,
        energy: float | str = 1.0,
        length: float | str = 1.0,
        energy_keys: Sequence[str] = ("energy",),
    ) -> None:
        self.energy = _factor("energy", energy, ENERGY_UNITS)
        self.length = _factor("length", length, LENGTH_UNITS)
        self.energy_keys = tuple(energy_keys)

    def forward(self, data: Data | Batch) -> Data | Batch:
        if "force" in data:
            if "forces" in data:
                raise ValueError("`data` has both `force` and `forces`, expected one of them")
            _rename(data, "force", "forces")
        factors = dict.fromkeys(("pos", "cell", "edge_shift", "edge_cutoff"), self.length)
        factors["forces"] = self.energy / self.length
        factors["stress"] = self.energy / self.length**3
        for key, factor in factors.items():
            if key in data:
                data[key] = data[key] * factor
        for key in self.energy_keys:
            if key in data:
                value = data[key]
                value = value.double() if isinstance(value, Tensor) else float(value)
                data[key] = value * self.energy
        return data

    def __repr__(self) -> str:
        more = "" if self.energy_keys == ("energy",) else f", energy_keys={self.energy_keys}"
        return f"{self.__class__.__name__}(energy={self.energy}, length={self.length}{more})"


class SelectTarget(BaseTransform):
    r"""Keeps some columns of :obj:`data.y`, :math:`(1, K)`, as the targets
    :math:`(1, D)` that :class:`~e2former_pyg.models.E2FormerProperty` predicts.

    In PyG's :class:`~torch_geometric.datasets.QM9` energies are in eV,
    :obj:`"mu"` is in Debye and :obj:`"alpha"` in cubed Bohr radii. All are
    float32, which rounds the total energies (:obj:`"U0"`, :obj:`"U"`,
    :obj:`"H"`, :obj:`"G"`) to steps of about 1 meV; those of atomization have
    no such loss.

    Args:
        target (str, int or list): The columns to keep, by name or by
            number.
        names (list of str, optional): The names of all columns.
            (default: those of QM9: :obj:`"mu"`, :obj:`"alpha"`,
            :obj:`"homo"`, :obj:`"lumo"`, :obj:`"gap"`, :obj:`"r2"`,
            :obj:`"zpve"`, :obj:`"U0"`, :obj:`"U"`, :obj:`"H"`, :obj:`"G"`,
            :obj:`"cv"`, :obj:`"U0_atom"`, :obj:`"U_atom"`, :obj:`"H_atom"`,
            :obj:`"G_atom"`, :obj:`"A"`, :obj:`"B"`, :obj:`"C"`)

    Raises:
        ValueError: If there is no such column, or :obj:`data.y` has another
            number of them.
    """

    def __init__(
        self, target: str | int | Sequence[str | int], names: Sequence[str] = QM9_TARGETS
    ) -> None:
        self.names = tuple(names)
        targets = [target] if isinstance(target, str | int) else list(target)
        for each in targets:
            if each not in (self.names if isinstance(each, str) else range(len(self.names))):
                known = f"one of {list(self.names)} or a number below {len(self.names)}"
                raise ValueError(f"`target` must be {known}, found {each!r}")
        self.columns = [
            self.names.index(each) if isinstance(each, str) else each for each in targets
        ]

    def forward(self, data: Data | Batch) -> Data | Batch:
        y, width = data.get("y"), len(self.names)
        if not isinstance(y, Tensor) or y.dim() != 2 or y.size(1) != width:
            found = list(y.shape) if isinstance(y, Tensor) else y
            raise ValueError(f"`data.y` must have shape [1, {width}], found {found}")
        data.y = y[:, self.columns]
        return data

    def __repr__(self) -> str:
        targets = [self.names[column] for column in self.columns]
        other = self.names != QM9_TARGETS  # processed files are told apart by this text
        return f"{self.__class__.__name__}({targets}{f', names={self.names}' if other else ''})"


def _position(data: Data | Batch) -> Tensor:
    if not isinstance(data, Data):
        raise TypeError(f"`data` must be a Data or Batch object, found {type(data).__name__}")
    pos = data.get("pos")
    if pos is None:
        raise ValueError("`data` has no `pos`, expected positions of shape [num_nodes, 3]")
    return pos


def _flags(pbc: Any) -> Tensor | None:
    return None if pbc is None else torch.as_tensor(pbc)


def _factor(name: str, unit: float | str, known: dict[str, float]) -> float:
    if isinstance(unit, str):
        if unit not in known:
            raise ValueError(f"`{name}` must be a number or one of {list(known)}, found {unit!r}")
        return known[unit]
    if not 0 < unit < float("inf"):
        raise ValueError(f"`{name}` must be positive and finite, found {unit}")
    return float(unit)


def _check_last(key: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if value.shape[-len(shape) :] != shape:
        raise ValueError(
            f"`{key}` must have shape [..., {', '.join(map(str, shape))}], "
            f"found {list(value.shape)}"
        )


def _rename(data: Data | Batch, old: str, new: str) -> None:
    data[new] = data[old]
    del data[old]
    for name in ("_slice_dict", "_inc_dict"):
        if isinstance(data, Batch) and hasattr(data, name):
            entries = copy.copy(getattr(data, name))
            entries[new] = entries.pop(old)
            setattr(data, name, entries)


def _register_edges(batch: Batch) -> None:
    # A batch can be split into its graphs again only along registered slices.
    if not hasattr(batch, "_slice_dict"):
        return
    ptr = batch.ptr
    edge_ptr = torch.searchsorted(batch.edge_index[1].contiguous(), ptr).cpu()
    none = torch.zeros(ptr.numel() - 1, dtype=torch.int64)
    slices = {"edge_index": edge_ptr, "edge_shift": edge_ptr, "edge_cutoff": torch.arange(len(ptr))}
    increments = {"edge_index": ptr[:-1].cpu(), "edge_shift": none, "edge_cutoff": none}
    batch._slice_dict = {**batch._slice_dict, **slices}
    batch._inc_dict = {**batch._inc_dict, **increments}
