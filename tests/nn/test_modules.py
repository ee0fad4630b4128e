"""The modules between the layers, each usable alone."""

import copy
import math
import pickle

import pytest
import torch
from e3nn import o3
from torch.autograd import gradcheck, gradgradcheck

from e2former_pyg.functional import Path, coupling
from e2former_pyg.nn import (
    BilinearInvariants,
    DegreeLinear,
    E2FormerBlock,
    GatedFeedForward,
    PathLinear,
    RMSNorm,
)

PATHS = coupling(2, 2, (0, 1))
BUILD = {
    "linear": lambda: DegreeLinear(4, 6, 2),
    "linear_no_bias": lambda: DegreeLinear(4, 6, 2, bias=False),
    "linear_lower": lambda: DegreeLinear(4, 6, 1, lmax_in=2),
    "linear_scalars": lambda: DegreeLinear(4, 6, 0),
    "paths": lambda: PathLinear(4, 6, PATHS),
    "norm": lambda: RMSNorm(4, 2),
    "feed_forward": lambda: GatedFeedForward(4, 2, 5),
    "feed_forward_scalars": lambda: GatedFeedForward(4, 0),
    "invariants": lambda: BilinearInvariants(4, 6, 2, hidden_channels=3),
}
REPR = {
    "linear": "DegreeLinear(4, 6, lmax=2)",
    "paths": f"PathLinear(4, 6, paths={len(PATHS.paths)})",
    "norm": "RMSNorm(4, lmax=2)",
    "feed_forward": "GatedFeedForward(4, lmax=2, hidden_channels=5)",
    "feed_forward_scalars": "GatedFeedForward(4, lmax=0, hidden_channels=4)",
    "invariants": "BilinearInvariants(4, 6, lmax=2)",
}
SINGLE = [name for name in BUILD if name != "paths"]


def build(name):
    """A module in float64 without a zero parameter."""
    torch.manual_seed(0)
    module = BUILD[name]().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def features(name, nodes=5, seed=0):
    rows = PATHS.num_rows if name == "paths" else 1 if "scalars" in name else 9
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(nodes, rows, 4, dtype=torch.float64, generator=generator)


@pytest.fixture
def rotation():
    """Matrices that turn features of each degree, in float64."""
    torch.set_default_dtype(torch.float64)
    angles = torch.tensor([0.3, 1.1, -2.0]).unbind()
    yield [o3.wigner_D(degree, *angles) for degree in range(3)]
    torch.set_default_dtype(torch.float32)


def turn(rotation, x):
    blocks = torch.block_diag(*rotation[: math.isqrt(x.size(1))])
    return torch.einsum("ij,njc->nic", blocks, x)


def turn_rows(rotation, rows):
    out = torch.empty_like(rows)
    for path in PATHS.paths:
        index = list(PATHS.row_of(path))
        out[:, index] = torch.einsum("ij,njc->nic", rotation[path.degree_out], rows[:, index])
    return out


@pytest.mark.parametrize("name", BUILD)
def test_symmetry(rotation, name):
    module, x = build(name), features(name)
    out = module(x)
    if name == "paths":
        found, expected = module(turn_rows(rotation, x)), turn(rotation, out)
    elif name == "invariants":
        found, expected = module(turn(rotation, x)), out
    else:
        found, expected = module(turn(rotation, x)), turn(rotation, out)
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()
    # Not because degrees above 0 were ignored or zero.
    if "scalars" not in name:
        changed, last = x.clone(), 3 if name == "linear_lower" else -1
        changed[:, last] += 1
        assert not torch.allclose(module(changed), out)
    if name == "linear_lower":
        assert torch.equal(module(torch.cat([x[:, :4], x[:, 4:] + 1], dim=1)), out)


@pytest.mark.parametrize("name", BUILD)
def test_protocol(name):
    module, x = build(name), features(name)
    assert str(module).startswith(REPR.get(name, "DegreeLinear"))
    out = module(x)
    assert out.dtype == torch.float64
    assert out.shape == {
        "invariants": (5, 6),
        "norm": (5, 9, 4),
        "feed_forward": (5, 9, 4),
        "feed_forward_scalars": (5, 1, 4),
        "linear_lower": (5, 4, 6),
        "linear_scalars": (5, 1, 6),
    }.get(name, (5, 9, 6))
    assert module(x[:0]).shape == (0, *out.shape[1:])
    torch.testing.assert_close(module(x[3:]), out[3:])
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), out)
    strided = x.transpose(0, 2).contiguous().transpose(0, 2)
    torch.testing.assert_close(module(strided), out)
    single = BUILD[name]()
    single.load_state_dict(module.state_dict())
    assert single(x.float()).dtype == torch.float32
    torch.testing.assert_close(single(x.float()).double(), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BUILD)
