"""``qk_norm`` of the attention layer."""

import pytest
import torch


@pytest.fixture
def made():
    """Queries and keys of a call of a layer."""

    def call(layer, *args, **kwargs):
        inputs = {}
        handle = layer.register_message_and_aggregate_forward_pre_hook(
            lambda module, given: inputs.update(given[-1])
        )
        layer(*args, **kwargs)
        handle.remove()
        return inputs["q"][1], inputs["k"][0]

    return call


def by_hand(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def test_queries_and_keys_have_unit_size(make_layer, make_graph, made):
    plain, layer = make_layer("attention"), make_layer("attention", qk_norm=True)
    assert plain.state_dict().keys() == layer.state_dict().keys()
    graph = make_graph()
    q, k = made(layer, **graph.arguments())
    expected_q, expected_k = made(plain, **graph.arguments())
    assert q.shape == (8, 4, 4)
    torch.testing.assert_close(q, by_hand(expected_q))
    torch.testing.assert_close(k, by_hand(expected_k))
    # The same where sources and targets are apart.
    pair = (graph.x, graph.x.clone()), (graph.pos, graph.pos), graph.edge_index, (graph.z, graph.z)
    for found, expected in zip(made(layer, *pair), (q, k), strict=True):
        torch.testing.assert_close(found, expected)


def test_separate_networks(make_layer, make_graph, made):
    options = {"in_channels": (8, 4)}
    source, target = make_graph(), make_graph(seed=4, channels=4)
    args = (source.x, target.x), (source.pos, target.pos), source.edge_index
    found = made(make_layer("attention", qk_norm=True, **options), *args)
    for ours, theirs in zip(found, made(make_layer("attention", **options), *args), strict=True):
        torch.testing.assert_close(ours, by_hand(theirs))


def test_large_features_do_not_saturate(make_layer, make_graph):
    """Logits are of degree zero in features, not of degree four."""
    graph = make_graph()

    def weights(scale, qk_norm):
        layer = make_layer("attention", qk_norm=qk_norm, directional=False)
        given = graph.replace(x=scale * graph.x)
        return layer(**given.arguments(), return_attention_weights=True)[1][1]

    one, large = weights(1e3, True), weights(1e4, True)
    torch.testing.assert_close(one, large, rtol=0, atol=1e-2)
    within = one > 0
    assert one[within].min() > 1e-4
    assert weights(1e3, False)[within].min() < 1e-30


def test_derivatives(make_layer, make_graph):
    layer = make_layer("attention", qk_norm=True, lmax=1)
    graph = make_graph(nodes=5, edges=9, lmax=1)

    def run(x, pos):
        return layer(**graph.replace(x=x, pos=pos).arguments())

    inputs = graph.x.requires_grad_(), graph.pos.requires_grad_()
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)
