"""The kernels on a GPU against the PyTorch backend in float64 on the same inputs.

Every comparison runs on poisoned memory (see conftest). Each combination of dtype, degrees, orders
and operands compiles about seven kernels: their number is what the time of this file depends on.
"""

import os
from importlib.util import find_spec

import pytest
import torch

from e2former_pyg.functional import coupling, equivariant_attention
from e2former_pyg.functional.backends import takes_triton
from e2former_pyg.graph import CSRNeighborhood
from e2former_pyg.models import E2FormerPotential
from e2former_pyg.nn import E2FormerAttention
from e2former_pyg.radial import RadialSplines

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted"),
]

# Dtypes of features and of the rest; errors of values, first and second derivatives.
EXACT = (torch.float64, torch.float64, (1e-10,))
SINGLE = (torch.float32, torch.float32, (2e-6, 1e-5, 1e-4))
MIXED = (torch.float32, torch.float64, (2e-6, 1e-5, 1e-4))
BRAIN = (torch.bfloat16, torch.float32, (1e-2,))
HALF = (torch.float16, torch.float32, (1e-2,))

DEGREES = {
    "lmax 0": {"lmax_in": 0, "orders": (0,)},
    "lmax 1": {"lmax_in": 1, "orders": (1,)},
    "lmax 2": {"lmax_in": 2, "orders": (0, 1)},
    "lmax 3": {"lmax_in": 3, "orders": (0, 2)},
}
EVERYTHING = {"directional": 2, "bias": True, "shift": True, "graphs": 2}
CONVOLUTION = {"convolution": True, "bias": True, "shift": True, "groups": 4, "channels": 8}
# (what the inputs are, precision)
CASES = {
    **{f"float64, {name}": (EVERYTHING | degrees, EXACT) for name, degrees in DEGREES.items()},
    **{f"float32, {name}": (EVERYTHING | degrees, SINGLE) for name, degrees in DEGREES.items()},
    "positions in float64": (EVERYTHING | DEGREES["lmax 2"], MIXED),
    "bfloat16": (EVERYTHING | DEGREES["lmax 2"], BRAIN),
    "float16": (EVERYTHING | DEGREES["lmax 2"], HALF),
    "plain, float64": ({}, EXACT),
    "plain, float32": ({}, SINGLE),
    "plain, bfloat16": ({}, BRAIN),
    "convolution, float64": (CONVOLUTION, EXACT),
    "convolution, float32": (CONVOLUTION, SINGLE),
    "convolution, bfloat16": (CONVOLUTION, BRAIN),
    "convolution of one order": ({"convolution": True, "orders": (1,), "groups": 1}, EXACT),
    "bipartite": ({"sources": 23, "shift": True}, EXACT),
    "bipartite convolution": ({"convolution": True, "sources": 50, "shift": True}, EXACT),
    "channels 6 and heads 2": ({"channels": 6}, EXACT),
    "three heads": ({"channels": 6, "groups": 3}, EXACT),
    "programs that share a row": ({"channels": 160, "groups": 2, "lmax_in": 1}, EXACT),
    "channels 40": ({"channels": 40, "groups": 1, "lmax_in": 1}, EXACT),
    "one element": ({"types": 1, "lmax_in": 1}, EXACT),
    "89 elements": ({"types": 89, "lmax_in": 1, "nodes": 300, "edges": 3000}, EXACT),
    "higher output": ({"orders": (1,), "lmax_in": 1, "lmax": 2, "parity": "o3"}, EXACT),
    "lower output": ({"orders": (1,), "lmax": 0}, EXACT),
}


def make_case(reference, **options):
    """Rows of up to some thirty edges: more than a tile of the row pass."""
    settings = {"nodes": 32, "edges": 500, "channels": 8}
    case = reference.make_case(**(settings | options))
    case.edge_index[:, -1] = case.edge_index[:, 0]
    return case


