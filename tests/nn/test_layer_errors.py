"""Bad arguments of the layers."""

import pytest
import torch
from torch_geometric import EdgeIndex

from e2former_pyg.nn import DegreeLinear, E2FormerAttention, E2FormerConv, GatedFeedForward, RMSNorm

BAD_OPTIONS = {
    "flow": ({"flow": "target_to_source"}, ValueError, "`flow`.*target_to_source"),
    "aggr": ({"aggr": "mean"}, ValueError, "`aggr`.*mean"),
    "decomposed": ({"decomposed_layers": 2}, ValueError, "`decomposed_layers`.*2"),
    "algorithm": ({"algorithm": "fast"}, ValueError, "`algorithm`.*'fast'"),
    "backend": ({"backend": "cuda"}, ValueError, "`backend`.*'cuda'"),
    "parity": ({"parity": "o2"}, ValueError, "`parity`.*'o2'"),
    "cutoff": ({"cutoff": -1.0}, ValueError, "`cutoff`.*-1.0"),
    "num_radial": ({"num_radial": 3}, ValueError, "`num_radial`.*3"),
    "order": ({"order": (0, 9)}, ValueError, "`order`.*9"),
    "no order": ({"order": ()}, ValueError, "`order`"),
    "lmax": ({"lmax": 9}, ValueError, "`lmax.*9"),
    "lmax_in": ({"lmax_in": -1}, ValueError, "`lmax_in`.*-1"),
    "elements": ({"elements": [0, 300]}, ValueError, "`elements`.*300"),
    "no elements": ({"elements": []}, ValueError, "`elements`.*none"),
    "order of floats": ({"order": (0.0, 1.0)}, ValueError, "`order`"),
    "order of booleans": ({"order": (False, True)}, ValueError, "`order`"),
    "negative groups": ({"groups": -4}, ValueError, "`(groups|heads)`.*-4"),
    "groups": ({"groups": 3}, ValueError, "`(groups|heads)`.*8.*3"),
    "no groups": ({"groups": 0}, ValueError, "`(groups|heads)`.*0"),
    "lazy channels": ({"in_channels": -1}, ValueError, "`in_channels`.*-1"),
    "no channels": ({"in_channels": 0}, ValueError, "`in_channels` must be positive, got 0"),
    "no sources": ({"in_channels": (0, 8)}, ValueError, "`in_channels` must be positive, got 0"),
    "three kinds": ({"in_channels": (8, 8, 8)}, ValueError, r"`in_channels`.*\(8, 8, 8\)"),
    "no output": ({"out_channels": 0}, ValueError, "`out_channels` must be positive, got 0"),
    "unknown": ({"lmx": 2}, TypeError, "lmx"),
}


@pytest.mark.parametrize("options, error, message", BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_options(kind, make_layer, options, error, message):
    with pytest.raises(error, match=message):
        make_layer(kind, **options)


def test_options_of_one_layer():
    for qk_channels in (0, -1):
        with pytest.raises(ValueError, match=f"`qk_channels`.*{qk_channels}"):
            E2FormerAttention(8, 8, 1, qk_channels=qk_channels)
    for dropout in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"`dropout`.*{dropout}"):
            E2FormerAttention(8, 8, 1, dropout=dropout)
    with pytest.raises(ValueError, match=r"`avg_num_neighbors`.*0\.0"):
        E2FormerConv(8, 8, 1, avg_num_neighbors=0.0)


def test_sizes_of_parts():
    for make in (
        lambda: DegreeLinear(0, 4, 1),
        lambda: GatedFeedForward(0, 1),
        lambda: GatedFeedForward(8, 1, hidden_channels=-1),
        lambda: RMSNorm(0, 1),
    ):
        with pytest.raises(ValueError, match=r"`.*channels` must be positive, got (0|-1)"):
            make()


def test_accepted_options_of_message_passing(kind, make_layer):
    for options in ({"aggr": "sum"}, {"aggr": "add"}, {"flow": "source_to_target"}):
        make_layer(kind, **options)


