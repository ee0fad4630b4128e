"""Muon is what its docstring says on matrices, and AdamW on the rest."""

import copy

import pytest
import torch
from torch import nn

from e2former_pyg import E2FormerPotential
from e2former_pyg.optim import Muon, muon_groups, orthogonalize


def make_parameters(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def set_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 64, 8), (2, 5, 40), (1, 2, 2), (1, 1, 7)])
def test_orthogonalize_keeps_singular_vectors(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    values = u.transpose(1, 2) @ orthogonalize(x) @ vh.transpose(1, 2)
    diagonal = values.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(values, torch.diag_embed(diagonal), rtol=0, atol=1e-9)
    large = s > 0.003 * x.norm(dim=(1, 2)).unsqueeze(1)
    assert large.sum() >= large.numel() - 2
    assert (diagonal[large] > 0.6).all() and (diagonal < 1.25).all()


def test_no_direction_at_all():
    """Of parameters that have had no gradient but zero."""
    assert not orthogonalize(torch.zeros(2, 3, 4)).any()


def test_what_is_left_of_a_gradient_that_vanished():
    """Its momentum fades, down to numbers whose squares are zero, and so do the updates."""
    (weight,) = make_parameters((6, 4))
    optimizer = Muon([{"params": [weight], "muon": True}], lr=0.1)
    set_gradients([weight], 0)
    for step in range(1500):
        optimizer.step()
        weight.grad = torch.zeros_like(weight)
        if step == 1000:
            before = weight.detach().clone()
    momentum = optimizer.state[weight]["momentum_buffer"]
    assert 0 < momentum.norm(p=torch.inf) < 1e-25
    assert torch.isfinite(weight).all() and torch.equal(weight, before)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_updates_of_matrices(decay):
    """By hand, for two steps."""
    (weight,) = make_parameters((6, 4), dtype=torch.float64)
    optimizer = Muon([{"params": [weight], "muon": True}], lr=0.1, weight_decay=decay)
    expected, momentum = weight.detach().clone(), torch.zeros_like(weight)
    for step in range(2):
        set_gradients([weight], step)
        momentum = 0.95 * momentum + 0.05 * weight.grad
        ahead = 0.05 * weight.grad + 0.95 * momentum
        update = orthogonalize(ahead.unsqueeze(0))[0]
        expected = (1 - 0.1 * decay) * expected - 0.1 * 0.2 * 6**0.5 * update
        optimizer.step()
        torch.testing.assert_close(weight.detach(), expected)


def test_same_as_that_of_torch():
    """Which takes its Newton-Schulz steps in bfloat16."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with PyTorch 2.9")
    ours, theirs = make_parameters((32, 16))[0], make_parameters((32, 16))[0]
    options = {"lr": 0.1, "weight_decay": 0.1}
    mine = Muon([{"params": [ours], "muon": True}], **options)
    other = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options)
    start = ours.detach().clone()
    for step in range(3):
        for parameter, optimizer in ((ours, mine), (theirs, other)):
            set_gradients([parameter], step)
            optimizer.step()
    assert (ours - theirs).norm() < 0.03 * (ours - start).norm()


def test_stacks_are_their_matrices():
    """And matrices of one shape do not mix."""
    stack, *matrices = make_parameters((3, 8, 4), (8, 4), (8, 4), (8, 4), dtype=torch.float64)
    with torch.no_grad():
        for n, matrix in enumerate(matrices):
            matrix.copy_(stack[n])
    one = Muon([{"params": [stack], "muon": True}], lr=0.1)
    each = Muon([{"params": matrices, "muon": True}], lr=0.1)
    for step in range(3):
        set_gradients([stack], step)
        for n, matrix in enumerate(matrices):
            matrix.grad = stack.grad[n].clone()
        one.step(), each.step()
    torch.testing.assert_close(stack.detach(), torch.stack([m.detach() for m in matrices]))


def test_the_rest_is_left_to_adamw():
    shapes = (5,), (7, 3), ()
    ours, theirs = make_parameters(*shapes), make_parameters(*shapes)
    options = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1}
    mine, other = Muon(ours, **options), torch.optim.AdamW(theirs, **options)
    for step in range(5):
        for parameters, optimizer in ((ours, mine), (theirs, other)):
            set_gradients(parameters, step)
            if step == 2:
                parameters[0].grad = None
            optimizer.step()
    for parameter, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(parameter, expected)


def test_groups_of_a_model():
    model = E2FormerPotential(hidden_channels=8, num_layers=1, heads=2, elements=[1, 6])
    model.energy_head[0].bias.requires_grad_(False)
    matrices, rest = muon_groups(model, 0.1)
    assert matrices["muon"] and matrices["weight_decay"] == 0.1
    assert not rest["muon"] and rest["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    taken = {names[id(p)] for p in matrices["params"]}
    left = {names[id(p)] for p in rest["params"]}
    assert not taken & left
    assert taken | left == set(names.values()) - {"energy_head.0.bias"}
    assert len(matrices["params"]) == len(taken) and len(rest["params"]) == len(left)
    block = "backbone.blocks.0"
    assert f"{block}.attention.lin_value.weight" in taken  # a stack
    assert f"{block}.attention.radial.out.weight" in taken
    assert "energy_head.0.weight" in taken
    for name in (
        "backbone.embedding.element.weight",
        "backbone.norm.weight",
        f"{block}.attention.radial.target_table.weight",
        f"{block}.attention.sink",
        "energy_head.2.weight",
    ):
        assert name in left


def test_shared_parameters_come_once():
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    table = nn.Embedding(3, 3)
    third = nn.Linear(3, 3, bias=False)
    third.weight = table.weight  # as tied embeddings are
    matrices, rest = muon_groups(nn.ModuleList([first, second, table, third]))
    assert [id(p) for p in matrices["params"]] == [id(first.weight), id(table.weight)]
    assert rest["params"] == []


def test_goes_on_from_a_state_dict():
    shapes = (4, 4), (2, 4, 4), (3,)

    def make():
        parameters = make_parameters(*shapes)
        groups = [{"params": parameters[:2], "muon": True}, {"params": parameters[2:]}]
        return parameters, Muon(groups, lr=0.1)

    parameters, optimizer = make()
    set_gradients(parameters, 0)
    optimizer.step()
    others, again = make()
    with torch.no_grad():
        for other, parameter in zip(others, parameters, strict=True):
            other.copy_(parameter)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for given, stepped in ((parameters, optimizer), (others, again)):
        set_gradients(given, 1)
        stepped.step()
    for other, parameter in zip(others, parameters, strict=True):
        assert torch.equal(other, parameter)


def test_closures_and_learning_rates():
    (weight,) = make_parameters((4, 4))
    optimizer = Muon([{"params": [weight], "muon": True}], lr=1.0)
    before = weight.detach().clone()
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == before.square().sum()
    assert torch.equal(weight, before)  # a learning rate of zero
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step(closure)
    assert weight.square().sum() < before.square().sum()


def test_errors():
    vector, matrix = make_parameters((3,), (3, 3))
    with pytest.raises(ValueError, match=r"`muon=True` takes whole matrices.*\[3\]"):
        Muon([{"params": [vector], "muon": True}])
    for options, match in (
        ({"lr": -1.0}, "`lr` must not be negative, got -1"),
        ({"weight_decay": -1.0}, "`weight_decay` must not be negative"),
        ({"momentum": 1.0}, r"`momentum` must lie in \[0, 1\), got 1"),
        ({"betas": (0.9, 1.5)}, r"`betas` must lie in \[0, 1\), got 1.5"),
    ):
        with pytest.raises(ValueError, match=match):
            Muon([matrix], **options)