def test_reset_parameters(name):
    module = build(name)
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        module.reset_parameters()
        states.append([value.clone() for value in module.state_dict().values()])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
    fresh = build(name).state_dict().values()
    assert not any(torch.equal(one, other) for one, other in zip(states[0], fresh, strict=True))


@pytest.mark.parametrize("name", BUILD)
def test_gradients(name):
    module, x = build(name), features(name, nodes=2).requires_grad_()
    names = [key for key, _ in module.named_parameters()]

    def function(x, *parameters):
        values = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(module, values, (x,))

    inputs = (x, *(parameter.detach().requires_grad_() for parameter in module.parameters()))
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("name", SINGLE)
def test_wrong_shapes(name):
    module, x = build(name), features(name)
    rows = x.size(1)
    for wrong in (x[..., :3], x[0], torch.cat([x, x], dim=1)):
        with pytest.raises(ValueError, match=rf"`x`.*\[N, {rows}, 4\].*{list(wrong.shape)}"):
            module(wrong)


@pytest.mark.parametrize("name", SINGLE)
def test_integers(name):
    with pytest.raises(TypeError, match=r"`x`.*int64"):
        build(name)(features(name).long())


def test_wrong_path_rows():
    module, rows = build("paths"), features("paths")
    for wrong in (rows[:, :-1], rows[..., :3]):
        with pytest.raises(ValueError, match=rf"`rows`.*{PATHS.num_rows}, 4.*{list(wrong.shape)}"):
            module(wrong)


# Formulas ####################################################################


def test_degree_linear():
    module, x = build("linear"), features("linear")
    out = module(x)
    for degree in range(3):
        rows = slice(degree**2, (degree + 1) ** 2)
        expected = x[:, rows] @ module.weight[degree]
        if degree == 0:
            expected = expected + module.bias
        torch.testing.assert_close(out[:, rows], expected)


def test_path_linear():
    module, rows = build("paths"), features("paths")
    expected = torch.zeros(5, 9, 6, dtype=torch.float64)
    counts = [0, 0, 0]
    for path in PATHS.paths:
        l3 = path.degree_out
        weight = module.weight[l3].view(-1, 4, 6)[counts[l3]]
        counts[l3] += 1
        expected[:, l3**2 : (l3 + 1) ** 2] += rows[:, list(PATHS.row_of(path))] @ weight
    assert tuple(counts) == PATHS.paths_per_degree
    torch.testing.assert_close(module(rows), expected)


def test_path_linear_without_a_path_into_a_degree():
    paths = coupling(0, 2, (0, 2))
    assert paths.paths == (Path(0, 0, 0), Path(0, 2, 2))
    out = PathLinear(4, 6, paths)(torch.ones(3, paths.num_rows, 4))
    assert out.shape == (3, 9, 6)
    assert not out[:, 1:4].any()
    assert out[:, 0].any()
    assert out[:, 4:].any()


def test_path_linear_starts_with_unit_variance():
    torch.manual_seed(0)
    paths = coupling(2, 2, (0, 1, 2))
    out = PathLinear(64, 64, paths)(torch.randn(50, paths.num_rows, 64))
    for degree in range(3):
        assert abs(out[:, degree**2 : (degree + 1) ** 2].var() - 1) < 0.1


def test_norm():
    x = 100 * features("norm") * torch.tensor([1.0] + 3 * [5.0] + 5 * [0.1]).double().view(-1, 1)
    out = RMSNorm(4, 2).double()(x)
    squares = [out[:, l * l : (l + 1) ** 2].square().mean(dim=(1, 2)) for l in range(3)]  # noqa: E741
    torch.testing.assert_close(
        sum(squares) / 3, torch.ones(5, dtype=torch.float64), rtol=1e-6, atol=0
    )
    ratio = out / x
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio))
    assert not RMSNorm(4, 2)(torch.zeros(2, 9, 4)).any()


def test_norm_of_zeros_has_derivatives():
    x = torch.zeros(2, 9, 4, dtype=torch.float64, requires_grad=True)
    module = build("norm")
    (first,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert torch.isfinite(first).all()
    assert torch.isfinite(second).all()


def test_feed_forward():
    module, x = build("feed_forward"), features("feed_forward")
    hidden = module.expand(x)
    gates = module.gate(x[:, 0]).sigmoid().view(5, 2, 5)
    parts = [
        torch.nn.functional.silu(hidden[:, :1]),
        hidden[:, 1:4] * gates[:, :1],
        hidden[:, 4:] * gates[:, 1:],
    ]
    expected = module.contract(torch.cat(parts, dim=1))
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module(x, x), expected + x)


