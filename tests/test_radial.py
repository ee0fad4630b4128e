import pytest
import torch
from scipy.interpolate import BSpline
from torch.autograd import gradcheck, gradgradcheck

from e2former_pyg import radial
from e2former_pyg.radial import (
    RadialNetwork,
    RadialSplines,
    envelope,
    evaluate_splines,
    spline_cells,
)

CUTOFF = 4.5


def evaluate(splines, length, target_type, source_type):
    """The radial functions of edges ``[E, F]``."""
    cell, t = spline_cells(length, splines.num_cells, splines.cutoff)
    return evaluate_splines(splines.cell_polynomials(), cell, t, target_type, source_type)


def random_splines(num_radial=7, types=(2, 3), functions=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.randn(*types, num_radial, functions, dtype=dtype, generator=generator)
    none = torch.zeros(0, dtype=torch.long)
    return RadialSplines(coefficients, none, none, CUTOFF)


# Envelope ####################################################################


def test_envelope_values():
    r = torch.linspace(0, 2 * CUTOFF, 41, dtype=torch.float64)
    x = r / CUTOFF
    expected = torch.where(x < 1, 1 - 10 * x**3 + 15 * x**4 - 6 * x**5, 0.0)
    assert (envelope(r, CUTOFF) - expected).abs().max() < 1e-14
    assert envelope(torch.tensor(0.0), CUTOFF) == 1
    assert not envelope(r[r >= CUTOFF], CUTOFF).any()
    assert (envelope(r[r < CUTOFF], CUTOFF).diff() < 0).all()


def derivatives(function, r):
    """Value, first and second derivative."""
    r = r.clone().requires_grad_()
    value = function(r)
    (first,) = torch.autograd.grad(value.sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    return value.detach(), first.detach(), second


def test_envelope_has_two_continuous_derivatives():
    at = torch.tensor([0.0, CUTOFF - 1e-7, CUTOFF, CUTOFF + 1e-7], dtype=torch.float64)
    for values in derivatives(lambda r: envelope(r, CUTOFF), at):
        assert values[1:].abs().max() < 1e-5
        assert not values[2:].any()
    _, slope, curvature = derivatives(lambda r: envelope(r, CUTOFF), at)
    assert abs(slope[0]) < 1e-15
    assert abs(curvature[0]) < 1e-15
    inside = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inside = (inside * CUTOFF).requires_grad_()
    assert gradcheck(lambda r: envelope(r, CUTOFF), inside)
    assert gradgradcheck(lambda r: envelope(r, CUTOFF), inside)


def test_envelope_keeps_relative_precision_near_the_cutoff():
    """What the expanded polynomial loses."""
    r = (CUTOFF * (1 - torch.logspace(-1, -5, 9))).float()
    exact = envelope(r.double(), float(torch.tensor(CUTOFF).float()))
    # Rounding x = r / cutoff costs eps / (1 - x), three times; nothing else may be lost.
    allowed = 4 * 6e-8 / (1 - r.double() / CUTOFF) + 1e-6
    assert ((envelope(r, CUTOFF).double() - exact).abs() / exact < allowed).all()
    x = r / CUTOFF
    expanded = 1 - 10 * x**3 + 15 * x**4 - 6 * x**5
    assert not ((expanded.double() - exact).abs() / exact < allowed).all()


# Splines #####################################################################


@pytest.mark.parametrize("num_radial", [4, 5, 16])
@pytest.mark.parametrize("i, j", [(0, 0), (0, 2), (1, 1)])
def test_splines_are_b_splines(num_radial, i, j):
    splines = random_splines(num_radial)
    step = CUTOFF / (num_radial - 3)
    knots = [(k - 3) * step for k in range(num_radial + 4)]
    exact = BSpline(knots, splines.coefficients[i, j].numpy(), 3)
    r = torch.linspace(0, CUTOFF, 50, dtype=torch.float64)
    types = torch.full((50,), i), torch.full((50,), j)
    found = evaluate(splines, r, *types)
    assert found.shape == (50, 5)
    assert (found - torch.from_numpy(exact(r.numpy()))).abs().max() < 1e-13
    values = derivatives(lambda r: evaluate(splines, r, *types)[:, 2], r)
    for order, value in enumerate(values):
        expected = torch.from_numpy(exact(r.numpy(), nu=order)[:, 2])
        assert (value - expected).abs().max() < 1e-11 * (1 + expected.abs().max())


def test_splines_beyond_the_cutoff_stay_at_the_end():
    splines = random_splines()
    r = torch.tensor([CUTOFF, CUTOFF + 1, 1e6], dtype=torch.float64, requires_grad=True)
    types = torch.zeros(3, dtype=torch.long)
    out = evaluate(splines, r, types, types)
    assert torch.equal(out[1], out[0])
    assert torch.equal(out[2], out[0])
    assert not torch.autograd.grad(out.sum(), r)[0][1:].any()


def test_splines_have_two_continuous_derivatives_at_knots():
    splines = random_splines(num_radial=9)
    knots = torch.arange(1, 6, dtype=torch.float64) * CUTOFF / 6
    types = torch.zeros(5, dtype=torch.long)

    def values(r):
        return derivatives(lambda r: evaluate(splines, r, types, types)[:, 1], r)

    for left, right in zip(values(knots - 1e-9), values(knots + 1e-9), strict=True):
        assert (left - right).abs().max() < 1e-6
        assert left.abs().max() > 1e-2


def test_spline_gradients():
    generator = torch.Generator().manual_seed(1)
    r = (torch.rand(6, dtype=torch.float64, generator=generator) * CUTOFF).requires_grad_()
    i, j = torch.randint(2, (6,), generator=generator), torch.randint(3, (6,), generator=generator)
    coefficients = random_splines(functions=2).coefficients.requires_grad_()

    def function(r, coefficients):
        return evaluate(RadialSplines(coefficients, i, j, CUTOFF), r, i, j)

    assert gradcheck(function, (r, coefficients))
    assert gradgradcheck(function, (r, coefficients))


def test_gradients_that_are_not_read_are_not_computed(monkeypatch):
    """Of coefficients where only forces are asked for, and of distances beside weights."""

    def not_called(*args):
        raise AssertionError

    splines = random_splines()
    coefficients = splines.coefficients.requires_grad_()
    r = torch.tensor([0.5, 2.0, 3.9], dtype=torch.float64, requires_grad=True)
    types = torch.zeros(3, dtype=torch.long)

    def energy():
        return evaluate(splines._replace(coefficients=coefficients), r, types, types).sum()

    expected = torch.autograd.grad(energy(), (r, coefficients))
    with monkeypatch.context() as patch:
        patch.setattr(radial._Accumulate, "forward", not_called)
        (by_distance,) = torch.autograd.grad(energy(), r)
    out = energy()
    with monkeypatch.context() as patch:
        patch.setattr(radial._Evaluate, "forward", not_called)
        (by_coefficients,) = torch.autograd.grad(out, coefficients)
    assert torch.equal(by_distance, expected[0])
    assert torch.equal(by_coefficients, expected[1])


@pytest.mark.parametrize("shape", [(0,), (3, 0), (2, 3)])
def test_splines_take_any_shape(shape):
    types = torch.zeros(shape, dtype=torch.long)
    assert evaluate(random_splines(), torch.ones(shape).double(), types, types).shape == (*shape, 5)


# Network #####################################################################


@pytest.fixture
def network():
    torch.manual_seed(0)
    return RadialNetwork(6, num_radial=8, cutoff=CUTOFF, hidden_channels=16)


def pair_coefficients(splines, z_target, z_source):
    return splines.coefficients[splines.target_type][:, splines.source_type]


def test_network(network):
    assert str(network) == "RadialNetwork(6, num_radial=8, cutoff=4.5)"
    z_target, z_source = torch.tensor([8, 1, 8]), torch.tensor([1, 1, 6, 118, 0])
    splines = network(z_target, z_source)
    assert splines.cutoff == CUTOFF
    assert splines.coefficients.shape[2:] == (8, 6)
    # The formula, pair by pair.
    found = pair_coefficients(splines, z_target, z_source)
    for n, i in enumerate(z_target):
        for m, j in enumerate(z_source):
            hidden = network.target_table.weight[i] + network.source_table.weight[j]
            for layer in (network.hidden, network.out):
                hidden = layer(torch.nn.functional.silu(hidden))
            torch.testing.assert_close(found[n, m], hidden.view(8, 6))
    assert splines.coefficients.std() > 0.3


def test_cost_depends_on_the_pairs_of_elements_only(network):
    """The network sees a row for each pair present, whatever the number of atoms."""
    seen = []
    network.hidden.register_forward_hook(
        lambda module, args, out: seen.append(args[0].numel() // 16)
    )
    for atoms in (6, 600):
        z = torch.tensor([1, 6, 8]).repeat(atoms // 3)
        network(z, z)
    assert seen == [9, 9]


def test_other_elements_do_not_matter(network):
    some, more = torch.tensor([6, 8, 6]), torch.tensor([6, 8, 6, 1, 79])
    alone = pair_coefficients(network(some, some), some, some)
    among = pair_coefficients(network(more, more), more, more)
    torch.testing.assert_close(alone, among[:3, :3], rtol=1e-6, atol=1e-6)


def test_fixed_elements(network):
    fixed = RadialNetwork(6, 8, CUTOFF, 16, elements=[8, 1, 6, 1])
    assert fixed.elements == (1, 6, 8)
    assert fixed.state_dict().keys() == network.state_dict().keys()
    fixed.load_state_dict(network.state_dict())
    for z_target, z_source in (([8, 8], [8, 6, 1]), ([1], [6, 6])):
        z_target, z_source = torch.tensor(z_target), torch.tensor(z_source)
        splines = fixed(z_target, z_source)
        assert splines.coefficients.shape == (3, 3, 8, 6)
        torch.testing.assert_close(
            pair_coefficients(splines, z_target, z_source),
            pair_coefficients(network(z_target, z_source), z_target, z_source),
            rtol=1e-6,
            atol=1e-6,
        )
    for z in (7, 100):
        with pytest.raises(ValueError, match=f"`z`.*{z}.*`elements`"):
            fixed(torch.tensor([1, z]), torch.tensor([1]))


@pytest.mark.parametrize("elements", [None, [1, 6, 8]], ids=["any", "given"])
def test_one_set_of_functions_for_all_elements(elements):
    torch.manual_seed(0)
    network = RadialNetwork(6, 8, CUTOFF, 16, elements=elements, pairs=False)
    first, second = torch.tensor([1, 6, 8, 1]), torch.tensor([8, 8])
    for z_target, z_source in ((first, first), (first, second), (second[:0], first)):
        splines = network(z_target, z_source)
        assert splines.coefficients.shape == (1, 1, 8, 6)
        assert splines.target_type.tolist() == [0] * len(z_target)
        assert splines.source_type.tolist() == [0] * len(z_source)
    splines.coefficients.square().sum().backward()
    (parameter,) = network.parameters()
    assert torch.equal(splines.coefficients.flatten(), parameter)
    assert torch.equal(parameter.grad, 2 * parameter) and parameter.all()
    if elements is not None:
        with pytest.raises(ValueError, match=r"`z`.*7.*`elements`"):
            network(torch.tensor([1, 7]), first)


def test_network_without_nodes(network):
    empty = torch.empty(0, dtype=torch.long)
    splines = network(empty, empty)
    assert splines.target_type.numel() == splines.source_type.numel() == 0
    assert network(empty, torch.tensor([1, 6])).source_type.shape == (2,)


def test_reset_parameters(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(7)
    network.reset_parameters()
    first = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(7)
    network.reset_parameters()
    for name, value in network.state_dict().items():
        assert torch.equal(value, first[name])
        assert name == "out.bias" or not torch.equal(value, before[name])


def test_network_is_trained_through_its_coefficients(network):
    z = torch.tensor([1, 6])
    network(z, z).coefficients.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())
    assert not network.target_table.weight.grad[[0, 2, 118]].any()


@pytest.mark.parametrize(
    "z, error, message",
    [
        (torch.tensor([1, 119]), ValueError, "`z`.*0..118.*119"),
        (torch.tensor([-1, 1]), ValueError, "`z`.*0..118.*-1"),
        (torch.tensor([1.0, 6.0]), TypeError, "`z`.*integer.*float32"),
        (torch.tensor([True, False]), TypeError, "`z`.*integer.*bool"),
        (torch.tensor([1, 6], dtype=torch.uint8), TypeError, "`z`.*int64 or int32.*uint8"),
        ([1, 6], TypeError, "`z`.*Tensor.*list"),
        (torch.tensor([[1], [6]]), ValueError, r"`z`.*\[N\].*\[2, 1\]"),
    ],
)
def test_bad_atomic_numbers(network, z, error, message):
    good = torch.tensor([1, 6])
    for pair in ((z, z), (good, z), (z, good)):
        with pytest.raises(error, match=message):
            network(*pair)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_radial": 3}, "`num_radial`.*3"),
        ({"cutoff": 0.0}, "`cutoff`.*0.0"),
        ({"cutoff": -1.0}, "`cutoff`.*-1.0"),
        ({"cutoff": float("inf")}, "`cutoff`.*inf"),
        ({"cutoff": float("nan")}, "`cutoff`.*nan"),
        ({"elements": [1, 119]}, "`elements`.*119"),
        ({"elements": []}, "`elements`.*none"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RadialNetwork(4, **arguments)


@pytest.mark.parametrize("elements", [None, [1, 6, 8]])
def test_int32_atomic_numbers(elements):
    network = RadialNetwork(4, elements=elements)
    z, other = torch.tensor([1, 6, 8, 6]), torch.tensor([8, 1])
    for pair in ((z, z), (other, z)):
        expected = network(*pair)
        found = network(*(tensor.int() for tensor in pair))
        mixed = network(pair[0].int(), pair[1])
        for splines in (found, mixed):
            assert torch.equal(splines.coefficients, expected.coefficients)
            assert torch.equal(splines.target_type, expected.target_type)
            assert torch.equal(splines.source_type, expected.source_type)