def full_width(reference, dtype=torch.float64):
    """128 channels, 8 heads, 16 channels of queries and keys."""
    case = make_case(reference, nodes=64, edges=1000, channels=128, groups=8)
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(64, 8, 16, dtype=torch.float64, generator=generator) for _ in "qk")
    return case.replace(q=q, k=k).map(lambda tensor: tensor.to(dtype))


def compare(twin, case, precision, device="cuda", backend="triton", **kwargs):
    features, rest, limits = precision
    case = twin.on(device, twin.cast(case, features, rest))
    found = twin.derivatives(case, backend, **kwargs)
    assert found["value"].dtype == features and found["value"].any()
    expected = twin.derivatives(case.map(torch.Tensor.double), "torch", **kwargs)
    assert not twin.differences(found, expected, *limits)


@pytest.mark.parametrize("options, precision", CASES.values(), ids=CASES.keys())
def test_derivatives(reference, twin, options, precision):
    compare(twin, make_case(reference, **options), precision)


@pytest.mark.parametrize("precision", [SINGLE, BRAIN], ids=["float32", "bfloat16"])
def test_full_width(reference, twin, precision):
    compare(twin, full_width(reference), precision)


def test_high_degrees(reference, twin):
    case = make_case(reference, lmax_in=4, orders=(0, 1, 2, 3, 4), channels=4, edges=200)
    compare(twin, case, SINGLE, order=1)


def test_dropout(reference, twin):
    seed = torch.tensor(7, device="cuda")
    compare(twin, make_case(reference), EXACT, dropout=0.4, seed=seed)


@pytest.mark.parametrize("convolution", [False, True], ids=["attention", "convolution"])
def test_rows_visited_along_a_curve(reference, twin, convolution):
    """From some thousand nodes on; more of them than programs of the row pass, too."""
    case = make_case(
        reference, nodes=5000, edges=40000, convolution=convolution, lmax_in=1, channels=4
    )
    compare(twin, case, EXACT)
    if not convolution:
        compare(twin, case, EXACT, order=1, keep_rows=False)


@pytest.mark.parametrize("by", [("pos",), ("v",)], ids=str)
def test_derivatives_of_some_gradients(reference, twin, by):
    """As force training takes them, on weights that do not ask for a gradient of their own."""
    compare(twin, make_case(reference), EXACT, by=by)


@pytest.mark.parametrize(
    "precision", [EXACT, SINGLE, BRAIN], ids=["float64", "float32", "bfloat16"]
)
def test_forces_without_path_rows(reference, twin, monkeypatch, precision):
    """The pass over rows finds the cotangents of normalisers by itself."""
    from e2former_pyg.functional import triton_backend
    from e2former_pyg.kernels import launch

    def not_called(*args):
        raise AssertionError

    monkeypatch.setattr(triton_backend, "_LARGE", 0)
    monkeypatch.setattr(triton_backend, "_again", not_called)
    monkeypatch.setattr(launch, "normaliser_kernel", not_called)
    settings = {"by": ("q", "k", "v", "pos"), "order": 1, "keep_rows": False}
    compare(twin, make_case(reference), precision, **settings)


