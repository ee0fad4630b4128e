"""Properties of graphs and atoms: scalars, vectors and tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from ..checks import check_shape
from ..nn import GatedFeedForward
from .checkpoint import load_checkpoint, save_checkpoint
from .e2former import E2Former, set_lmax_out
from .graphs import as_input, check_atoms, sum_over_graphs

if TYPE_CHECKING:
    from e3nn.o3 import Irreps


class E2FormerProperty(nn.Module):
    r"""Predicts scalars, vectors or tensors of graphs or atoms,

    .. math::
        y = \mu + \sigma \bigoplus_i W_\ell\, h_{i, \ell}, \qquad
        h_i = x_i + \mathrm{FeedForward}(x_i),

    with one linear map for each entry of :obj:`out`. Mean :math:`\mu` (scalars only) and scale
    :math:`\sigma` come from :meth:`fit_scale`.

    Args:
        out (str or e3nn.o3.Irreps, optional): The targets, *e.g.*, :obj:`"0e"` for a scalar,
            :obj:`"1o"` for a dipole moment, :obj:`"0e + 2e"` for a polarisability. With
            :obj:`parity="o3"` parities must be natural, :math:`(-1)^\ell`; otherwise they are
            labels. (default: :obj:`"0e"`)
        reduce (str, optional): :obj:`"sum"` or :obj:`"mean"` over the atoms of each graph, or
            :obj:`None` for properties of atoms. (default: :obj:`"sum"`)
        backbone (E2Former, optional): The backbone. (default: :obj:`None`, an
            :class:`E2Former` made from :obj:`**backbone_kwargs`)
        **backbone_kwargs (optional): Arguments of :class:`E2Former`. Here :obj:`lmax_out` is by
            default the highest degree of :obj:`out`.

    Shapes:
        - **input:** a :class:`~torch_geometric.data.Data` or
          :class:`~torch_geometric.data.Batch`, or atomic numbers :math:`(N)`, positions in Å
          :math:`(N, 3)`, graph of each atom :math:`(N)` *(optional)*
        - **output:** :math:`(B, D)`, or :math:`(N, D)` with :obj:`reduce=None`, in the layout of
          :obj:`out` (e3nn's basis and order)
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        out: str | Irreps = "0e",
        reduce: str | None = "sum",
        backbone: E2Former | None = None,
        **backbone_kwargs: Any,
    ) -> None:
        super().__init__()
        from e3nn.o3 import Irreps  # takes a second to import

        if reduce not in ("sum", "mean", None):
            raise ValueError(f"`reduce` must be 'sum', 'mean' or None, got {reduce!r}")
        if backbone is not None and backbone_kwargs:
            raise ValueError(
                f"`backbone` was given together with its arguments {sorted(backbone_kwargs)}"
            )
        try:
            irreps = Irreps(out)
        except (ValueError, TypeError, AssertionError) as error:
            raise ValueError(f"`out` must be valid e3nn irreps, got {out!r}") from error
        self.entries = [(entry.mul, entry.ir.l) for entry in irreps if entry.mul > 0]
        degree = max((degree for _, degree in self.entries), default=0)
        set_lmax_out(backbone_kwargs, degree)
        self.backbone = E2Former(**backbone_kwargs) if backbone is None else backbone
        if not self.entries or degree > self.backbone.lmax_out:
            raise ValueError(
                "`out` must hold degrees up to the backbone's lmax_out = "
                f"{self.backbone.lmax_out}, got {out}"
            )
        unnatural = any(entry.ir.p != (-1) ** entry.ir.l for entry in irreps)
        if self.backbone.config["parity"] == "o3" and unnatural:
            raise ValueError(f"`out` must have natural parity with parity='o3', got {out}")
        self.out = str(irreps)
        self.reduce = reduce
        channels = self.backbone.hidden_channels
        self.feed_forward = GatedFeedForward(channels, self.backbone.lmax_out)
        self.heads = nn.ModuleList(
            nn.Linear(channels, mul, bias=degree == 0) for mul, degree in self.entries
        )
        self.register_buffer("mean", torch.zeros(irreps.dim))
        self.register_buffer("scale", torch.ones(irreps.dim))

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make such a model, those of the backbone among them."""
        return {"out": self.out, "reduce": self.reduce, **self.backbone.config}

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        self.backbone.reset_parameters()
        self.feed_forward.reset_parameters()
        for head in self.heads:
            head.reset_parameters()  # type: ignore[operator]

    @torch.no_grad()
    def fit_scale(self, targets: Tensor, num_atoms: Tensor | None = None) -> E2FormerProperty:
        r"""Sets the mean of scalars and the scale of each entry from training targets.

        Args:
            targets (torch.Tensor): The targets, :math:`(*, D)`.
            num_atoms (torch.Tensor, optional): Atoms of each graph, with :obj:`reduce="sum"`:
                mean and scale are then those of one atom. (default: :obj:`None`)
        """
        dim = self.mean.numel()
        if targets.numel() == 0 or (
            targets.shape[-1:] != (dim,) and (dim > 1 or targets.dim() > 1)
        ):
            raise ValueError(f"`targets` must have shape [*, {dim}], got {list(targets.shape)}")
        targets = targets.reshape(-1, dim).double()
        if not bool(targets.isfinite().all()):
            raise ValueError("`targets` must be finite")
        if self.reduce == "sum":
            if num_atoms is None:
                raise ValueError("`num_atoms` must be given with reduce='sum'")
            check_shape("num_atoms", num_atoms, targets.size(0))
            if bool((num_atoms < 1).any()):
                raise ValueError(f"`num_atoms` must be positive, got {int(num_atoms.min())}")
            targets = targets / num_atoms.view(-1, 1)
        start = 0
        for mul, degree in self.entries:
            part = slice(start, start + mul * (2 * degree + 1))
            values, start = targets[:, part], part.stop
            mean = values.mean(0) if degree == 0 else torch.zeros_like(values[0])
            spread = (values - mean).square().mean().sqrt()
            self.mean[part] = mean.to(self.mean)
            varies = bool(spread > 1e-12 * values.abs().max())  # by more than rounding
            self.scale[part] = spread.to(self.scale) if varies else 1.0
        return self

    def forward(
        self,
        data: Data | Tensor | None = None,
        pos: Tensor | None = None,
        batch: Tensor | None = None,
        *,
        z: Tensor | None = None,
        edge_index: Tensor | None = None,
        edge_shift: Tensor | None = None,
        cell: Tensor | None = None,
        pbc: Tensor | None = None,
        charge: Tensor | None = None,
        spin: Tensor | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        r"""Runs the forward pass of the module.

        Args:
            data (Data or torch.Tensor, optional): The graphs, or their atomic numbers; then the
                other arguments are those of :meth:`E2Former.forward`. Edges of :obj:`data` must
                come from :class:`~e2former_pyg.transforms.RadiusGraph`; without edges they are
                built.
            pos (torch.Tensor, optional): The positions in Å.
            batch (torch.Tensor, optional): The graph of each atom.
            z (torch.Tensor, optional): The atomic numbers, instead of :obj:`data`.
            edge_index (torch.Tensor, optional): All pairs within the cutoff.
            edge_shift (torch.Tensor, optional): The image offset of each edge's source in Å.
            cell (torch.Tensor, optional): The cell of each graph in Å.
            pbc (torch.Tensor, optional): The periodic directions of each graph.
            charge (torch.Tensor, optional): The total charge of each graph in e.
            spin (torch.Tensor, optional): The spin multiplicity of each graph.
            batch_size (int, optional): The number of graphs.
        """
        inputs = as_input(
            data,
            pos,
            batch,
            self.backbone.cutoff,
            z=z,
            edge_index=edge_index,
            edge_shift=edge_shift,
            cell=cell,
            pbc=pbc,
            charge=charge,
            spin=spin,
            batch_size=batch_size,
        )
        check_atoms(inputs.z, inputs.pos, inputs.batch, inputs.batch_size)
        graph, num_graphs = inputs.graph_of_atom()
        x = inputs.call(self.backbone, graph, num_graphs)
        x = x + self.feed_forward(x)
        parts = []
        for (_, degree), head in zip(self.entries, self.heads, strict=True):
            part = head(x[:, degree * degree : (degree + 1) ** 2])  # [N, 2 l + 1, mul]
            parts.append(part.transpose(1, 2).flatten(1))
        out = self.mean + self.scale * torch.cat(parts, dim=1)
        if self.reduce is None:
            return out
        total = sum_over_graphs(out, graph, num_graphs)
        if self.reduce == "mean":
            counts = sum_over_graphs(torch.ones_like(out[:, :1]), graph, num_graphs)
            total = total / counts.clamp(min=1)
        return total.to(out.dtype)

    def save(self, path: str | Path) -> None:
        r"""Saves weights and configuration; see :meth:`E2FormerPotential.save`."""
        save_checkpoint(path, self, self.backbone, self.config)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> E2FormerProperty:
        r"""Loads what :meth:`save` wrote; see :meth:`E2FormerPotential.load`."""
        return load_checkpoint(path, cls, device)

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.backbone}, out={self.out!r}, reduce={self.reduce!r})"
        )
