"""Dropout: its generator, its mask, and its place in the attention."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from e2former_pyg.functional import chunks
from e2former_pyg.functional.dropout import dropout_mask, philox, uniform

MASK = 2**32 - 1


def philox_words(counter, key):
    """Philox 4x32-10 as Salmon et al. (2011) describe it, on Python integers."""
    for _ in range(10):
        high_a, low_a = divmod(0xD2511F53 * counter[0], 2**32)
        high_b, low_b = divmod(0xCD9E8D57 * counter[2], 2**32)
        counter = (high_b ^ counter[1] ^ key[0], low_b, high_a ^ counter[3] ^ key[1], low_a)
        key = ((key[0] + 0x9E3779B9) & MASK, (key[1] + 0xBB67AE85) & MASK)
    return counter


def test_python_generator_gives_the_published_words():
    assert philox_words((0, 0, 0, 0), (0, 0))[0] == 0x6627E8D5
    assert philox_words((MASK,) * 4, (MASK, MASK))[0] == 0x408F276D


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**62 - 1, 0x123456789ABCDEF, -1])
def test_philox(seed):
    counters = [0, 1, 2, 77, 2**31 - 1, 2**31, MASK]
    found = philox(torch.tensor(seed), torch.tensor(counters))
    key = (seed & MASK, (seed >> 32) & MASK)
    assert found.tolist() == [philox_words((counter, 0, 0, 0), key)[0] for counter in counters]


def test_uniform_numbers():
    bits = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
    numbers = uniform(bits)
    assert numbers.dtype == torch.float32
    assert ((numbers >= 0) & (numbers < 1)).all()
    sample = uniform(philox(torch.tensor(3), torch.arange(20000)))
    assert abs(sample.mean() - 0.5) < 0.01
    assert abs(sample.var() - 1 / 12) < 0.003
    assert sample.histc(10, 0, 1).sub(2000).abs().max() < 200


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_mask(probability):
    seed = torch.tensor(11)
    mask = dropout_mask(seed, torch.arange(5000), 4, probability, torch.float64)
    assert mask.shape == (5000, 4)
    kept = mask > 0
    assert abs(kept.double().mean() - (1 - probability)) < 0.01
    assert torch.equal(mask[kept], torch.full_like(mask[kept], 1 / (1 - probability)))
    # The counter is that of the edge's place and the head.
    words = [philox_words((77 * 4 + head, 0, 0, 0), (11, 0))[0] for head in range(4)]
    signed = [word - 2**32 if word >= 2**31 else word for word in words]
    numbers = [(-word - 1 if word < 0 else word) / 2**31 for word in signed]
    assert kept[77].tolist() == [number >= probability for number in numbers]
    assert not torch.equal(
        mask, dropout_mask(torch.tensor(12), torch.arange(5000), 4, probability, torch.float64)
    )
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dropout_mask(seed, order, 4, probability, torch.float64), mask[order])


@pytest.mark.parametrize("budget", [None, 1, 200])
@pytest.mark.parametrize("seed", [5, 2**40 + 3])
def test_attention_weights_are_masked_after_the_softmax(reference, monkeypatch, budget, seed):
    if budget is not None:
        monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", budget)
    case = reference.make_case(edges=30, bias=True)
    mask = dropout_mask(torch.tensor(seed), torch.arange(30), 2, 0.4, torch.float64)
    out = case.run(dropout=0.4, seed=torch.tensor(seed))
    assert reference.error(out, reference.naive(case, mask)) < 1e-12
    assert reference.error(out, case.run()) > 0.1


def test_zero_probability_changes_nothing(reference):
    case = reference.make_case()
    assert torch.equal(case.run(dropout=0.0, seed=torch.tensor(1)), case.run())


@pytest.mark.parametrize("budget", [None, 1])
def test_derivatives_with_a_fixed_seed(reference, monkeypatch, budget):
    if budget is not None:
        monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", budget)
    case = reference.make_case(nodes=4, edges=8, lmax_in=1, channels=2, types=1, num_radial=5)
    pos, v = case.pos.clone().requires_grad_(), case.v.clone().requires_grad_()
    seed = torch.tensor(9)

    def function(pos, v):
        return case.replace(pos=pos, v=v).run(dropout=0.5, seed=seed)

    assert gradcheck(function, (pos, v), fast_mode=True)
    assert gradgradcheck(function, (pos, v), fast_mode=True)
