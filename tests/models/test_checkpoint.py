"""Checkpoints: exact, without pickle, with clear errors, never half-written."""

import json
import struct

import numpy as np
import pytest
import safetensors.torch
import torch

from e2former_pyg import E2FormerPotential, E2FormerProperty
from e2former_pyg.models import checkpoint

KINDS = {"potential": E2FormerPotential, "property": E2FormerProperty}
OTHER_SETTINGS = {
    "lmax": 2,
    "lmax_out": 1,
    "order": (0, 1, 2),
    "parity": "o3",
    "elements": [8, 1, 6, 7],
    "charge": True,
    "spin": True,
    "ffn_channels": 6,
    "dropout": 0.1,
    "directional": False,
    "final_norm": False,
    "qk_norm": True,
    "pair_radial": False,
}


@pytest.fixture
def saved(lab, tmp_path):
    path = tmp_path / "model.safetensors"
    lab.make("potential", num_layers=1).save(path)
    return path


def rewrite(path, change):
    """Saves a file again after a change of its weights and its metadata."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = safetensors.torch.load_file(path)
    change(state, metadata)
    safetensors.torch.save_file(state, path, metadata)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", [{}, OTHER_SETTINGS], ids=["defaults", "others"])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_exact(lab, tmp_path, kind, settings, dtype):
    own = {"forces": "direct", "stress": True} if kind == "potential" else {"out": "0e+1o"}
    model = lab.make(kind, dtype=dtype, **own, **settings)
    path = tmp_path / "model.safetensors"
    model.train().save(str(path))
    assert model.training
    loaded = KINDS[kind].load(path)
    assert not loaded.training and repr(loaded) == repr(model)
    assert loaded.backbone.config == model.backbone.config
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    for name, value in loaded.state_dict().items():
        assert value.dtype == state[name].dtype and torch.equal(value, state[name]), name

    z, pos = lab.molecule(dtype=dtype)
    found, expected = loaded(z, pos), model.eval()(z, pos)
    if kind == "property":
        found, expected = [found], [expected]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_files_without_the_degree_of_the_output(lab, tmp_path, kind):
    """They are from before there was one: the last block computed all degrees."""
    model, path = lab.make(kind, lmax_out=2), tmp_path / "model.safetensors"
    model.save(path)

    def forget(state, metadata):
        config = json.loads(metadata["config"])
        assert config.pop("lmax_out") == 2
        metadata["config"] = json.dumps(config)

    rewrite(path, forget)
    loaded = KINDS[kind].load(path)
    assert loaded.backbone.lmax_out == 2
    assert loaded.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_default_dtype_does_not_matter(lab, saved, default):
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        loaded = E2FormerPotential.load(saved)
    finally:
        torch.set_default_dtype(before)
    z, pos = lab.molecule()
    expected = lab.make("potential", num_layers=1)(z, pos)
    assert torch.equal(loaded(z, pos).energy, expected.energy)
    assert torch.equal(loaded(z, pos).forces, expected.forces)


def test_no_pickle(lab, saved, monkeypatch):
    """The file starts as safetensors do: the length of a JSON header, and the header."""
    content = saved.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert json.loads(header["__metadata__"]["config"])["hidden_channels"] == 8
    assert header["__metadata__"]["format_version"] == "1"

    def fail(*args, **kwargs):
        raise AssertionError("pickle was used")

    monkeypatch.setattr("torch.load", fail)
    monkeypatch.setattr("pickle.load", fail)
    monkeypatch.setattr("pickle.loads", fail)
    monkeypatch.setattr("pickle.Unpickler", fail)
    E2FormerPotential.load(saved)


def test_numbers_of_any_kind_can_be_saved(lab, tmp_path):
    """Settings are often computed from the data."""
    z = lab.molecule()[0]
    settings = {
        "elements": np.unique(z.numpy()),
        "cutoff": np.float32(3.5),
        "avg_num_neighbors": torch.tensor(6.5),
    }
    model = lab.make("potential", **settings)
    model.save(tmp_path / "model.safetensors")
    loaded = E2FormerPotential.load(tmp_path / "model.safetensors")
    assert torch.equal(loaded(*lab.molecule()).energy, model(*lab.molecule()).energy)
    assert loaded.backbone.config["elements"] == [1, 6, 7, 8]


@pytest.mark.parametrize(
    ("order", "expected"),
    [(1, [1]), (np.int64(1), [1]), (np.array([2, 0]), [0, 2]), ((n for n in (1, 0)), [0, 1])],
    ids=["integer", "numpy", "array", "generator"],
)
def test_orders_of_any_kind_can_be_saved(lab, tmp_path, order, expected):
    model = lab.make("potential", num_layers=2, order=order)
    assert model.backbone.config["order"] == expected
    assert all(type(n) is int for n in model.backbone.config["order"])
    assert [block.attention.orders for block in model.backbone.blocks] == [tuple(expected)] * 2
    model.save(tmp_path / "model.safetensors")
    loaded = E2FormerPotential.load(tmp_path / "model.safetensors")
    assert torch.equal(loaded(*lab.molecule()).energy, model(*lab.molecule()).energy)


def test_loaded_model_can_be_trained(saved, lab):
    loaded = E2FormerPotential.load(saved).train()
    loaded(*lab.molecule()).forces.square().sum().backward()
    assert loaded.energy_head[0].weight.grad.any()
    saved.unlink()  # nothing is mapped from the file any longer


def test_loading_in_inference_mode(saved, lab):
    """Gives parameters that can enter the derivatives which forces are."""
    with torch.inference_mode():
        loaded = E2FormerPotential.load(saved)
        forces = loaded(*lab.molecule()).forces
    assert torch.equal(loaded(*lab.molecule()).forces, forces) and forces.any()
    assert not any(parameter.is_inference() for parameter in loaded.parameters())


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path`"):
        E2FormerPotential.load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="`path`"):
        E2FormerPotential.load(tmp_path)


def test_wrong_class(saved):
    with pytest.raises(ValueError, match=r"`path` holds a E2FormerPotential.*E2FormerProperty"):
        E2FormerProperty.load(saved)


@pytest.mark.parametrize("kept", [0, 4, 100, -1, -1000])
def test_truncated_file(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(ValueError, match="`path` is damaged"):
        E2FormerPotential.load(saved)


def test_random_bytes(saved):
    numbers = torch.randint(256, (5000,), generator=torch.Generator().manual_seed(0))
    saved.write_bytes(bytes(numbers.tolist()))
    with pytest.raises(ValueError, match="`path` is damaged"):
        E2FormerPotential.load(saved)


def test_pickled_file(saved, lab):
    torch.save(lab.make("potential").state_dict(), saved)
    with pytest.raises(ValueError, match="`path` is damaged"):
        E2FormerPotential.load(saved)


def test_other_safetensors_file(saved):
    safetensors.torch.save_file({"weight": torch.ones(3)}, saved)
    with pytest.raises(ValueError, match="`path` is no e2former_pyg checkpoint"):
        E2FormerPotential.load(saved)


def test_format_version(saved):
    rewrite(saved, lambda state, metadata: metadata.update(format_version="2"))
    with pytest.raises(ValueError, match="`path` has checkpoint format 2, expected 1"):
        E2FormerPotential.load(saved)


@pytest.mark.parametrize("config", [None, "{", "3", "[1, 2]", "null"])
def test_damaged_configuration(saved, config):
    def change(state, metadata):
        metadata.pop("config")
        if config is not None:
            metadata["config"] = config

    rewrite(saved, change)
    with pytest.raises(ValueError, match=r"`path` has .* configuration"):
        E2FormerPotential.load(saved)


CHANGES = {
    "missing": lambda state, metadata: state.pop("energy_head.0.bias"),
    "missing buffer": lambda state, metadata: state.pop("references.energies"),
    "unknown": lambda state, metadata: state.update(more=torch.ones(2)),
    "shape": lambda state, metadata: state.update({"energy_head.0.bias": torch.ones(9).double()}),
    "settings": lambda state, metadata: metadata.update(
        config=metadata["config"].replace('"hidden_channels": 8', '"hidden_channels": 16')
    ),
    "bad setting": lambda state, metadata: metadata.update(
        config=metadata["config"].replace('"lmax": 2', '"lmax": -2')
    ),
    "unknown setting": lambda state, metadata: metadata.update(
        config=metadata["config"].replace('"lmax"', '"lmin"')
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_do_not_fit(saved, change):
    rewrite(saved, CHANGES[change])
    with pytest.raises(ValueError, match="`path` has weights that do not fit"):
        E2FormerPotential.load(saved)


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_interrupted_save(lab, saved, monkeypatch, error):
    before = saved.read_bytes()

    def interrupted(tensors, filename, metadata):
        filename.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(type(error)):
        lab.make("potential", num_layers=1, seed=3).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_overwrites(lab, saved):
    other = lab.make("potential", num_layers=1, seed=3)
    other.save(saved)
    z, pos = lab.molecule()
    assert torch.equal(E2FormerPotential.load(saved)(z, pos).energy, other(z, pos).energy)
    assert list(saved.parent.iterdir()) == [saved]


def test_other_backbones_are_refused(lab, tmp_path):
    potential = lab.make("potential")

    class Other(type(potential.backbone)):
        pass

    potential.backbone.__class__ = Other
    with pytest.raises(TypeError, match=r"`backbone`.*Other"):
        potential.save(tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
