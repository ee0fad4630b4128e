"""Bad input gets an error that names the argument."""

from importlib.util import find_spec

import pytest
import torch

from e2former_pyg.functional import coupling, equivariant_attention
from e2former_pyg.functional.paths import as_orders
from e2former_pyg.graph import CSRNeighborhood
from e2former_pyg.radial import RadialSplines

ATTENTION = {
    "q of two dimensions": ({"q": lambda t: t[..., 0]}, "`q`"),
    "q of too few nodes": ({"q": lambda t: t[1:]}, "`q`"),
    "q and k without channels": (
        {"q": lambda t: t[..., :0], "k": lambda t: t[..., :0]},
        "`q` must have channels",
    ),
    "k of other heads": ({"k": lambda t: t[:, :1]}, "`k`"),
    "k of other channels": ({"k": lambda t: t[..., :2]}, "`k`"),
    "k of too few nodes": ({"k": lambda t: t[1:]}, "`k`"),
    "sink of other heads": ({"sink": lambda t: t[:1]}, "`sink`"),
    "u of other heads": ({"u": lambda t: t[..., :1]}, "`u`"),
    "u of no degree": ({"u": lambda t: t[:, :3]}, "`u`"),
    "u of too few nodes": ({"u": lambda t: t[1:]}, "`u`"),
    "channels and heads": ({"v": lambda t: t[..., :3]}, "`v`.*divisible.*2 heads"),
    "edge_bias of other heads": ({"edge_bias": lambda t: t[:, :1]}, "`edge_bias`"),
    "functions": ({"coefficients": lambda t: t[..., :-1]}, "`radial.coefficients`"),
}
BOTH = {
    "v of two dimensions": ({"v": lambda t: t[:, 0]}, "`v`"),
    "v of no degree": ({"v": lambda t: t[:, :8]}, "`v`.*8"),
    "v of too few nodes": ({"v": lambda t: t[1:]}, "`v`"),
    "pos of two dimensions": ({"pos": lambda t: t[:, :2]}, "`pos`"),
    "pos of too few nodes": ({"pos": lambda t: t[1:]}, "`pos`|`v`|`q`"),
    "edge_bias of too few edges": ({"edge_bias": lambda t: t[1:]}, "`edge_bias`"),
    "edge_shift of too few edges": ({"edge_shift": lambda t: t[1:]}, "`edge_shift`"),
    "edge_shift of two columns": ({"edge_shift": lambda t: t[:, :2]}, "`edge_shift`"),
    "strain of another shape": ({"strain": lambda t: t[:, :2]}, "`strain`"),
    "batch missing": ({"batch": lambda t: None}, "`batch`.*`strain`.*2"),
    "batch of too few nodes": ({"batch": lambda t: t[1:]}, "`batch`"),
    "target types": ({"target_type": lambda t: t[1:]}, "`radial.target_type`"),
    "source types": ({"source_type": lambda t: t[1:]}, "`radial.source_type`"),
    "parity": ({"parity": lambda t: "o4"}, "`parity`.*'o4'"),
    "lmax too high": ({"lmax": lambda t: 9}, "`lmax`.*9"),
    "lmax negative": ({"lmax": lambda t: -1}, "`lmax`.*-1"),
    "no path": ({"lmax": lambda t: 0, "orders": lambda t: (5, 6)}, "no coupling path"),
}


@pytest.fixture
def case(reference, convolution):
    return reference.make_case(
        convolution=convolution,
        bias=True,
        shift=True,
        graphs=2,
        directional=None if convolution else 1,
    )


def broken(case, changes):
    return case.replace(**{name: change(getattr(case, name)) for name, change in changes.items()})


@pytest.mark.parametrize("convolution", [False])
@pytest.mark.parametrize("changes, message", ATTENTION.values(), ids=ATTENTION.keys())
def test_attention(case, changes, message):
    with pytest.raises(ValueError, match=message):
        broken(case, changes).run()


@pytest.mark.parametrize("convolution", [False, True], ids=["attention", "convolution"])
@pytest.mark.parametrize("changes, message", BOTH.values(), ids=BOTH.keys())
def test_both(case, changes, message):
    neighborhood = CSRNeighborhood.from_edge_index(case.edge_index, case.size)
    with pytest.raises(ValueError, match=message):
        broken(case, changes).run(neighborhood)