def test_invariants():
    module, x = build("invariants"), features("invariants")
    left, right = module.lin(x).chunk(2, dim=-1)
    sums = [
        (left * right)[:, degree**2 : (degree + 1) ** 2].sum(dim=1) / math.sqrt(2 * degree + 1)
        for degree in range(3)
    ]
    torch.testing.assert_close(module(x), module.mlp(torch.cat(sums, dim=1)))


# Block #######################################################################


def make_block(lmax=2, **kwargs):
    torch.manual_seed(0)
    return E2FormerBlock(8, lmax, heads=4, **kwargs).double()


@pytest.mark.parametrize("lmax_in, lmax", [(2, 2), (2, 0), (2, 1), (1, 2), (0, 2)])
def test_block(rotation, make_graph, lmax_in, lmax):
    block = make_block(lmax, lmax_in=lmax_in, edge_dim=2)
    graph = make_graph(lmax=lmax_in, edge_dim=2)
    assert str(block) == f"E2FormerBlock(8, lmax={lmax}, heads=4)"
    out = block(**graph.arguments())
    attended = block.attention(**graph.replace(x=block.norm_attention(graph.x)).arguments())
    residual, both = torch.zeros_like(attended), (min(lmax_in, lmax) + 1) ** 2
    residual[:, :both] = graph.x[:, :both]
    hidden = residual + attended
    expected = hidden + block.feed_forward(block.norm_feed_forward(hidden))
    torch.testing.assert_close(out, expected)
    turned = graph.replace(x=turn(rotation, graph.x), pos=graph.pos @ rotation[1].T)
    found, expected = block(**turned.arguments()), turn(rotation, out)
    assert (found - expected).norm() < 1e-10 * expected.norm()


def test_block_returns_attention_weights(make_graph):
    block, graph = make_block(), make_graph()
    out, (edge_index, alpha) = block(**graph.arguments(), return_attention_weights=True)
    assert torch.equal(out, block(**graph.arguments()))
    assert edge_index is graph.edge_index
    normed = graph.replace(x=block.norm_attention(graph.x))
    _, (_, expected) = block.attention(**normed.arguments(), return_attention_weights=True)
    assert torch.equal(alpha, expected) and alpha.shape == (30, 4)


def test_block_of_sources_and_targets(make_graph):
    """The rows of some nodes alone, whose sources are all of them."""
    block, graph = make_block(), make_graph()
    count = 5
    kept = graph.edge_index[1] < count
    given = {**graph.arguments(), "edge_index": graph.edge_index[:, kept]}
    if graph.edge_shift is not None:
        given["edge_shift"] = graph.edge_shift[kept]
    for name in ("x", "pos", "z"):
        if given.get(name) is not None:
            given[name] = (given[name], given[name][:count])
    assert int(kept.sum()) > count
    torch.testing.assert_close(block(**given), block(**graph.arguments())[:count])


def test_block_of_scalars(make_graph):
    torch.manual_seed(0)
    block, graph = E2FormerBlock(8, 0, heads=4).double(), make_graph(lmax=0)
    flat = block(**graph.replace(x=graph.x[:, 0]).arguments())
    assert flat.shape == (8, 1, 8)
    assert torch.equal(flat, block(**graph.arguments()))


def test_block_refuses_bad_input(make_graph):
    graph = make_graph()
    with pytest.raises(ValueError, match=r"`x` must have shape \[N, 4, 8\], got \[8, 9, 8\]"):
        make_block(lmax_in=1)(**graph.arguments())
    with pytest.raises(TypeError, match=r"`x\[1\]` must be a Tensor, got NoneType"):
        make_block()(**graph.replace(x=(graph.x, None)).arguments())
    with pytest.raises(TypeError, match=r"`x`.*float64.*float32"):
        make_block()(**graph.replace(x=graph.x.float()).arguments())


def test_block_takes_huge_features(make_graph):
    """Logits are of fourth degree in the input: the norm keeps them finite."""
    block, graph = make_block(), make_graph()
    out = block(**graph.replace(x=1e6 * graph.x).arguments())
    assert torch.isfinite(out).all()


def test_block_resets_all_parameters(make_graph):
    block = make_block(directional=True, hidden_channels=5)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(torch.nan)
    block.reset_parameters()
    assert all(torch.isfinite(parameter).all() for parameter in block.parameters())
    assert torch.isfinite(block(**make_graph().arguments())).all()
