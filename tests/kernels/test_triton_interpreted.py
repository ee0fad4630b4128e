"""The kernels in Triton's interpreter against the PyTorch backend, on small awkward inputs.

Every call runs on poisoned memory (see conftest).
"""

import os
from importlib.util import find_spec

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from e2former_pyg.functional import equivariant_attention, equivariant_convolution
from e2former_pyg.graph import CSRNeighborhood
from e2former_pyg.radial import RadialSplines

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="not interpreted"),
]

EVERYTHING = {"directional": 1, "bias": True, "shift": True, "graphs": 1}
CASES = {
    "everything": EVERYTHING,
    "plain": {},
    "convolution": {"convolution": True, "bias": True, "shift": True, "graphs": 2},
    "plain convolution": {"convolution": True, "orders": (1,)},
    "bipartite": {"sources": 3, "shift": True, "directional": 1},
    "bipartite convolution": {"convolution": True, "sources": 6, "shift": True, "groups": 2},
    "heads": {"groups": 2, "channels": 6, "bias": True},
    "three heads": {"groups": 3, "channels": 6, **EVERYTHING, "orders": (1,)},
    "more channels than a block": {"channels": 130, "lmax_in": 0, "lmax": 1, "orders": (1,)},
    "programs that share a row": {
        **{"groups": 2, "channels": 160, "lmax_in": 0, "lmax": 1, "orders": (1,)},
        **{"bias": True, "graphs": 1},
    },
    "higher output": {"orders": (1,), "lmax": 2, "parity": "o3"},
    "order 2": {"orders": (0, 2), "lmax": 0, "directional": 2},
}
EXACT = 1e-10


def make_case(reference, **options):
    """Four targets, the last isolated; two edges are the same, one is a loop."""
    settings = {"nodes": 4, "edges": 9, "lmax_in": 1, "channels": 2, "groups": 1, "num_radial": 5}
    case = reference.make_case(**(settings | options))
    case.edge_index[:, 8] = case.edge_index[:, 0]
    return case


def without_nodes(case):
    """No targets and no sources."""
    names = ("pos", "v", "q", "k", "u", "target_type", "source_type", "batch")
    present = [name for name in names if getattr(case, name) is not None]
    return case.replace(**{name: getattr(case, name)[:0] for name in present})


def test_the_cases_are_awkward(reference):
    source, target = make_case(reference).edge_index
    assert (target.diff() < 0).any()
    assert (source == target).any()
    assert target.max() < 3
    assert torch.stack([source, target]).unique(dim=1).size(1) < source.numel()


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_derivatives(reference, twin, options):
    case = make_case(reference, **options)
    found = twin.derivatives(case, "triton")
    expected = twin.derivatives(case, "torch")
    assert expected["value"].any()
    assert not twin.differences(found, expected, EXACT)


def test_rows_that_are_computed_again(reference, twin, monkeypatch):
    from e2former_pyg.functional import triton_backend

    monkeypatch.setattr(triton_backend, "_LARGE", 0)
    case = make_case(reference, orders=(0, 1))
    found = twin.derivatives(case, "triton", keep_rows=False)
    assert not twin.differences(found, twin.derivatives(case, "torch"), EXACT)
    case, _ = case.leaves()
    nodes = [case.run(backend="triton", keep_rows=keep).grad_fn for keep in (True, False)]
    saved = [sum(t is not None for t in node.saved_tensors) for node in nodes]
    assert saved[1] == saved[0] - 1


@pytest.mark.parametrize(
    ("options", "dropout"),
    [
        ({"orders": (0, 1), "edges": 14}, 0.0),
        ({"groups": 3, "channels": 6, "shift": True, "orders": (1,)}, 0.4),
        ({"channels": 130, "lmax_in": 0, "lmax": 1, "orders": (1,)}, 0.0),
        ({"orders": (1,), "lmax": 0}, 0.0),
    ],
    ids=["plain", "three heads and dropout", "two parts", "an input row without a path"],
)
def test_forces_without_rows(reference, twin, monkeypatch, options, dropout):
    """The pass over rows finds the cotangent of the normaliser by itself."""
    from e2former_pyg.functional import triton_backend
    from e2former_pyg.kernels import launch

    def not_called(*args):
        raise AssertionError

    case = make_case(reference, **options)
    settings = {"by": ("q", "k", "v", "pos"), "order": 1}
    if dropout > 0:
        settings |= {"dropout": dropout, "seed": torch.tensor(7)}
    # Nor are the rows computed again.
    monkeypatch.setattr(triton_backend, "_LARGE", 0)
    monkeypatch.setattr(triton_backend, "_again", not_called)
    monkeypatch.setattr(launch, "normaliser_kernel", not_called)
    found = twin.derivatives(case, "triton", keep_rows=False, **settings)
    assert not twin.differences(found, twin.derivatives(case, "torch", **settings), EXACT)


