"""Default dtypes, copies, pickles, state dicts, the reset of parameters."""

import copy
import io
import pickle

import pytest
import torch

from e2former_pyg import E2FormerPotential

KINDS = pytest.mark.parametrize("kind", ["backbone", "potential", "property"])


def values(out):
    return list(out) if isinstance(out, tuple) else [out]


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_default_dtype_does_not_matter(lab, kind, dtype):
    z, pos = lab.molecule(dtype=dtype)
    results = []
    for default in (torch.float32, torch.float64):
        before = torch.get_default_dtype()
        model = lab.make(kind, dtype=dtype)
        torch.set_default_dtype(default)
        try:
            results.append(values(model(z, pos)))
        finally:
            torch.set_default_dtype(before)
    for first, second in zip(*results, strict=True):
        if first is not None:
            assert first.dtype == second.dtype and torch.equal(first, second)


def test_parameters_have_the_default_dtype(double_default, lab):
    model = E2FormerPotential(hidden_channels=8, num_layers=1, heads=2)
    assert all(parameter.dtype == torch.float64 for parameter in model.parameters())
    assert model(*lab.molecule()).forces.dtype == torch.float64


@KINDS
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies(lab, kind, way):
    model = lab.make(kind, elements=[1, 6, 7, 8])
    z, pos = lab.molecule()
    expected = values(model(z, pos))  # whatever is cached by now must not get in the way
    if way == "deepcopy":
        twin = copy.deepcopy(model)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    for parameter in model.parameters():
        parameter.data.zero_()
    for found, want in zip(values(twin(z, pos)), expected, strict=True):
        assert found is want is None or torch.equal(found, want)
    assert repr(twin) == repr(model)


@KINDS
def test_backend_does_not_change_the_state(lab, kind):
    states = [lab.make(kind, backend=backend).state_dict() for backend in ("auto", "torch")]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@KINDS
def test_state_dict_round_trip(lab, kind):
    first, second = lab.make(kind, seed=0), lab.make(kind, seed=1)
    z, pos = lab.molecule()
    expected = values(first(z, pos))
    assert not torch.equal(values(second(z, pos))[0], expected[0])
    second.load_state_dict(first.state_dict())
    for found, want in zip(values(second(z, pos)), expected, strict=True):
        assert found is want is None or torch.equal(found, want)


@KINDS
@pytest.mark.parametrize(
    "settings", [{}, {"charge": True, "spin": True}, {"pair_radial": False}], ids=str
)
def test_reset_parameters(lab, kind, settings):
    """Draws every parameter that is random anew, and the same ones of the same seed."""
    if kind == "potential":
        settings = settings | {"forces": "direct"}
    model = lab.make(kind, **settings)
    before = {name: p.clone() for name, p in model.named_parameters()}
    torch.manual_seed(5)
    model.reset_parameters()
    unchanged = [
        name
        for name, parameter in model.named_parameters()
        if torch.equal(parameter, before[name])
        and parameter.numel() > 1
        # Weights that start as constants are the same after all.
        and not torch.equal(parameter, parameter.flatten()[0].expand_as(parameter))
    ]
    assert unchanged == []
    torch.manual_seed(5)
    model.reset_parameters()
    again = {name: p.clone() for name, p in model.named_parameters()}
    torch.manual_seed(5)
    model.reset_parameters()
    assert all(torch.equal(p, again[name]) for name, p in model.named_parameters())


def test_settings_are_kept(lab):
    model = lab.make("backbone", order={1, 0}, elements=(8, 1, 6))
    assert model.config["order"] == [0, 1] and model.config["elements"] == [1, 6, 8]
    twin = type(model)(**model.config)
    assert twin.config == model.config
    assert twin.state_dict().keys() == model.state_dict().keys()


def test_dropout_acts_in_training_only(lab):
    model = lab.make("potential", dropout=0.5)
    z, pos = lab.molecule()
    reference = lab.make("potential")
    assert torch.equal(model(z, pos).energy, reference(z, pos).energy)
    model.train()
    energies = {float(model(z, pos).energy) for _ in range(3)}
    assert len(energies) == 3


def test_no_layers(lab):
    """A backbone of embeddings alone, smooth and equivariant as any."""
    model = lab.make("potential", num_layers=0)
    z, pos = lab.molecule()
    rotation = lab.rotation()
    before, after = model(z, pos), model(z, pos @ rotation.t())
    assert before.forces.any()
    assert lab.relative(after.forces, before.forces @ rotation.t()) < 1e-10


def test_scalars_alone(lab):
    model = lab.make("potential", lmax=0, order=0)
    z, pos = lab.molecule()
    assert model(z, pos).forces.any()


def test_without_the_final_norm(lab):
    """Features are those that the norm would be given; nothing else changes."""
    z, pos = lab.molecule()
    normed, bare = lab.make("backbone"), lab.make("backbone", final_norm=False)
    assert bare.load_state_dict(normed.state_dict(), strict=False).unexpected_keys == [
        "norm.weight",
        "norm.bias",
    ]
    torch.testing.assert_close(normed.norm(bare(z, pos)), normed(z, pos))
    assert not torch.equal(bare(z, pos), normed(z, pos))
    bare.reset_parameters()


def test_older_checkpoints_have_what_was_no_choice(lab, tmp_path):
    """They do not name the final norm, nor radial functions of pairs of elements."""
    model = lab.make("potential")
    for name in ("final_norm", "pair_radial"):
        del model.backbone.config[name]
    model.save(tmp_path / "model.safetensors")
    loaded = E2FormerPotential.load(tmp_path / "model.safetensors")
    assert loaded.backbone.config["final_norm"] and loaded.backbone.norm is not None
    assert loaded.backbone.config["pair_radial"]


def test_elements_that_share_radial_functions_still_differ(lab):
    model = lab.make("potential", pair_radial=False)
    z, pos = lab.molecule()
    forces = model(z, pos).forces
    assert forces.any() and not torch.equal(model(z.flip(0), pos).forces, forces)
