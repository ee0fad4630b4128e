"""The traced step gives the loss and the gradients of the eager one."""

import pytest
import torch
from torch_geometric import EdgeIndex

from e2former_pyg import E2FormerPotential
from e2former_pyg.graph import radius_graph
from e2former_pyg.tracing import trace_gradients


def make(dtype=torch.float64, device="cpu", **settings):
    generator = torch.Generator().manual_seed(0)
    batch = torch.arange(3, device=device).repeat_interleave(4)
    z = torch.tensor([6, 1, 8, 1], device=device).repeat(3)
    inputs = {
        "pos": torch.randn(12, 3, dtype=dtype, generator=generator),
        "energy": torch.randn(3, dtype=torch.float64, generator=generator),
        "forces": torch.randn(12, 3, dtype=dtype, generator=generator),
    }
    inputs = {name: value.to(device) for name, value in inputs.items()}
    edge_index = radius_graph(inputs["pos"], 50.0, batch)[0]
    edges = EdgeIndex(edge_index, sparse_size=(12, 12), sort_order="col")
    torch.manual_seed(0)
    model = E2FormerPotential(
        hidden_channels=8,
        num_layers=1,
        heads=2,
        lmax=1,
        cutoff=50.0,
        elements=[1, 6, 8],
        **settings,
    ).to(device, dtype)

    def loss(model, inputs):
        out = model(z, inputs["pos"], batch, edge_index=edges, batch_size=3)
        return (out.forces - inputs["forces"]).square().mean() + (
            out.energy - inputs["energy"]
        ).square().mean()

    return model, loss, inputs


def eager(model, loss, inputs):
    model.zero_grad()
    value = loss(model, inputs)
    value.backward(inputs=list(model.parameters()))
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return value.detach(), grads


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"algorithm": "factorized", "order": (0, 1, 2)},
        pytest.param({"device": "cuda", "backend": "triton"}, marks=pytest.mark.cuda),
    ],
    ids=["direct", "factorized", "Triton"],
)
@pytest.mark.parametrize(
    "cuda_graph", [False, pytest.param(True, marks=pytest.mark.cuda)], ids=["", "CUDA graph"]
)
def test_traced_gradients_are_the_eager_ones_for_new_inputs_and_weights(settings, cuda_graph):
    if cuda_graph:
        settings = {"device": "cuda", **settings}
    model, loss, inputs = make(**settings)
    eager(model, loss, inputs)
    run = trace_gradients(model, loss, inputs, cuda_graph=cuda_graph)
    if cuda_graph:  # what it reads must not be free for others
        taken = [torch.full((2**n,), torch.nan, device="cuda") for n in range(20) for _ in range(9)]
        del taken
    for _ in range(2):
        inputs = {key: value + 0.1 * torch.randn_like(value) for key, value in inputs.items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
        value, grads = eager(model, loss, inputs)
        assert abs(float(run(inputs) - value)) < 1e-12 * abs(float(value))
        for parameter, expected in zip(model.parameters(), grads, strict=True):
            expected = torch.zeros_like(parameter) if expected is None else expected
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.cuda
def test_a_captured_step_refuses_other_shapes():
    model, loss, inputs = make(device="cuda")
    eager(model, loss, inputs)
    run = trace_gradients(model, loss, inputs, cuda_graph=True)
    with pytest.raises(ValueError, match="`energy` must have shape"):
        run({**inputs, "energy": inputs["energy"][:1]})


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)], ids=["cpu", "cuda"]
)
def test_gradients_lie_in_memory_as_parameters_do(device):
    """Fused optimizers refuse others."""
    linear = torch.nn.Linear(3, 5).to(device)

    def loss(linear, inputs):
        joined = torch.cat((linear.weight.t(), linear.weight.t()))
        return (inputs["x"] @ joined + linear.bias).square().sum()

    step = trace_gradients(linear, loss, {"x": torch.ones(2, 6, device=device)})
    step({"x": torch.randn(2, 6, device=device)})
    assert linear.weight.grad.stride() == linear.weight.stride()
    torch.optim.AdamW(linear.parameters(), fused=True).step()


def test_the_model_is_left_alone():
    model, loss, inputs = make(torch.float32)
    eager(model, loss, inputs)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace_gradients(model, loss, inputs)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


@pytest.mark.parametrize("settings", [{}, {"forces": "direct", "stress": True}], ids=str)
def test_potentials_in_eval_mode_are_refused(settings):
    """Their forces are constants, and gradients would silently lack what forces contribute."""
    model, loss, inputs = make(**settings)
    with pytest.raises(ValueError, match=r"`model` must be in training mode .* got eval mode"):
        trace_gradients(torch.nn.Sequential(model.eval()), loss, inputs)


def test_energies_are_traced_in_eval_mode():
    model, _, inputs = make(forces=None)
    z = torch.tensor([6, 1, 8, 1])
    edge_index = radius_graph(inputs["pos"][:4], 50.0)[0]
    edges = EdgeIndex(edge_index, sparse_size=(4, 4), sort_order="col")

    def loss(model, inputs):
        return model(z, inputs["pos"][:4], edge_index=edges).energy.square().sum()

    value, expected = eager(model.eval(), loss, inputs)
    run = trace_gradients(model, loss, inputs)
    assert torch.allclose(run(inputs), value)
    pairs = zip(model.parameters(), expected, strict=True)
    assert all(other is None or torch.allclose(p.grad, other) for p, other in pairs)