def test_triton_says_why(kind, make_layer, make_graph, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    layer = make_layer(kind, backend="triton")
    with pytest.raises(RuntimeError, match="'triton' is not available"):
        layer(**make_graph().arguments())


BAD_INPUT = {
    "x channels": ({"x": lambda t: t[..., :7]}, ValueError, r"`x`.*8.*\[8, 9, 7\]"),
    "x degrees": ({"x": lambda t: t[:, :4]}, ValueError, r"`x`.*9.*\[8, 4, 8\]"),
    "x dimensions": ({"x": lambda t: t[:, 0]}, ValueError, r"`x`.*\[8, 8\]"),
    "x list": ({"x": torch.Tensor.tolist}, TypeError, "`x`.*list"),
    "x list of two": ({"x": lambda t: t[:2].tolist()}, TypeError, "`x`.*Tensor.*list"),
    "x dtype": ({"x": torch.Tensor.float}, TypeError, "`x`.*float64.*float32"),
    "x integers": ({"x": torch.Tensor.long}, TypeError, "`x`.*int64"),
    "pos columns": ({"pos": lambda t: t[:, :2]}, ValueError, r"`pos`.*\[8, 2\]"),
    "pos nodes": ({"pos": lambda t: t[1:]}, ValueError, "`(x|pos)"),
    "pos list": ({"pos": torch.Tensor.tolist}, TypeError, "`pos`.*list"),
    "pos nan": ({"pos": lambda t: t * float("nan")}, ValueError, "`pos`.*finite"),
    "pos inf": ({"pos": lambda t: t / 0}, ValueError, "`pos`.*finite"),
    "z list": ({"z": torch.Tensor.tolist}, TypeError, "`z`.*list"),
    "z bytes": ({"z": torch.Tensor.byte}, TypeError, "`z`.*uint8"),
    "pos integers": ({"pos": torch.Tensor.long}, TypeError, "`pos`.*int64"),
    "z nodes": ({"z": lambda t: t[1:]}, ValueError, r"`z`.*8.*\[7\]"),
    "z floats": ({"z": torch.Tensor.double}, TypeError, "`z`.*float64"),
    "z too high": ({"z": lambda t: t + 118}, ValueError, "`z`.*118"),
    "z negative": ({"z": lambda t: t - 2}, ValueError, "`z`.*-1"),
    "edge_shift edges": (
        {"edge_shift": lambda t: t[1:]},
        ValueError,
        r"`edge_shift`.*30.*\[29, 3\]",
    ),
    "edge_shift columns": ({"edge_shift": lambda t: t[:, :2]}, ValueError, "`edge_shift`"),
    "edge_shift integers": ({"edge_shift": torch.Tensor.long}, TypeError, "`edge_shift`"),
    "edge_shift nan": (
        {"edge_shift": lambda t: t * float("nan")},
        ValueError,
        "`edge_shift`.*finite",
    ),
    "edge_attr dtype": (
        {"edge_attr": torch.Tensor.float},
        TypeError,
        "`edge_attr`.*float64.*float32",
    ),
    "edge_attr list": ({"edge_attr": torch.Tensor.tolist}, TypeError, "`edge_attr`.*list"),
    "edge_attr edges": ({"edge_attr": lambda t: t[1:]}, ValueError, r"`edge_attr`.*30.*\[29, 2\]"),
    "edge_attr columns": ({"edge_attr": lambda t: t[:, :1]}, ValueError, "`edge_attr`.*2"),
    "edge_attr missing": ({"edge_attr": lambda t: None}, ValueError, "`edge_attr`.*2"),
    "edges transposed": ({"edge_index": torch.Tensor.t}, ValueError, r"`edge_index`.*\[30, 2\]"),
    "edges floats": ({"edge_index": torch.Tensor.double}, TypeError, "`edge_index`.*float64"),
    "edges too high": ({"edge_index": lambda t: t + 2}, IndexError, "`edge_index`.*8"),
    "edges negative": ({"edge_index": lambda t: t - 1}, IndexError, "`edge_index`.*-1"),
}


@pytest.mark.parametrize("changes, error, message", BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_input(kind, make_layer, make_graph, changes, error, message):
    layer, graph = make_layer(kind, edge_dim=2), make_graph(edge_dim=2, shift=True)
    changed = {name: change(vars(graph)[name]) for name, change in changes.items()}
    with pytest.raises(error, match=message):
        layer(**graph.replace(**changed).arguments())


def test_one_index_out_of_range(kind, make_layer, make_graph):
    layer, graph = make_layer(kind), make_graph()
    for row, name in ((0, "source"), (1, "target")):
        edge_index = graph.edge_index.clone()
        edge_index[row, 3] = 8
        for edges in (edge_index, EdgeIndex(edge_index)):
            with pytest.raises(IndexError, match=f"`edge_index`.*{name}.*8"):
                layer(**graph.replace(edge_index=edges).arguments())


def test_unexpected_edge_features(kind, make_layer, make_graph):
    with pytest.raises(ValueError, match=r"`edge_attr`.*`edge_dim`"):
        make_layer(kind)(**make_graph(edge_dim=2).arguments())


def test_an_element_that_was_not_announced(kind, make_layer, make_graph):
    with pytest.raises(ValueError, match=r"`z`.*`elements`.*\[1, 6\]"):
        make_layer(kind, elements=[1, 6])(**make_graph().arguments())


def test_bipartite_channels(kind, make_layer, make_graph):
    layer, graph = make_layer(kind, in_channels=(8, 4)), make_graph()
    with pytest.raises(ValueError, match=r"`x\[1\]`.*4.*\[8, 9, 8\]"):
        layer(**graph.arguments())
    with pytest.raises(ValueError, match=r"`x\[1\]`"):
        layer((graph.x, graph.x[1:, :, :4]), (graph.pos, graph.pos), graph.edge_index)


def test_parameters_as_input(kind, make_layer, make_graph):
    """Values of parameters are looked at as those of other tensors."""
    layer, graph = make_layer(kind), make_graph()
    layer(**graph.replace(pos=torch.nn.Parameter(graph.pos)).arguments())
    with pytest.raises(ValueError, match=r"`pos`.*finite"):
        layer(**graph.replace(pos=torch.nn.Parameter(graph.pos * float("nan"))).arguments())


def test_numbers_of_targets(kind, make_layer, make_graph):
    layer, graph = make_layer(kind), make_graph()
    edges = graph.edge_index % 5
    with pytest.raises(ValueError, match=r"`x`.*\[5, 9, 8\].*\[8, 9, 8\]"):
        layer(graph.x, (graph.pos, graph.pos[:5]), edges)
    with pytest.raises(ValueError, match=r"`x\[1\]`.*\[8, 9, 8\].*\[5, 9, 8\]"):
        layer((graph.x, graph.x[:5]), graph.pos, edges)
    out = layer((graph.x, graph.x[:5]), (graph.pos, graph.pos[:5]), edges)
    assert out.shape == (5, 9, 8)


@pytest.mark.parametrize("fuse", [True, False])
def test_graph_of_the_strain_out_of_range(kind, make_layer, make_graph, fuse):
    layer, graph = make_layer(kind), make_graph()
    layer.fuse = fuse
    strain = torch.zeros(2, 3, 3, dtype=torch.float64)
    layer(**graph.arguments(), strain=strain, batch=torch.ones(8, dtype=torch.long))
    for value in (2, -1):
        batch = torch.full((8,), value)
        with pytest.raises(ValueError, match=rf"`batch`.*0\.\.1.*{value}"):
            layer(**graph.arguments(), strain=strain, batch=batch)


def test_autocast_converts(kind, make_layer, make_graph):
    layer, graph = make_layer(kind, edge_dim=2, dtype=torch.float32), make_graph(edge_dim=2)
    graph = graph.replace(pos=graph.pos.float(), x=graph.x.float())
    arguments = graph.replace(x=graph.x.bfloat16(), edge_attr=graph.edge_attr.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(**arguments.arguments()).isfinite().all()
    with pytest.raises(TypeError, match="`x`"):
        layer(**arguments.arguments())
