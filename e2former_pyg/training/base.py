"""What training a potential and training a property have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

from ..models import E2FormerPotential, E2FormerProperty
from ..models.checkpoint import class_name, config_text, read_checkpoint
from ..optim import Muon, muon_groups
from .metrics import Mean
from .optimizer import OPTIMIZERS, WarmupCosine, parameter_groups
from .random_state import gather_random_states, set_random_state

KEY = "e2former_pyg"
"""Where checkpoints keep what Lightning does not."""


class TrainingModule(LightningModule):
    """The optimizer, the means over all processes and the exact restart.

    Subclasses give the sums whose ratio is the loss, so that every atom and graph counts the same
    whatever batch and process it is in.
    """

    def __init__(
        self,
        model: E2FormerPotential | E2FormerProperty,
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        optimizer: str,
        warmup_steps: int,
        warmup_start: float,
        end_factor: float,
        total_steps: int | None,
        activation_checkpointing: bool,
        weights: str | None,
        metrics: Sequence[str],
        losses: Sequence[str],
    ) -> None:
        super().__init__()
        for name, value, most in (
            ("lr", lr, float("inf")),
            ("weight_decay", weight_decay, float("inf")),
            ("warmup_steps", warmup_steps, float("inf")),
            ("warmup_start", warmup_start, 1.0),
            ("end_factor", end_factor, 1.0),
        ):
            if not 0 <= value <= most:
                raise ValueError(f"`{name}` must lie in 0..{most}, got {value}")
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"`optimizer` must be one of {OPTIMIZERS}, got {optimizer!r}")
        self.model = model
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.betas = (betas[0], betas[1])
        self.warmup_steps = warmup_steps
        self.warmup_start = warmup_start
        self.end_factor = end_factor
        self.total_steps = total_steps
        model.backbone.activation_checkpointing = activation_checkpointing
        self.means = nn.ModuleDict({name: Mean() for name in metrics})
        self.loss_means = nn.ModuleDict({name: Mean() for name in losses})
        self._random_states: list[dict[str, Any]] | None = None
        if weights is not None:
            load_weights(model, weights)

    def forward(self, data: Batch) -> Any:
        return self.model(data)

    def sums(self, data: Batch) -> dict[str, tuple[Tensor, int]]:
        """The sum of each loss over a batch and the number of values in it."""
        raise NotImplementedError

    def loss_weights(self) -> dict[str, float]:
        """The weight of each loss at this step."""
        raise NotImplementedError

    def measure(self, data: Batch) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, int]]]:
        """The values of which the metrics are means, and what :meth:`sums` gives."""
        raise NotImplementedError

    def fit_constants(self, loader: DataLoader) -> None:
        """Fits to the training set what the optimizer does not."""
        raise NotImplementedError

    def training_step(self, data: Batch, batch_idx: int) -> Tensor:
        sums = self.sums(data)
        local = torch.stack([torch.stack([s, s.new_tensor(n)]) for s, n in sums.values()])
        total = local.detach().clone()
        processes = 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            processes = torch.distributed.get_world_size()
            torch.distributed.all_reduce(total)
        weights = self.loss_weights()
        factors = local.new_tensor([weights[name] for name in sums]) / total[:, 1]
        means = dict(zip(sums, (total[:, 0] / total[:, 1]).unbind(), strict=True))
        for name, mean in means.items():
            self.log(f"train/{name}_loss", mean.float(), batch_size=data.num_graphs)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=1)
        loss = (total[:, 0] * factors).sum().float()
        self.log("train/loss", loss, prog_bar=True, batch_size=data.num_graphs)
        # Gradients of processes are averaged; their sum over the graphs of all is what counts.
        return processes * (local[:, 0] * factors).sum()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        # Naming the inputs spares the second derivatives by the positions.
        loss.backward(inputs=[p for p in self.model.parameters() if p.requires_grad])

    def validation_step(self, data: Batch, batch_idx: int) -> None:
        self._add(data)

    def test_step(self, data: Batch, batch_idx: int) -> None:
        self._add(data)

    def predict_step(self, data: Batch, batch_idx: int) -> Any:
        return self.model(data)

    def on_validation_epoch_end(self) -> None:
        self._log_means("val")

    def on_test_epoch_end(self) -> None:
        self._log_means("test")

    def _add(self, data: Batch) -> None:
        values, sums = self.measure(data)
        for name, value in values.items():
            mean: Any = self.means[name]
            mean.update(value.double().sum(), value.numel())
        for name, (total, count) in sums.items():
            mean = self.loss_means[name]
            mean.update(total, count)

    def _log_means(self, stage: str) -> None:
        results = {name: _result(mean) for name, mean in self.means.items()}
        losses = {name: _result(mean) for name, mean in self.loss_means.items()}
        weights = self.loss_weights()
        results["loss"] = sum(weights[name] * loss for name, loss in losses.items())
        for name, value in results.items():
            # They are the means of all processes already; saying so again spares a warning.
            bar = name == "loss"
            self.log(f"{stage}/{name}", value.float(), prog_bar=bar, sync_dist=True)

    def on_train_start(self) -> None:
        if self.trainer.global_step == 0 and self._random_states is None:
            loader: Any = self.trainer.train_dataloader
            workers = getattr(loader, "num_workers", 0)
            rank_zero_info(f"Fitting constants of the model to {len(loader.dataset)} graphs.")
            # All processes see the whole set and so find the same.
            self.fit_constants(DataLoader(loader.dataset, batch_size=256, num_workers=workers))
        if self._random_states is not None:
            if self.global_rank < len(self._random_states):
                set_random_state(self._random_states[self.global_rank])
            self._random_states = None

    def configure_optimizers(self) -> Any:
        optimizer: torch.optim.Optimizer
        if self.optimizer == "muon":
            groups = muon_groups(self.model, self.weight_decay)
            optimizer = Muon(groups, lr=self.lr, betas=self.betas)
        else:
            optimizer = torch.optim.AdamW(
                parameter_groups(self.model, self.weight_decay),
                lr=self.lr,
                betas=self.betas,
                # Lightning does not clip gradients of a fused optimizer in mixed precision.
                fused=not str(self.trainer.precision).endswith("mixed"),
            )
        total = self.total_steps or self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError(
                "`total_steps` must be given where the trainer has neither max_steps nor "
                "max_epochs, got None"
            )
        schedule = WarmupCosine(self.warmup_steps, int(total), self.warmup_start, self.end_factor)
        # Of a function no state is kept: a run that goes on follows the settings it has then.
        scheduler = LambdaLR(optimizer, lambda step: schedule(step))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = {
            "class": class_name(self.model),
            "config": config_text(self.model.config),
            "random_states": gather_random_states(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._random_states = checkpoint.get(KEY, {}).get("random_states")


def _result(mean: Any) -> Any:
    value = mean.compute()
    mean.reset()
    return value


def load_weights(model: E2FormerPotential | E2FormerProperty, path: str) -> None:
    r"""Starts a model from the weights of a file that :obj:`save` wrote.

    Heads for forces may be in one of both only: a model with direct forces can go on with
    conservative ones, if it keeps the degrees of its last block.
    """
    name, config, state = read_checkpoint(path)
    if name != type(model).__name__:
        raise ValueError(f"`weights` hold a {name}, expected a {type(model).__name__}: {path}")
    degree = config.get("lmax_out", config.get("lmax"))
    if degree != model.backbone.lmax_out:
        raise ValueError(
            f"`weights` are of a model with lmax_out={degree}, expected that of this one, "
            f"{model.backbone.lmax_out}: {path}"
        )
    own = model.state_dict()
    different = own.keys() ^ state.keys()
    different |= {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}
    different = {key for key in different if not key.startswith(("force_head.", "force_gate."))}
    if different:
        raise ValueError(
            f"`weights` must fit the model, found {len(different)} that differ or are on one side "
            f"only, such as '{min(different)}': {path}"
        )
    model.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)