def test_second_derivatives_of_forces_without_rows(reference, twin, monkeypatch):
    from e2former_pyg.functional import triton_backend

    monkeypatch.setattr(triton_backend, "_LARGE", 0)
    case, by = make_case(reference, orders=(1,)), ("q", "k", "v", "pos")
    found = twin.derivatives(case, "triton", by=by, keep_rows=False)
    assert not twin.differences(found, twin.derivatives(case, "torch", by=by), EXACT)


def test_gradient_of_the_sink_without_rows(reference, twin, monkeypatch):
    from e2former_pyg.functional import triton_backend

    monkeypatch.setattr(triton_backend, "_LARGE", 0)
    case = make_case(reference, groups=2, orders=(0,))
    found = twin.derivatives(case, "triton", by=("sink", "pos"), order=1, keep_rows=False)
    expected = twin.derivatives(case, "torch", by=("sink", "pos"), order=1)
    assert not twin.differences(found, expected, EXACT)


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("strain", [False, True], ids=["", "strain"])
def test_what_is_kept(reference, frozen, strain):
    """Rows of few nodes are kept where backward would else compute them again."""
    case, leaves = make_case(reference, orders=(0,), graphs=2 if strain else None).leaves()
    if frozen:
        case = case.replace(coefficients=case.coefficients.detach(), sink=case.sink.detach())
    node = case.run(backend="triton", keep_rows=False).grad_fn
    rows = [t for t in node.saved_tensors if t is not None and t.shape[1:] == (4, 2)]
    count = sum(v is leaves["v"] for v in rows)
    assert len(rows) - count == (0 if frozen and not strain else 1)


@pytest.mark.parametrize("convolution", [False, True], ids=["attention", "convolution"])
def test_edges_beyond_the_cutoff_change_nothing(reference, twin, convolution):
    """A list with a skin gives what a list without gives, to second derivatives."""
    case = make_case(reference, convolution=convolution, edges=16, orders=(1,), shift=True)
    keep = reference.edge_vectors(case).norm(dim=-1) < case.cutoff
    assert 3 < int(keep.sum()) < 13
    pruned = case.replace(edge_index=case.edge_index[:, keep], edge_shift=case.edge_shift[keep])
    found, expected = (twin.derivatives(each, "triton") for each in (case, pruned))
    assert found["dd pos"].any()
    assert not twin.differences(found, expected, EXACT)


def test_dropout(reference, twin):
    case = make_case(reference, groups=2, orders=(0,))
    options = {"dropout": 0.4, "seed": torch.tensor(7)}
    found = twin.derivatives(case, "triton", **options)
    assert not twin.differences(found, twin.derivatives(case, "torch", **options), EXACT)
    assert twin.differences(found, twin.derivatives(case, "torch"), EXACT)


@pytest.mark.parametrize("by", [("pos",), ("v",), ("edge_bias", "strain")], ids=str)
@pytest.mark.parametrize("convolution", [False, True], ids=["attention", "convolution"])
def test_derivatives_of_some_gradients(reference, twin, convolution, by):
    """As force training takes them: most first derivatives are not asked for."""
    case = make_case(reference, convolution=convolution, orders=(1,), bias=True, graphs=1)
    found = twin.derivatives(case, "triton", by=by)
    assert not twin.differences(found, twin.derivatives(case, "torch", by=by), EXACT)


