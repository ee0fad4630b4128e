r"""Training of potentials."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

from ..models import E2FormerPotential, ReferenceFit
from .base import TrainingModule
from .losses import LOSSES, Weight, check_weight, errors, loss_sums, weight_at


class E2FormerModule(TrainingModule):
    r"""Trains an :class:`~e2former_pyg.E2FormerPotential` on energies, forces and stresses: the
    loss is

    .. math::
        w_E \langle L_E(\Delta E_g / N_g) \rangle_g + w_F \langle L_F(\Delta \mathbf{F}_i)
        \rangle_i + w_\sigma \langle L_\sigma(\Delta \sigma_g) \rangle_g,

    means over the graphs :math:`g` and atoms :math:`i` of all processes, in eV and Å. Batches
    hold :obj:`energy`, :obj:`forces` and :obj:`stress`, as the datasets of
    :mod:`e2former_pyg.data` do; a label whose weight is zero may be missing.

    Logged are the parts of the loss (:obj:`train/...`) and, of :obj:`val` and :obj:`test`, the
    mean absolute errors of energies, of energies per atom, and of the components of forces and
    stresses, with their units in the names.

    Args:
        model (E2FormerPotential): The potential.
        energy_weight (float or dict, optional): The weight :math:`w_E`, or its values at some
            steps of the optimizer, :obj:`{0: 1.0, 10000: 20.0}`, between which it changes
            linearly. (default: :obj:`1.0`)
        forces_weight (float or dict, optional): The weight :math:`w_F`. (default: :obj:`10.0`)
        stress_weight (float or dict, optional): The weight :math:`w_\sigma`.
            (default: :obj:`0.0`)
        energy_loss (str, optional): :obj:`"mae"`, :obj:`"mse"` or :obj:`"huber"` (of 0.01 eV).
            (default: :obj:`"mae"`)
        forces_loss (str, optional): One of these, or :obj:`"l2"`, the length of the error.
            (default: :obj:`"l2"`)
        stress_loss (str, optional): As :obj:`energy_loss`. (default: :obj:`"mae"`)
        fit_references (bool, optional): If set to :obj:`True`, fits the reference energies of
            elements and the energy scale to the training set before the first step.
            (default: :obj:`True`)
        lr (float, optional): The highest learning rate. (default: :obj:`1e-3`)
        weight_decay (float, optional): The weight decay of AdamW, which leaves norms, biases and
            embeddings alone. (default: :obj:`1e-3`)
        betas (tuple, optional): The betas of AdamW. (default: :obj:`(0.9, 0.999)`)
        optimizer (str, optional): :obj:`"adamw"` or :obj:`"muon"`, which changes the weights of
            linear maps as :class:`~e2former_pyg.optim.Muon` does. (default: :obj:`"adamw"`)
        warmup_steps (int, optional): Steps in which the learning rate rises.
            (default: :obj:`1000`)
        warmup_start (float, optional): The part of :obj:`lr` at the first step.
            (default: :obj:`0.01`)
        end_factor (float, optional): The part of :obj:`lr` at the last step, after half a cosine.
            (default: :obj:`0.01`)
        total_steps (int, optional): The step at which that is.
            (default: :obj:`None`, the last one of the trainer)
        activation_checkpointing (bool, optional): If set to :obj:`True`, computes blocks again in
            the backward pass instead of keeping what is inside. (default: :obj:`False`)
        weights (str, optional): A file of :meth:`E2FormerPotential.save` to start from, with the
            same :obj:`lmax_out`. Its reference energies are kept with
            :obj:`fit_references=False`.
            (default: :obj:`None`)
    """

    model: E2FormerPotential

    def __init__(
        self,
        model: E2FormerPotential,
        *,
        energy_weight: Weight = 1.0,
        forces_weight: Weight = 10.0,
        stress_weight: Weight = 0.0,
        energy_loss: str = "mae",
        forces_loss: str = "l2",
        stress_loss: str = "mae",
        fit_references: bool = True,
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
        loss_weights = {
            "energy": energy_weight,
            "forces": forces_weight,
            "stress": stress_weight,
        }
        kinds = {"energy": energy_loss, "forces": forces_loss, "stress": stress_loss}
        for name, weight in loss_weights.items():
            check_weight(f"{name}_weight", weight)
            known = [kind for kind in LOSSES if kind != "l2" or name == "forces"]
            if kinds[name] not in known:
                raise ValueError(f"`{name}_loss` must be one of {known}, got {kinds[name]!r}")
        # A weight of zero throughout asks for no label.
        wanted = {name: kinds[name] for name, weight in loss_weights.items() if _any(weight)}
        if not wanted:
            raise ValueError("`energy_weight` and the others are all zero, expected one above")
        for name in ("forces", "stress"):
            if name in wanted and not getattr(model, name):
                raise ValueError(f"`{name}_weight` needs a model with {name}, got one without")
        metrics = ["energy_mae_meV", "energy_mae_meV_per_atom"]
        metrics += ["force_mae_meV_per_A"] if model.forces else []
        metrics += ["stress_mae_meV_per_A3"] if model.stress else []
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
            metrics=metrics,
            losses=list(wanted),
        )
        self.weights = loss_weights
        self.wanted = wanted
        self.fit_references = fit_references

    def sums(self, data: Batch) -> dict[str, tuple[Tensor, int]]:
        return loss_sums(errors(self.model(data), data), self.wanted)

    def loss_weights(self) -> dict[str, float]:
        step = self.trainer.global_step
        return {name: weight_at(self.weights[name], step) for name in self.wanted}

    def measure(self, data: Batch) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, int]]]:
        found = errors(self.model(data), data)
        values = {}
        if "energy" in found:
            sizes = data.ptr.diff().to(found["energy"])
            values["energy_mae_meV"] = found["energy"] * sizes
            values["energy_mae_meV_per_atom"] = found["energy"]
        if "forces" in found:
            values["force_mae_meV_per_A"] = found["forces"]
        if "stress" in found:
            values["stress_mae_meV_per_A3"] = found["stress"]
        values = {name: 1e3 * value.abs() for name, value in values.items()}
        return values, loss_sums(found, self.wanted)

    def fit_constants(self, loader: DataLoader) -> None:
        if not self.fit_references:
            return
        fit = ReferenceFit()
        for data in loader:
            if data.get("energy") is None:
                raise ValueError(
                    "graphs must hold `energy` to fit references, found "
                    f"{sorted(data.keys())}; pass `fit_references=False`"
                )
            forces = data.get("forces") if self.model.forces else None
            fit.update(data.z, data.energy, data.batch, forces)
        self.model.references.set(fit)


def _any(weight: Any) -> bool:
    return any(weight.values()) if isinstance(weight, dict) else weight > 0
