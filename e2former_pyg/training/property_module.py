r"""Training of models of properties."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

from ..models import E2FormerProperty
from .base import TrainingModule
from .losses import LOSSES


class E2FormerPropertyModule(TrainingModule):
    r"""Trains an :class:`~e2former_pyg.E2FormerProperty`. The loss is that of the errors in units
    of the model's scale, which is fitted to the training set before the first step. Logged are
    :obj:`val/mae` and :obj:`test/mae` in the unit of the targets.

    Args:
        model (E2FormerProperty): The model.
        target (str, optional): The attribute of the data that is predicted, :math:`(B, *)`, or
            :math:`(N, *)` for properties of atoms. (default: :obj:`"y"`)
        target_index (int, optional): The column of it, *e.g.*, 4 for the gap in PyG's
            :class:`~torch_geometric.datasets.QM9`. (default: :obj:`None`, all)
        loss (str, optional): :obj:`"mae"`, :obj:`"mse"` or :obj:`"huber"`.
            (default: :obj:`"mae"`)
        fit_scale (bool, optional): If set to :obj:`False`, keeps mean and scale of the model, as
            with :obj:`weights` to start from. (default: :obj:`True`)
        lr (float, optional): This and all that follow as in :class:`E2FormerModule`.
            (default: :obj:`1e-3`)
        weight_decay (float, optional): The weight decay. (default: :obj:`1e-3`)
        betas (tuple, optional): The betas of AdamW. (default: :obj:`(0.9, 0.999)`)
        optimizer (str, optional): :obj:`"adamw"` or :obj:`"muon"`. (default: :obj:`"adamw"`)
        warmup_steps (int, optional): Steps in which the learning rate rises.
            (default: :obj:`1000`)
        warmup_start (float, optional): The part of :obj:`lr` at the first step.
            (default: :obj:`0.01`)
        end_factor (float, optional): The part of :obj:`lr` at the last step.
            (default: :obj:`0.01`)
        total_steps (int, optional): The step at which that is. (default: :obj:`None`, the last)
        activation_checkpointing (bool, optional): If set to :obj:`True`, computes blocks again in
            the backward pass. (default: :obj:`False`)
        weights (str, optional): A file of :meth:`E2FormerProperty.save` to start from.
            (default: :obj:`None`)
    """

    model: E2FormerProperty

    def __init__(
        self,
        model: E2FormerProperty,
        *,
        target: str = "y",
        target_index: int | None = None,
        loss: str = "mae",
        fit_scale: bool = True,
        lr: float = 1e-3,
        weight_decay: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        optimizer: str = "adamw",
        warmup_steps: int = 1000,
        warmup_start: float = 0.01,
        end_factor: float = 0.01,
        total_steps: int | None = None,
        activation_checkpointing: bool = False,
        weights: str | None = None,
    ) -> None:
        known = [kind for kind in LOSSES if kind != "l2"]
        if loss not in known:
            raise ValueError(f"`loss` must be one of {known}, got {loss!r}")
        super().__init__(
            model,
            lr=lr,
            weight_decay=weight_decay,
            betas=betas,
            optimizer=optimizer,
            warmup_steps=warmup_steps,
            warmup_start=warmup_start,
            end_factor=end_factor,
            total_steps=total_steps,
            activation_checkpointing=activation_checkpointing,
            weights=weights,
            metrics=["mae"],
            losses=[target],
        )
        self.target = target
        self.target_index = target_index
        self.loss = loss
        self.fit_scale = fit_scale

    def sums(self, data: Batch) -> dict[str, tuple[Tensor, int]]:
        return self._sums(self._errors(data))

    def measure(self, data: Batch) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, int]]]:
        found = self._errors(data)
        return {"mae": found.abs()}, self._sums(found)

    def loss_weights(self) -> dict[str, float]:
        return {self.target: 1.0}

    def fit_constants(self, loader: DataLoader) -> None:
        if not self.fit_scale:
            return
        targets, sizes = [], []
        for data in loader:
            targets.append(self._targets(data, self.model.mean.numel()))
            sizes.append(data.ptr.diff())
        self.model.fit_scale(torch.cat(targets), torch.cat(sizes))

    def _errors(self, data: Batch) -> Tensor:
        out = self.model(data)
        return out - self._targets(data, out.size(-1)).to(out.dtype)

    def _sums(self, found: Tensor) -> dict[str, tuple[Tensor, int]]:
        values = LOSSES[self.loss](found / self.model.scale)
        return {self.target: (values.double().sum(), values.numel())}

    def _targets(self, data: Batch, dim: int) -> Tensor:
        targets = data.get(self.target)
        if targets is None:
            raise ValueError(f"`target`: the data have no {self.target!r}, {sorted(data.keys())}")
        rows = data.num_nodes if self.model.reduce is None else data.num_graphs
        targets = targets.reshape(rows, -1)
        if self.target_index is not None:
            if self.target_index >= targets.size(1):
                raise ValueError(
                    f"`target_index` must be below {targets.size(1)}, got {self.target_index}"
                )
            targets = targets[:, self.target_index].unsqueeze(1)
        if targets.size(1) != dim:
            raise ValueError(
                f"`{self.target}` must have {dim} columns as the model's `out`, "
                f"got {targets.size(1)}"
            )
        return targets