@pytest.mark.parametrize("name", ["pos", "v", "coefficients", "edge_bias"])
def test_one_input_needs_a_gradient(reference, twin, name):
    case = make_case(reference, orders=(1,), bias=True)

    def gradient(backend):
        leaf = getattr(case, name).clone().requires_grad_()
        out = case.replace(**{name: leaf}).run(backend=backend)
        (first,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        return {"value": out, "d": first, "dd": second}

    assert not twin.differences(gradient("triton"), gradient("torch"), EXACT)


@pytest.mark.parametrize("types", [1, 3])
def test_little_memory_for_radial_gradients(reference, twin, monkeypatch, types):
    """Few programs, or with several elements programs that have rows of one element each."""
    from e2former_pyg.kernels import launch

    case = make_case(reference, types=types, nodes=6, edges=14, orders=(1,))
    monkeypatch.setattr(launch, "_SLAB_BYTES", case.coefficients.nbytes)
    found = twin.derivatives(case, "triton")
    assert not twin.differences(found, twin.derivatives(case, "torch"), EXACT)


def test_input_rows_without_a_path_have_no_gradient(reference, twin):
    case = make_case(reference, orders=(1,), lmax=0)
    found = twin.derivatives(case, "triton")
    assert not twin.differences(found, twin.derivatives(case, "torch"), EXACT)
    assert not found["d v"][:, 0].any() and not found["dd v"][:, 0].any()
    assert found["d v"][:, 1:].any()


@pytest.mark.parametrize("convolution", [False, True], ids=["attention", "convolution"])
@pytest.mark.parametrize("nodes", [True, False], ids=["no edges", "no nodes"])
def test_nothing(reference, twin, convolution, nodes):
    directional = None if convolution else 1
    options = {"bias": True, "shift": True, "graphs": 2, "directional": directional}
    case = make_case(reference, convolution=convolution, **options)
    case = twin.without_edges(case)
    case = case if nodes else without_nodes(case)
    found = twin.derivatives(case, "triton")
    assert not any(tensor.any() for tensor in found.values())
    assert not twin.differences(found, twin.derivatives(case, "torch"), EXACT)


def test_no_sources(reference, twin):
    case = twin.without_edges(make_case(reference, sources=3))
    types = case.source_type[:0]
    case = case.replace(pos=(case.pos[0][:0], case.pos[1]), source_type=types)
    case = case.replace(k=case.k[:0], v=case.v[:0])
    found = twin.derivatives(case, "triton")
    assert not twin.differences(found, twin.derivatives(case, "torch"), EXACT)


# Errors are those of rounding once to the dtype and of the arithmetic in float32.
PRECISIONS = {
    "float32": (torch.float32, torch.float32, 1e-5),
    "positions in float64": (torch.float32, torch.float64, 1e-5),
    "bfloat16": (torch.bfloat16, torch.float32, 1e-2),
    "float16": (torch.float16, torch.float32, 1e-2),
}


@pytest.mark.parametrize("features, rest, limit", PRECISIONS.values(), ids=PRECISIONS.keys())
def test_precision(reference, twin, features, rest, limit):
    case = twin.cast(make_case(reference, **EVERYTHING, orders=(1,)), features, rest)
    found = twin.derivatives(case, "triton")
    assert found["value"].dtype == found["d v"].dtype == found["dd v"].dtype == features
    expected = twin.derivatives(case.map(torch.Tensor.double), "torch")
    assert not twin.differences(found, expected, limit)


def test_precision_of_convolution(reference, twin):
    case = make_case(reference, convolution=True, bias=True, orders=(1,))
    case = twin.cast(case, torch.bfloat16, torch.float32)
    found = twin.derivatives(case, "triton")
    expected = twin.derivatives(case.map(torch.Tensor.double), "torch")
    assert not twin.differences(found, expected, 1e-2)


def transposed(tensor):
    """The same values, first and last dimension swapped in memory."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def test_not_contiguous(reference, twin):
    case = make_case(reference, **EVERYTHING, channels=4, orders=(1,))
    strided = case.map(transposed)
    assert not strided.v.is_contiguous() and not strided.leaves()[1]["v"].is_contiguous()
    found = twin.derivatives(strided, "triton", layout=transposed)
    assert not twin.differences(found, twin.derivatives(case, "torch"), EXACT)


def test_expanded_cotangent(reference, twin):
    case, inputs = make_case(reference, orders=(1,)).leaves()
    for backend, results in (("triton", found := {}), ("torch", expected := {})):
        grads = torch.autograd.grad(case.run(backend=backend).sum(), list(inputs.values()))
        results |= {f"d {name}": grad for name, grad in zip(inputs, grads, strict=True)}
    assert not twin.differences(found, expected, EXACT)


def test_gradients_of_offsets_are_refused(reference):
    """They are of the size of the edges; a derivative by the cell goes through the strain."""
    case = make_case(reference, shift=True, orders=(0,), lmax_in=0)
    shift = case.edge_shift.clone().requires_grad_()
    case = case.replace(edge_shift=shift)
    with pytest.raises(RuntimeError, match="`edge_shift` asks for a gradient"):
        case.run(backend="triton")
    with torch.no_grad():
        assert reference.error(case.run(backend="triton"), case.run(backend="torch")) < EXACT
    (gradient,) = torch.autograd.grad(case.run(backend="auto").square().sum(), shift)
    assert gradient.any()


def test_third_derivatives_are_refused(reference):
    case, inputs = make_case(reference, orders=(0,), lmax_in=0, channels=1).leaves()
    (first,) = torch.autograd.grad(
        case.run(backend="triton").square().sum(), inputs["pos"], create_graph=True
    )
    (second,) = torch.autograd.grad(first.square().sum(), inputs["pos"], create_graph=True)
    with pytest.raises(NotImplementedError, match=r"second order.*backend='torch'"):
        torch.autograd.grad(second.square().sum(), inputs["pos"])


class Recorder(TorchDispatchMode):
    """The arguments of the package's operators, as fresh leaves."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "e2former_pyg":
            self.calls[function.overloadpacket] = [
                a.detach().clone().requires_grad_(a.is_floating_point())
                if isinstance(a, torch.Tensor)
                else a
                for a in args
            ]
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def calls(reference, twin):
    # The smallest call that has every operand.
    case = make_case(reference, **EVERYTHING, orders=(1,), lmax_in=0, lmax=1, channels=1)
    with Recorder() as recorder:
        twin.derivatives(case, "triton")
    return recorder.calls


@pytest.mark.parametrize("name", ["path_rows", "path_rows_backward", "path_rows_second"])
def test_operators_are_registered_properly(calls, name):
    operator = getattr(torch.ops.e2former_pyg, name)
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if name == "path_rows":
        tests.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(operator, calls[operator], test_utils=tests)


def test_compiled_once_for_all_edge_counts(reference, twin):
    """One graph serves all sizes, forward and backward."""

    def function(q, k, v, pos, rowptr, col, coefficients, types, sink):
        neighborhood = CSRNeighborhood(rowptr, col, None, v.size(0))
        radial = RadialSplines(coefficients, types, types, 3.0)
        options = {"orders": (1,), "lmax": 1, "backend": "triton"}
        out = equivariant_attention(q, k, v, pos, neighborhood, radial, sink=sink, **options)
        radial = radial._replace(coefficients=coefficients[..., 2:])
        return out + equivariant_convolution(v, pos, neighborhood, radial, **options)

    # No size is that of something else, which the compiler would take for the same.
    sizes = (6, 11), (7, 13)
    options = {"lmax_in": 0, "channels": 3, "orders": (1,)}
    cases = [make_case(reference, nodes=n, edges=e, **options) for n, e in sizes]
    errors = list(twin.compiled_errors(reference, function, cases, backend="aot_eager"))
    assert len(errors) > 2 * len(cases) and all(error < EXACT for error in errors)


def test_export(reference, twin):
    def function(q, k, v, pos, rowptr, col, coefficients, types, sink):
        neighborhood = CSRNeighborhood(rowptr, col, None, v.size(0))
        radial = RadialSplines(coefficients, types, types, 3.0)
        options = {"orders": (1,), "lmax": 1, "backend": "triton"}
        return equivariant_attention(q, k, v, pos, neighborhood, radial, sink=sink, **options)

    sizes = (6, 11), (7, 13)
    options = {"lmax_in": 0, "channels": 3, "orders": (1,)}
    cases = [make_case(reference, nodes=n, edges=e, **options) for n, e in sizes]
    assert twin.exported_error(function, cases) < 1e-14