@pytest.mark.parametrize("convolution", [False, True], ids=["attention", "convolution"])
def test_no_edges(reference, twin, convolution):
    case = twin.on("cuda", twin.without_edges(make_case(reference, convolution=convolution)))
    found = twin.derivatives(case, "triton")
    assert not any(tensor.any() for tensor in found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_repeated_runs_are_equal_bit_by_bit(reference, twin, dtype):
    case = twin.on("cuda", twin.cast(full_width(reference), dtype, torch.float32))
    first, second = (twin.derivatives(case, "triton") for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_auto_takes_triton(reference):
    case = make_case(reference)
    paths = coupling(case.lmax_in, case.lmax, case.orders, case.parity)
    assert not takes_triton("auto", case.v, paths)
    case = case.map(torch.Tensor.cuda)
    assert takes_triton("auto", case.v, paths)
    # Above the highest order of the kernels.
    assert not takes_triton("auto", case.v, coupling(2, 5, (5,)))


def test_auto_is_triton(reference, twin):
    case, _ = twin.on("cuda", make_case(reference)).leaves()
    out = case.run(backend="auto")
    assert "path_rows" in type(out.grad_fn).__name__
    assert torch.equal(out, case.run(backend="triton"))
    assert not torch.equal(out, case.run(backend="torch"))  # rounding differs


def test_without_a_gpu_tensor(reference):
    with pytest.raises(RuntimeError, match=r"'triton' is not available.*'cpu'"):
        make_case(reference).run(backend="triton")


def test_cuda_graph(reference, twin):
    case = twin.on("cuda", full_width(reference, torch.float32))
    neighborhood = CSRNeighborhood.from_edge_index(case.edge_index, case.size)
    other = case.v.flip(0).contiguous()
    with torch.no_grad():
        expected = case.replace(v=other).run(neighborhood)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                case.run(neighborhood)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = case.run(neighborhood)
        case.v.copy_(other)
        graph.replay()
    assert torch.equal(out, expected)


def attention(q, k, v, pos, rowptr, col, coefficients, types, sink):
    neighborhood = CSRNeighborhood(rowptr, col, None, v.size(0))
    radial = RadialSplines(coefficients, types, types, 3.0)
    return equivariant_attention(q, k, v, pos, neighborhood, radial, orders=(0, 1), sink=sink)


@pytest.fixture(scope="module")
def two_sizes(reference, twin):
    sizes = (32, 500), (41, 777)
    return [twin.on("cuda", make_case(reference, nodes=n, edges=e)) for n, e in sizes]


def test_compiled_once_for_all_edge_counts(reference, twin, two_sizes):
    errors = list(twin.compiled_errors(reference, attention, two_sizes))
    assert len(errors) > 2 * len(two_sizes) and all(error < 1e-10 for error in errors)


def test_export(twin, two_sizes):
    assert twin.exported_error(attention, two_sizes) < 1e-14


def test_no_size_compiles_anew(reference, twin):
    """Kernels are specialised to the kinds of their arguments, never to numbers of nodes."""
    from e2former_pyg.kernels import backward, degree_linear, forward, normaliser, tangent

    kernels = (
        *(forward.forward_kernel, tangent.tangent_kernel, normaliser.normaliser_kernel),
        *(backward.backward_rows_kernel, backward.backward_columns_kernel),
        *(degree_linear.rows_kernel, degree_linear.matrix_kernel, degree_linear.total_kernel),
    )

    def compiled():
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels]

    layer = E2FormerAttention(8, 8, 1, heads=2, qk_channels=4, cutoff=3.0).cuda()
    counts = []
    for nodes, edges in ((32, 500), (33, 501), (64, 1024)):
        case = twin.on("cuda", make_case(reference, nodes=nodes, edges=edges))
        x = torch.randn(nodes, 4, 8, device="cuda", requires_grad=True)
        pos = case.pos.float().requires_grad_()
        out = layer(x, pos, case.edge_index)
        (forces,) = torch.autograd.grad(out.sum(), pos, create_graph=True)
        forces.square().sum().backward()
        counts.append(compiled())
    assert all(counts[0]) and all(count == counts[0] for count in counts)


def test_potential(reference):
    """Energies and forces of a whole model do not depend on the device."""
    torch.manual_seed(0)
    model = E2FormerPotential(
        hidden_channels=16,
        num_layers=2,
        lmax=2,
        order=(0, 1),
        heads=2,
        cutoff=4.0,
        num_radial=8,
        qk_channels=4,
        directional=True,
        qk_norm=True,
    )
    model = model.double().eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # parameters that start at zero could hide what they multiply
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    z = torch.tensor([1, 6, 8])[torch.randint(3, (40,), generator=generator)]
    pos = 6 * torch.rand(40, 3, dtype=torch.float64, generator=generator)
    expected = model(z, pos)
    found = model.cuda()(z.cuda(), pos.cuda())
    assert reference.error(found.energy.cpu(), expected.energy) < 1e-10
    assert reference.error(found.forces.cpu(), expected.forces) < 1e-10
