"""Radial networks of models whose elements are known, as what they give for these."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..nn.message_passing import EquivariantMessagePassing
from ..radial import MAX_ATOMIC_NUMBER, RadialNetwork, RadialSplines


def radial_networks(model: nn.Module) -> dict[EquivariantMessagePassing, RadialNetwork]:
    """The radial networks of the layers."""
    layers = (m for m in model.modules() if isinstance(m, EquivariantMessagePassing))
    return {layer: layer.radial for layer in layers}


def fix_elements(
    networks: dict[EquivariantMessagePassing, RadialNetwork],
    elements: Sequence[int],
    device: torch.device,
) -> None:
    """Replaces the networks of layers by what they give for some elements."""
    for network in networks.values():
        network.check_elements(elements)
    for layer, network in networks.items():
        fixed = _FixedRadial(network, torch.tensor(elements, device=device))
        layer.radial = fixed  # type: ignore[assignment]


class _FixedRadial(nn.Module):
    """What a radial network gives for some elements."""

    coefficients: Tensor
    types: Tensor

    def __init__(self, network: RadialNetwork, elements: Tensor) -> None:
        super().__init__()
        splines = network(elements, elements)
        self.num_radial = network.num_radial
        self.cutoff = network.cutoff
        types = elements.new_zeros(MAX_ATOMIC_NUMBER + 1)
        types[elements] = splines.target_type
        self.register_buffer("coefficients", splines.coefficients)
        self.register_buffer("types", types)

    def forward(self, z_target: Tensor, z_source: Tensor) -> RadialSplines:
        target = self.types[z_target]
        source = target if z_source is z_target else self.types[z_source]
        return RadialSplines(self.coefficients, target, source, self.cutoff)