@pytest.mark.parametrize("convolution", [False, True], ids=["attention", "convolution"])
@pytest.mark.parametrize("name", ["v", "pos", "edge_shift", "strain"])
def test_integers(case, name):
    with pytest.raises(TypeError, match=f"`{name}`.*floating"):
        broken(case, {name: torch.Tensor.long}).run()


@pytest.mark.parametrize("convolution", [False])
@pytest.mark.parametrize("name", ["q", "k", "u", "sink"])
def test_integers_in_attention(case, name):
    with pytest.raises(TypeError, match=f"`{name}`.*floating"):
        broken(case, {name: torch.Tensor.long}).run()


@pytest.mark.parametrize("convolution", [True])
def test_groups_that_do_not_divide_the_channels(case):
    for functions in (1, 6, 0):
        with pytest.raises(ValueError, match=f"`radial`.*2 orders.*{functions} functions"):
            case.replace(
                coefficients=case.coefficients[..., :1].repeat(1, 1, 1, functions), edge_bias=None
            ).run()


@pytest.mark.parametrize("convolution", [False, True], ids=["attention", "convolution"])
def test_backend(case, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert torch.equal(case.run(backend="torch"), case.run(backend="auto"))
    with pytest.raises(RuntimeError, match="'triton' is not available"):
        case.run(backend="triton")
    with pytest.raises(ValueError, match=r"`backend`.*'cuda'"):
        case.run(backend="cuda")


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize("convolution", [False, True], ids=["attention", "convolution"])
@pytest.mark.parametrize(
    "options, message",
    [
        ({"orders": (0, 5), "lmax_in": 1}, "order 5 is above 4"),
        ({"orders": (0,), "lmax_in": 7}, "lmax 7 is above 6"),
        ({"orders": (0,), "lmax_in": 1, "lmax": 7}, "lmax 7 is above 6"),
    ],
    ids=["order", "lmax_in", "lmax"],
)
def test_degrees_that_kernels_lack(reference, monkeypatch, convolution, options, message):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    case = reference.make_case(convolution=convolution, **options)
    with pytest.raises(RuntimeError, match=f"'triton' is not available: {message}"):
        case.run(backend="triton")
    assert case.run(backend="auto").any()


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_directional_degree_that_kernels_lack(reference, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    case = reference.make_case(directional=7)
    with pytest.raises(RuntimeError, match="'triton' is not available: lmax 7 is above 6"):
        case.run(backend="triton")


@pytest.mark.parametrize("convolution", [False])
def test_dropout(case):
    with pytest.raises(ValueError, match="`seed`"):
        case.run(dropout=0.1)
    for probability in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"`dropout`.*{probability}"):
            case.run(dropout=probability, seed=torch.tensor(0))


@pytest.mark.parametrize("order", [(), (0, 0), (-1,), (9,), (0.5,), True, "01"])
def test_orders(order):
    with pytest.raises(ValueError, match="`order`"):
        as_orders(order)


def test_orders_are_a_set():
    assert as_orders(2) == (2,)
    assert as_orders({1, 0}) == as_orders([1, 0]) == as_orders(iter((0, 1))) == (0, 1)


def test_paths():
    paths = coupling(2, 2, (0, 1))
    assert len(set(paths.paths)) == len(paths.paths)
    rows = sorted(row for path in paths.paths for row in paths.row_of(path))
    assert rows == list(range(paths.num_rows))
    assert sum(paths.paths_per_degree) == len(paths.paths)
    natural = coupling(2, 2, (0, 1), "o3").paths
    assert set(natural) == {path for path in paths.paths if sum(path) % 2 == 0}
    with pytest.raises(ValueError, match=r"`lmax_in`.*9"):
        coupling(9, 2, (0, 1))


def test_pairs_of_positions_name_their_side(reference):
    case = reference.make_case(sources=9)
    neighborhood = CSRNeighborhood.from_edge_index(case.edge_index, case.size)
    radial = RadialSplines(case.coefficients, case.target_type, case.source_type, case.cutoff)
    for pos, side in (((case.pos[0][1:], case.pos[1]), "sources"), (case.pos[::-1], "sources")):
        with pytest.raises(ValueError, match=f"`pos \\({side}\\)`"):
            equivariant_attention(
                case.q, case.k, case.v, pos, neighborhood, radial, orders=(0, 1), sink=case.sink
            )
