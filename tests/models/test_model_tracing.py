"""A whole training step under `make_fx`: one graph, nothing of the example baked in."""

import pytest
import torch
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch_geometric import EdgeIndex

from e2former_pyg.graph import radius_graph


@pytest.mark.parametrize("settings", [{}, {"charge": True, "stress": True}, {"repulsion": True}])
def test_training_step(lab, settings):
    model = lab.make("potential", elements=[1, 6, 7, 8], num_layers=1, **settings).train()
    z, pos = lab.molecule()
    z, pos = z.repeat(2), torch.cat([pos, 1.02 * pos])
    batch = torch.arange(2).repeat_interleave(8)
    # Longer than the cutoff, so that the list also serves for positions nearby.
    edges, _ = radius_graph(pos, model.cutoff + 0.5, batch)
    edge_index = EdgeIndex(edges, sparse_size=(16, 16), sort_order="col").validate()
    charge = torch.tensor([0, 1]) if "charge" in settings else None

    def step(z, pos, parameters):
        out = functional_call(
            model,
            parameters,
            (z, pos, batch),
            {"edge_index": edge_index, "batch_size": 2, "charge": charge},
        )
        loss = out.energy.square().sum() + out.forces.square().sum()
        grads = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        return out.energy, out.forces, grads

    parameters = dict(model.named_parameters())
    step(z, pos, parameters)
    traced = make_fx(step)(z, pos, parameters)

    def compare(*arguments):
        found, expected = traced(*arguments), step(*arguments)
        assert lab.relative(found[0], expected[0]) < 1e-13
        assert lab.relative(found[1], expected[1]) < 1e-12
        for name, value, want in zip(parameters, found[2], expected[2], strict=True):
            assert torch.allclose(value, want, rtol=1e-11, atol=1e-13), name
        return found[0].detach()

    first = compare(z, pos, parameters)
    generator = torch.Generator().manual_seed(0)
    moved = pos + 0.05 * torch.randn(pos.shape, dtype=pos.dtype, generator=generator)
    other = {name: (1.1 * value.detach()).requires_grad_() for name, value in parameters.items()}
    results = [first, compare(z, moved, parameters), compare(z.flip(0), pos, parameters)]
    results.append(compare(z, pos, other))
    assert len({round(float(energy.sum()), 6) for energy in results}) == 4
