"""Blocks and attention layers of other libraries, beside ours of the same purpose."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from attention_measure import Meter
from attention_problems import Contender, Layer, parameters_of
from attention_systems import ELEMENTS, NUM_RADIAL
from peers_cases import Case
from peers_contest import Contest, bare_package, run_of
from torch import Tensor, nn

from e2former_pyg.nn import E2FormerBlock

DISTANCES = 64  # Gaussians of the distance, in the edge features of eSCN-MD and EquiformerV2
EDGE_CHANNELS = 128


def _layer(case: Case, meter: Meter) -> Layer:
    return Layer.make(case.setting, case.atoms, str(meter.device))


def _edge_vectors(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """Source, target, and the vectors from one to the other."""
    source, target = layer.graph.edge_index.as_tensor()
    pos = layer.pos.detach()
    return source, target, pos[target] - pos[source] - layer.graph.edge_shift


def _edge_features(distance: Tensor, cutoff: float) -> Tensor:
    centres = torch.linspace(0, cutoff, DISTANCES, device=distance.device)
    width = 2 * cutoff / (DISTANCES - 1)
    return torch.exp(-0.5 * ((distance.unsqueeze(1) - centres) / width).square())


def _our_block(layer: Layer) -> E2FormerBlock:
    setting = layer.setting
    torch.manual_seed(2)
    return E2FormerBlock(
        setting.channels,
        setting.lmax,
        heads=setting.heads,
        qk_channels=setting.qk_channels,
        order=setting.orders,
        cutoff=setting.cutoff,
        num_radial=NUM_RADIAL,
        elements=ELEMENTS,
    ).to(layer.pos.device)


def _by_geometry(layer: Layer, module: nn.Module) -> Contender:
    """Our module, differentiated by features and positions alone."""
    module.requires_grad_(False)
    graph = layer.graph

    def call() -> Tensor:
        return module(layer.x, layer.pos, graph.edge_index, graph.z, graph.edge_shift)

    return Contender(call, {"x": layer.x, "pos": layer.pos})


def escn_contest(case: Case, meter: Meter) -> Contest:
    """The block of eSCN-MD (UMA) in its fastest mode, which is one for inference: derivatives are
    by features and edges, not by weights.

    The Wigner matrices, which all blocks of a model share, are made beforehand; the radial network
    of the block is part of it. ``edges`` leaves norms and the network on atoms out.
    """
    bare_package("fairchem.core")
    from fairchem.core.models.uma.common.quaternion.quaternion_wigner_utils import (
        create_wigner_data_module,
    )
    from fairchem.core.models.uma.common.quaternion.wigner_d_hybrid import axis_angle_wigner_hybrid
    from fairchem.core.models.uma.common.so3 import CoefficientMapping, SO3_Grid
    from fairchem.core.models.uma.escn_md_block import eSCNMD_Block
    from fairchem.core.models.uma.nn.execution_backends import get_execution_backend
    from fairchem.core.models.uma.nn.radial import PolynomialEnvelope

    layer = _layer(case, meter)
    device, lmax, cutoff = meter.device, layer.setting.lmax, layer.setting.cutoff
    # The kernels are made for lmax 2.
    mode = "umas_fast_gpu" if meter.is_cuda and lmax == 2 else "umas_fast_pytorch"
    backend = get_execution_backend(mode)
    mapping = CoefficientMapping(lmax, lmax).to(device)
    names = ("lmax_lmax", "lmax_mmax")
    grid = nn.ModuleDict({name: SO3_Grid(lmax, lmax, rescale=True) for name in names})
    block = eSCNMD_Block(
        sphere_channels=case.channels,
        hidden_channels=case.channels,
        lmax=lmax,
        mmax=lmax,
        mappingReduced=mapping,
        SO3_grid=grid,
        edge_channels_list=[DISTANCES + 2 * EDGE_CHANNELS, EDGE_CHANNELS, EDGE_CHANNELS],
        cutoff=cutoff,
        norm_type="rms_norm_sh",
        act_type="gate",
        ff_type="spectral",
        activation_checkpoint_chunk_size=None,
        backend=backend,
    ).to(device)
    parameters = sum(value.numel() for value in block.parameters())
    model = SimpleNamespace(blocks=[block])
    backend.prepare_model_for_inference(model)
    block.requires_grad_(False)
    model._unified_radial_mlp.to(device)

    source, target, vectors = _edge_vectors(layer)
    edge_index = torch.stack([source, target])
    wigner_data = create_wigner_data_module(lmax=lmax, lmin=5).to(device, torch.float32)
    with torch.no_grad():
        wigner, inverse = axis_angle_wigner_hybrid(
            vectors,
            lmax,
            coeffs=wigner_data.coeffs,
            U_blocks=wigner_data.U_blocks,
            custom_kernels=wigner_data.custom_kernels,
            compact_l2=backend.supports_fused_edgewise,
        )
        wigner, inverse = backend.prepare_wigner(wigner, inverse, mapping, None)
        distance = vectors.norm(dim=1)
        envelope = PolynomialEnvelope(exponent=5)(distance / cutoff)
        inverse = inverse * envelope.view(-1, *[1] * (inverse.ndim - 1))
        elements = torch.randn(len(ELEMENTS), EDGE_CHANNELS, device=device)
        types = layer.graph.source_type
        features = [_edge_features(distance, cutoff), elements[types[source]]]
        x_edge = torch.cat([*features, elements[types[target]]], dim=1)
    leaves = {"x": layer.x.detach().clone(), "x_edge": x_edge, "wigner": wigner, "inverse": inverse}
    leaves = {name: value.contiguous().requires_grad_() for name, value in leaves.items()}

    def call() -> Tensor:
        (radial,) = backend.get_layer_radial_emb(leaves["x_edge"], model)
        edges = (radial, edge_index, leaves["wigner"], leaves["inverse"], case.atoms)
        if case.part == "block":
            return block(leaves["x"], *edges, scatter_target=target)
        return block.edge_wise(leaves["x"], *edges, scatter_target=target)

    ours = _our_block(layer) if case.part == "block" else layer.module
    about = {
        "peer_what": f"eSCN-MD {case.part}, lmax = mmax = {lmax}, {mode}",
        "peer_parameters": parameters,
        "ours_what": f"{type(ours).__name__}, differentiated by features and positions",
        "ours_parameters": sum(value.numel() for value in ours.parameters()),
    }
    return Contest(
        run_of(_by_geometry(layer, ours), case.which),
        run_of(Contender(call, leaves), case.which),
        layer.graph.num_edges,
        about,
    )


def equiformer_contest(case: Case, meter: Meter) -> Contest:
    """The attention of EquiformerV2, from fairchem-core 1.10: no derivatives by positions, since
    it detaches its Wigner matrices, which are made beforehand.
    """
    bare_package("fairchem.core")
    bare_package("fairchem.core.models.equiformer_v2")
    from fairchem.core.models.equiformer_v2.edge_rot_mat import init_edge_rot_mat
    from fairchem.core.models.equiformer_v2.module_list import ModuleListInfo
    from fairchem.core.models.equiformer_v2.so3 import (
        CoefficientMappingModule,
        SO3_Embedding,
        SO3_Grid,
        SO3_Rotation,
    )
    from fairchem.core.models.equiformer_v2.transformer_block import SO2EquivariantGraphAttention

    layer = _layer(case, meter)
    setting, device = layer.setting, meter.device
    lmax, channels = setting.lmax, case.channels
    rotation = nn.ModuleList([SO3_Rotation(lmax)])
    grids = ModuleListInfo(f"({lmax}, {lmax})")
    for low in range(lmax + 1):
        row = nn.ModuleList(
            SO3_Grid(low, high, normalization="component") for high in range(lmax + 1)
        )
        grids.append(row)
    attention = SO2EquivariantGraphAttention(
        sphere_channels=channels,
        hidden_channels=channels,
        num_heads=setting.heads,
        attn_alpha_channels=32,
        attn_value_channels=setting.qk_channels,
        output_channels=channels,
        lmax_list=[lmax],
        mmax_list=[lmax],
        SO3_rotation=rotation,
        mappingReduced=CoefficientMappingModule([lmax], [lmax]),
        SO3_grid=grids,
        max_num_elements=90,
        edge_channels_list=[DISTANCES, EDGE_CHANNELS, EDGE_CHANNELS],
    ).to(device)
    source, target, vectors = _edge_vectors(layer)
    edge_index = torch.stack([source, target])
    with torch.no_grad():
        rotation[0].set_wigner(init_edge_rot_mat(vectors))
        features = _edge_features(vectors.norm(dim=1), setting.cutoff)
    x = layer.x.detach().clone().requires_grad_()
    features.requires_grad_()

    def call() -> Tensor:
        embedding = SO3_Embedding(0, [lmax], channels, device=device, dtype=x.dtype)
        embedding.set_embedding(x)
        embedding.set_lmax_mmax([lmax], [lmax])
        return attention(embedding, layer.graph.z, features, edge_index).embedding

    leaves = {"x": x, "features": features, **parameters_of(attention)}
    ours = layer.ours("auto")
    about = {
        "peer_what": f"SO2EquivariantGraphAttention, lmax = mmax = {lmax}",
        "peer_parameters": sum(value.numel() for value in attention.parameters()),
        "ours_what": "E2FormerAttention",
        "ours_parameters": sum(value.numel() for value in layer.module.parameters()),
    }
    return Contest(
        run_of(ours, case.which),
        run_of(Contender(call, leaves), case.which),
        layer.graph.num_edges,
        about,
    )


def transformer_contest(case: Case, meter: Meter) -> Contest:
    """PyG's TransformerConv, which sees scalars alone."""
    layer = _layer(case, meter)
    peer = layer.baseline("TransformerConv")
    about: dict[str, Any] = {
        "peer_what": "TransformerConv on the scalars of the same width",
        "peer_parameters": sum(
            value.numel() for name, value in peer.leaves.items() if name.startswith("parameters.")
        ),
        "ours_what": "E2FormerAttention",
        "ours_parameters": sum(value.numel() for value in layer.module.parameters()),
    }
    return Contest(
        run_of(layer.ours("auto"), case.which),
        run_of(peer, case.which),
        layer.graph.num_edges,
        about,
    )


LAYERS: dict[str, Callable[[Case, Meter], Contest]] = {
    "escn": escn_contest,
    "equiformer": equiformer_contest,
    "transformer": transformer_contest,
}
