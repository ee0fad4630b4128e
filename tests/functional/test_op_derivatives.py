"""First and second derivatives of both operations, in one chunk and in many."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from e2former_pyg.functional import chunks

KINDS = pytest.mark.parametrize("convolution", [False, True], ids=["attention", "convolution"])
# Positions, and with them the edge of zero length, the one on the y axis and the one near the
# cutoff, enter each case. Offsets differ from zero there: at r = 0 they have no derivative.
SMALL = {
    "plain": {"orders": (0, 1)},
    "edges": {"orders": (1,), "bias": True, "shift": True},
    "strain": {"orders": (2,), "lmax": 2, "graphs": 1},
    "bipartite": {"orders": (0, 1), "sources": 3, "shift": True, "parity": "o3"},
}


def small_case(reference, convolution, **options):
    if not convolution:
        options["directional"] = 1
    return reference.make_case(
        nodes=4,
        edges=7,
        lmax_in=1,
        channels=2,
        types=1,
        num_radial=5,
        convolution=convolution,
        **options,
    )


def as_function(case):
    """The operation as a function of all its differentiable inputs, and these inputs."""
    case, inputs = case.leaves()
    names = list(inputs)

    def function(*tensors):
        return case.rebuild(dict(zip(names, tensors, strict=True))).run()

    return function, tuple(inputs.values())


@KINDS
@pytest.mark.parametrize("options", SMALL.values(), ids=SMALL.keys())
def test_gradients(reference, convolution, options):
    function, inputs = as_function(small_case(reference, convolution, **options))
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@KINDS
@pytest.mark.parametrize("options", SMALL.values(), ids=SMALL.keys())
def test_gradients_in_chunks(reference, monkeypatch, convolution, options):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 1)
    function, inputs = as_function(small_case(reference, convolution, **options))
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


def derivatives(case, wanted):
    """Values, the first derivatives by the inputs ``wanted``, and the derivatives of a function
    of these by all inputs, as force training needs them.
    """
    case, inputs = case.leaves()
    out = case.run()
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(out.shape, dtype=out.dtype, generator=generator).requires_grad_()
    first = torch.autograd.grad(out, [inputs[name] for name in wanted], weight, create_graph=True)
    loss = sum((grad * (grad + 0.3)).sum() for grad in first)
    second = torch.autograd.grad(loss, [weight, *inputs.values()], materialize_grads=True)
    return {
        "value": out,
        **{f"d {name}": grad for name, grad in zip(wanted, first, strict=True)},
        **{f"dd {name}": grad for name, grad in zip(["weight", *inputs], second, strict=True)},
    }


ALL = {"bias": True, "shift": True, "graphs": 2, "orders": (0, 1, 2)}


@KINDS
@pytest.mark.parametrize("budget", [1, 300])
@pytest.mark.parametrize("wanted", [("pos",), ("v",), ("pos", "strain"), None], ids=str)
def test_chunked_is_unchunked(reference, monkeypatch, convolution, budget, wanted):
    directional = None if convolution else 2
    case = reference.make_case(convolution=convolution, directional=directional, edges=30, **ALL)
    wanted = list(case.leaves()[1]) if wanted is None else wanted
    whole = derivatives(case, wanted)
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", budget)
    parts = derivatives(case, wanted)
    assert whole.keys() == parts.keys()
    for name, expected in whole.items():
        scale = expected.abs().max().clamp(min=1e-3)
        # The operation is linear in its values.
        assert expected.any() or (wanted == ("v",) and name == "dd v")
        assert (parts[name] - expected).abs().max() < 1e-11 * scale, name


@KINDS
def test_double_backward_of_some_inputs(reference, monkeypatch, convolution):
    """Weights frozen, positions not: what is asked for comes, and nothing else is needed."""
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 1)
    case = reference.make_case(convolution=convolution)
    pos = case.pos.clone().requires_grad_()
    out = case.replace(pos=pos).run()
    (force,) = torch.autograd.grad(out.square().sum(), pos, create_graph=True)
    (found,) = torch.autograd.grad(force.square().sum(), pos)
    expected = derivatives_by_pos(case)
    assert reference.error(found, expected) < 1e-11


def derivatives_by_pos(case):
    case, inputs = case.leaves()
    out = case.run()
    (force,) = torch.autograd.grad(out.square().sum(), inputs["pos"], create_graph=True)
    return torch.autograd.grad(force.square().sum(), inputs["pos"])[0]


@KINDS
def test_translations_of_all_atoms_have_no_gradient(reference, convolution):
    case, inputs = reference.make_case(convolution=convolution, bias=True).leaves()
    (force,) = torch.autograd.grad(case.run().square().sum(), inputs["pos"])
    assert force.abs().max() > 1
    assert (force.sum(dim=0)).abs().max() < 1e-12 * force.abs().max()


@KINDS
def test_strain_is_a_deformation_of_everything(reference, convolution):
    """dE/dstrain equals the virial of positions and offsets."""
    case = reference.make_case(convolution=convolution, shift=True, graphs=1)
    case, inputs = case.replace(strain=torch.zeros(1, 3, 3, dtype=torch.float64)).leaves()
    energy = case.run().square().sum()
    by_pos, by_shift, by_strain = torch.autograd.grad(
        energy, [inputs["pos"], inputs["edge_shift"], inputs["strain"]]
    )
    virial = inputs["pos"].T @ by_pos + inputs["edge_shift"].T @ by_shift
    assert reference.error(by_strain[0], virial) < 1e-12


@KINDS
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_second_derivatives_on_axes(reference, convolution, axis, sign):
    """Frames aligned to edges have poles there; harmonics as polynomials have none."""
    case = reference.make_case(convolution=convolution, orders=(0, 1, 2))
    pos = case.pos.detach().clone()
    pos[1] = pos[0]
    pos[1, axis] += 1.1 * sign
    case = case.replace(pos=pos, edge_index=torch.tensor([[0], [1]]))

    def forces(pos):
        moved = case.replace(pos=pos)
        return torch.autograd.grad(moved.run().square().sum(), pos, create_graph=True)[0]

    assert gradcheck(forces, pos.requires_grad_())
