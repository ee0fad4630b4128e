r"""Muon for the matrices of a model, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from .nn import RMSNorm

__all__ = ["Muon", "muon_groups"]

# Their parameters are no linear maps, whatever their shapes.
_NO_MAPS = (nn.Embedding, nn.LayerNorm, RMSNorm)

# Of the quintic polynomial that takes singular values to about one in five steps.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
# The size of an entry of an update, about that of AdamW's.
_RMS = 0.2
# Momenta that are smaller fade out: once gradients vanish, nothing but rounding is left of them.
_LEAST_NORM = 1e-7


def muon_groups(model: nn.Module, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    r"""The parameters of a model that need gradients, as groups for :class:`Muon`: matrices and
    stacks of matrices; and the rest, which is left to AdamW without weight decay: tables of
    embeddings, norms, biases, and weights that give a single number.

    Args:
        model (torch.nn.Module): The model.
        weight_decay (float, optional): The weight decay of matrices. (default: :obj:`0.0`)
    """
    maps, rest = split_parameters(model, least=2)
    return [
        {"params": maps, "muon": True, "weight_decay": weight_decay},
        {"params": rest, "muon": False, "weight_decay": 0.0},
    ]


def split_parameters(
    model: nn.Module, least: int = 1
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    r"""The weights of linear maps, and whatever else needs gradients.

    Args:
        model (torch.nn.Module): The model.
        least (int, optional): The least number of rows and columns of a map that counts as one.
            (default: :obj:`1`)
    """
    maps: dict[int, nn.Parameter] = {}
    others: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            bare = isinstance(module, _NO_MAPS) or parameter.dim() < 2 or name.endswith("bias")
            bare = bare or min(parameter.shape[-2:]) < least
            (others if bare else maps)[id(parameter)] = parameter
    return list(maps.values()), [p for key, p in others.items() if key not in maps]


class Muon(torch.optim.Optimizer):
    r"""The `Muon <https://kellerjordan.github.io/posts/muon>`_ optimizer for groups with
    :obj:`muon=True`, which :meth:`muon_groups` makes, and AdamW for the others.

    The momentum :math:`\mathbf{M}` of the gradients of a matrix :math:`\mathbf{W}` is replaced by
    the closest matrix with orthogonal rows or columns, so that all of its directions count alike,

    .. math::
        \mathbf{W} \leftarrow (1 - \eta \lambda)\, \mathbf{W} - 0.2\, \eta \sqrt{\max(n, m)}\;
        \mathrm{orth}(\mathbf{G} + \mu (\mathbf{M} - \mathbf{G})),

    up to what is left after five Newton-Schulz steps. The factor, from the `"Muon is Scalable for
    LLM Training" <https://arxiv.org/abs/2502.16982>`_ paper, makes its changes as large as those of
    AdamW, and learning rates of one good for the other. Unlike :class:`torch.optim.Muon` it takes
    stacks of matrices :math:`(*, n, m)`, such as the weights of all degrees of a linear map, and
    works on all matrices of a shape at once.

    .. code-block:: python

        optimizer = Muon(muon_groups(model), lr=5e-3)

    Args:
        params (iterable): Parameters or groups; without :obj:`muon=True` they are AdamW's.
        lr (float, optional): The learning rate :math:`\eta`. (default: :obj:`1e-3`)
        momentum (float, optional): The decay :math:`\mu` of the momentum of matrices.
            (default: :obj:`0.95`)
        betas (tuple, optional): The betas of AdamW. (default: :obj:`(0.9, 0.999)`)
        eps (float, optional): The epsilon of AdamW. (default: :obj:`1e-8`)
        weight_decay (float, optional): The weight decay :math:`\lambda` of groups that name none.
            (default: :obj:`0.0`)

    Raises:
        ValueError: If a number is out of its range, or a group with :obj:`muon=True` holds
            parameters with fewer than two dimensions or, as FSDP makes them, parts of matrices.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"`{name}` must not be negative, got {value}")
        for name, value in (("momentum", momentum), ("betas", betas[0]), ("betas", betas[1])):
            if not 0 <= value < 1:
                raise ValueError(f"`{name}` must lie in [0, 1), got {value}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "muon": False,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for parameter in group["params"] if group["muon"] else ():
            if parameter.dim() < 2 or isinstance(parameter, DTensor):
                kind = "part" if isinstance(parameter, DTensor) else "parameter"
                raise ValueError(
                    f"`muon=True` takes whole matrices and stacks of them, got a {kind} of shape "
                    f"{list(parameter.shape)}"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        r"""Changes all parameters that have gradients.

        Args:
            closure (callable, optional): Computes the loss, which is returned.
                (default: :obj:`None`)
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None and p.numel() > 0]
            if params:
                (self._orthogonal if group["muon"] else self._adamw)(group, params)
        return loss

    def _orthogonal(self, group: dict[str, Any], params: list[Tensor]) -> None:
        gradients = [p.grad for p in params if p.grad is not None]
        for p in params:
            self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        momenta = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        lr = group["lr"]
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        alike: dict[tuple[Any, ...], list[int]] = {}
        for n, p in enumerate(params):
            alike.setdefault((p.shape[-2:], p.dtype, p.device), []).append(n)
        for (shape, *_), numbers in alike.items():
            stacks = [ahead[n].reshape(-1, *shape) for n in numbers]
            updates = orthogonalize(torch.cat(stacks)).mul_(-lr * _RMS * max(shape) ** 0.5)
            for n, part in zip(numbers, updates.split([len(s) for s in stacks]), strict=True):
                params[n].add_(part.view_as(params[n]))

    def _adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p].update(
                    step=torch.zeros((), dtype=torch.float32),
                    exp_avg=torch.zeros_like(p),
                    exp_avg_sq=torch.zeros_like(p),
                )
        states = [self.state[p] for p in params]
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalize(matrices: Tensor) -> Tensor:
    r"""About the closest matrices with orthogonal rows, or columns if there are more of rows: with
    the same singular vectors and singular values of 0.6 to 1.25, but for those that are less than
    0.003 of the norm, which stay smaller.

    Shapes:
        - **matrices:** :math:`(B, n, m)`
        - **output:** :math:`(B, n, m)`
    """
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + _LEAST_NORM)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        square = torch.bmm(x, x.transpose(1, 2))
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.transpose(1, 2) if tall else x
