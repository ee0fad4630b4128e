"""Embedding of elements, total charge and spin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..checks import check_range, check_shape, values_known
from ..radial import MAX_ATOMIC_NUMBER

MAX_CHARGE = 20
MAX_SPIN = 40


class AtomEmbedding(nn.Module):
    r"""Invariant features of each atom from its element and, optionally, the total charge
    :math:`Q` and spin multiplicity :math:`S` of its graph,

    .. math::
        t_i = a_{z_i} + W_2\, \mathrm{SiLU}(W_1 [a_{z_i}, b_Q + c_S]).

    Args:
        channels (int): Number of features.
        charge (bool, optional): If set to :obj:`True`, reads the charge.
            (default: :obj:`False`)
        spin (bool, optional): If set to :obj:`True`, reads the spin multiplicity.
            (default: :obj:`False`)

    Shapes:
        - **output:** :math:`(N, C)`
    """

    def __init__(self, channels: int, charge: bool = False, spin: bool = False) -> None:
        super().__init__()
        self.channels = channels
        self.element = nn.Embedding(MAX_ATOMIC_NUMBER + 1, channels)
        self.charge = nn.Embedding(2 * MAX_CHARGE + 1, channels) if charge else None
        self.spin = nn.Embedding(MAX_SPIN, channels) if spin else None
        self.mix = None
        if charge or spin:
            self.mix = nn.Sequential(
                nn.Linear(2 * channels, channels), nn.SiLU(), nn.Linear(channels, channels)
            )

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        for module in self.modules():
            if isinstance(module, (nn.Embedding, nn.Linear)):
                module.reset_parameters()

    def forward(
        self,
        z: Tensor,
        batch: Tensor,
        batch_size: int,
        charge: Tensor | None = None,
        spin: Tensor | None = None,
    ) -> Tensor:
        r"""Runs the forward pass of the module.

        Args:
            z (torch.Tensor): The atomic numbers.
            batch (torch.Tensor): The graph of each atom.
            batch_size (int): The number of graphs.
            charge (torch.Tensor, optional): The total charge of each graph in e.
                (default: :obj:`None`, neutral)
            spin (torch.Tensor, optional): The spin multiplicity of each graph.
                (default: :obj:`None`, a singlet)
        """
        element = self.element(z)
        system = _embed("charge", self.charge, charge, 0, MAX_CHARGE, batch, batch_size)
        multiplicity = _embed("spin", self.spin, spin, 1, -1, batch, batch_size)
        if self.mix is None:
            return element
        parts = [part for part in (system, multiplicity) if part is not None]
        return element + self.mix(torch.cat([element, sum(parts[1:], parts[0])], dim=-1))


def _embed(
    name: str,
    table: nn.Embedding | None,
    values: Tensor | None,
    default: int,
    offset: int,
    batch: Tensor,
    batch_size: int,
) -> Tensor | None:
    if table is None:
        if values is not None:
            index = torch.as_tensor(values).reshape(-1)
            check_shape(name, index, batch_size)
            if values_known(index) and bool((index != default).any()):
                raise ValueError(f"`{name}` was given, but the model was built with {name}=False")
        return None
    if values is None:
        index = batch.new_full((batch_size,), default)
    else:
        index = torch.as_tensor(values, device=batch.device).reshape(-1)
        check_shape(name, index, batch_size)
        if values_known(index) and bool((index != index.long()).any()):
            raise ValueError(f"`{name}` must hold integers, got {index.tolist()}")
        index = index.long()
    check_range(name, index, -offset, table.num_embeddings - 1 - offset)
    return table(index + offset).index_select(0, batch)
