"""What is minimised, what is measured, and with which settings."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from small_runs import MODEL, Frames, last, make_module, make_trainer
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from e2former_pyg import E2FormerPotential, E2FormerProperty
from e2former_pyg.models import ElementReferences, ReferenceFit
from e2former_pyg.training import (
    E2FormerModule,
    E2FormerPropertyModule,
    ExponentialAverage,
    GraphDataModule,
)
from e2former_pyg.training.losses import weight_at
from e2former_pyg.training.optimizer import WarmupCosine, parameter_groups


def crystals() -> Batch:
    """Crystals of two and three atoms and a molecule, with labels of their own."""
    generator = torch.Generator().manual_seed(0)
    frames = []
    for size, periodic in ((2, True), (3, True), (4, False)):
        frames.append(
            Data(
                z=torch.tensor([1, 6, 8, 1])[:size],
                pos=1.5 * torch.rand(size, 3, generator=generator).double()
                + torch.arange(size).view(-1, 1),
                cell=(6.0 * torch.eye(3) if periodic else torch.zeros(3, 3)).double()[None],
                pbc=torch.tensor([[periodic] * 3]),
                energy=torch.randn(1, generator=generator).double() - 100 * size,
                forces=torch.randn(size, 3, generator=generator).double(),
                stress=torch.randn(1, 3, 3, generator=generator).double() * periodic,
            )
        )
    return Batch.from_data_list(frames)


def test_loss_by_hand():
    """Energies per atom, lengths of force errors and components of stresses."""
    batch = crystals()
    module = make_module(
        {"stress": True, "dropout": 0.0},
        energy_weight=2.0,
        forces_weight=3.0,
        stress_weight=5.0,
        energy_loss="mse",
    )
    module.model.double()
    module.trainer = make_trainer(None)
    out = module.model(batch)
    sizes = torch.tensor([2, 3, 4])
    energy = ((out.energy - batch.energy) / sizes).square().mean()
    forces = (out.forces - batch.forces).norm(dim=1).mean()
    stress = (out.stress - batch.stress).abs().mean()
    sums, weights = module.sums(batch), module.loss_weights()
    assert {name: count for name, (_, count) in sums.items()} == {
        "energy": 3,
        "forces": 9,
        "stress": 27,
    }
    loss = sum(weights[name] * total / count for name, (total, count) in sums.items())
    torch.testing.assert_close(loss, 2 * energy + 3 * forces + 5 * stress, rtol=1e-9, atol=0)
    values, _ = module.measure(batch)
    means = {name: float(value.detach().mean()) for name, value in values.items()}
    assert means == pytest.approx(
        {
            "energy_mae_meV": 1e3 * float((out.energy - batch.energy).detach().abs().mean()),
            "energy_mae_meV_per_atom": 1e3
            * float(((out.energy - batch.energy) / sizes).detach().abs().mean()),
            "force_mae_meV_per_A": 1e3 * float((out.forces - batch.forces).detach().abs().mean()),
            "stress_mae_meV_per_A3": 1e3 * float(stress.detach()),
        }
    )


@pytest.mark.parametrize(
    "weight, step, expected",
    [
        (3.0, 17, 3.0),
        ({0: 1.0, 100: 5.0}, 0, 1.0),
        ({0: 1.0, 100: 5.0}, 25, 2.0),
        ({100: 5.0, 0: 1.0}, 100, 5.0),
        ({0: 1.0, 100: 5.0}, 1000, 5.0),
        ({10: 2.0, 20: 4.0, 40: 0.0}, 3, 2.0),
        ({10: 2.0, 20: 4.0, 40: 0.0}, 30, 2.0),
    ],
)
def test_weights_follow_a_schedule(weight, step, expected):
    assert weight_at(weight, step) == pytest.approx(expected)


def test_schedule_of_weights_in_a_run(tmp_path):
    """The second step weighs the energy alone."""
    module = make_module(energy_weight={0: 0.0, 1: 1.0}, forces_weight={0: 1.0, 1: 0.0})
    parts = []
    module.log = lambda name, value, **_: parts.append((name, float(value)))
    trainer = make_trainer(tmp_path, max_steps=2, limit_val_batches=0)
    trainer.fit(module, GraphDataModule(Frames(), batch_size=10))
    energy, forces, loss = (
        [value for key, value in parts if key == f"train/{name}"]
        for name in ("energy_loss", "forces_loss", "loss")
    )
    assert loss == pytest.approx([forces[0], energy[1]], rel=1e-6)


def test_no_decay_on_norms_biases_and_embeddings():
    model = E2FormerPotential(**MODEL, charge=True, spin=True)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, others = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1 and others["weight_decay"] == 0.0
    groups = [{names[id(p)] for p in group["params"]} for group in (decayed, others)]
    assert len(groups[0]) + len(groups[1]) == len(names) and not groups[0] & groups[1]
    bare = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if isinstance(module, nn.Embedding) or "norm" in prefix or name in ("bias", "sink")
    }
    assert groups[1] == bare
    assert "backbone.norm.weight" in bare and "backbone.embedding.spin.weight" in bare
    model.energy_head[0].weight.requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(model, 0.1)) == len(names) - 1


def test_learning_rate():
    factor = WarmupCosine(10, 110, 0.2, 0.01)
    assert factor(0) == 0.2 and factor(5) == pytest.approx(0.6) and factor(10) == 1.0
    assert factor(60) == pytest.approx(0.505) and factor(110) == pytest.approx(0.01)
    assert factor(500) == pytest.approx(0.01)
    assert WarmupCosine(0, 0, 0.2, 0.01)(0) == 1.0


def test_references_of_a_stream_are_those_of_the_whole():
    frames = Frames(40)
    batch = Batch.from_data_list(frames.frames)
    for forces in (batch.forces, None):
        fit = ReferenceFit()
        for part in DataLoader(frames, batch_size=7):
            fit.update(part.z, part.energy, part.batch, None if forces is None else part.forces)
        streamed = ElementReferences().set(fit)
        whole = ElementReferences().fit(batch.z, batch.energy, batch.batch, forces)
        torch.testing.assert_close(streamed.energies, whole.energies, rtol=1e-11, atol=0)
        assert float(streamed.scale) == pytest.approx(float(whole.scale), rel=1e-11)
    with pytest.raises(ValueError, match="`fit` must have seen at least one graph"):
        ElementReferences().set(ReferenceFit())


def test_references_are_fitted_to_the_training_set_once(tmp_path):
    data = GraphDataModule(Frames(), val_size=6, max_atoms=24)
    module = make_module()
    make_trainer(tmp_path, max_steps=3).fit(module, data)
    train = Batch.from_data_list(list(data.datasets["train"]))
    expected = ElementReferences().fit(train.z, train.energy, train.batch, train.forces)
    torch.testing.assert_close(module.model.references.energies, expected.energies)
    torch.testing.assert_close(module.model.references.scale, expected.scale)
    kept = make_module(fit_references=False)
    make_trainer(tmp_path / "kept", max_steps=1).fit(kept, data)
    assert not kept.model.references.energies.any()


def test_activation_checkpointing_gives_the_same_gradients(monkeypatch):
    calls = []
    gradients = []
    batch = Batch.from_data_list(Frames(4).frames)
    for checkpointing in (False, True):
        module = make_module({"num_layers": 2}, activation_checkpointing=checkpointing)
        module.model.double()
        block = module.model.backbone.blocks[1]
        block.attention.register_forward_hook(lambda *_: calls.append(1))
        torch.manual_seed(3)  # of the dropout
        total = sum(total for total, _ in module.sums(batch).values())
        calls.clear()
        module.backward(total)
        assert len(calls) == int(checkpointing)
        gradients.append([p.grad for p in module.model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    # Attributes of the training are not those of the model.
    assert "activation_checkpointing" not in module.model.config


def test_each_validation_sees_all_graphs(tmp_path):
    """After the check of Lightning, which looks at two batches, and after a restart."""
    seen = []

    class Count(Callback):
        def on_validation_batch_end(self, trainer, module, outputs, batch, *args):
            seen.append((trainer.sanity_checking, trainer.global_step, batch.num_graphs))

    data = GraphDataModule(Frames(), val_size=7, batch_size=2)
    module = make_module()
    trainer = make_trainer(tmp_path, Count(), max_steps=13, num_sanity_val_steps=2)
    trainer.fit(module, data)
    trainer = make_trainer(tmp_path, Count(), max_steps=24)
    trainer.fit(make_module(), data, ckpt_path=last(tmp_path))
    check, *steps = [
        (key, [count for *other, count in seen if tuple(other) == key])
        for key in dict.fromkeys((checking, step) for checking, step, _ in seen)
    ]
    assert check == ((True, 0), [2, 2])
    assert steps == [((False, 12), [2, 2, 2, 1]), ((False, 24), [2, 2, 2, 1])]


def test_gradients_are_added_up_over_a_restart(tmp_path):
    """Checkpoints come after steps of the optimizer, not between the batches of one."""

    class Interrupt(Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            if (trainer.current_epoch, index) == (1, 1):
                raise RuntimeError("interrupted")

    def fit(root, *callbacks):
        module = make_module()
        torch.manual_seed(1)
        data = GraphDataModule(Frames(), val_size=6, batch_size=4)
        options = {"accumulate_grad_batches": 2, "every_n_steps": 1, "max_steps": 6}
        trainer = make_trainer(root, *callbacks, **options)
        trainer.fit(module, data, ckpt_path=last(root) if last(root).exists() else None)
        return module.model.state_dict()

    whole = fit(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(tmp_path / "parts", Interrupt())
    torch.testing.assert_close(fit(tmp_path / "parts"), whole, rtol=0, atol=0)


def test_mixed_precision(tmp_path):
    """In bfloat16 the run stays close to that in float32."""
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        module = make_module({"dropout": 0.0})
        trainer = make_trainer(tmp_path / precision, max_steps=4, precision=precision)
        trainer.fit(module, GraphDataModule(Frames(), val_size=6, max_atoms=24))
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        losses.append(float(trainer.callback_metrics["train/loss"]))
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.05)


def test_average_by_hand(tmp_path):
    """What is validated and kept is the average of the weights after each step."""
    weights = []

    class Watch(ExponentialAverage):
        def on_train_batch_end(self, trainer, module, *args):
            super().on_train_batch_end(trainer, module, *args)
            weights.append(copy.deepcopy(module.model.energy_head[0].weight.data))

    module = make_module()
    trainer = make_trainer(tmp_path, max_steps=5)
    trainer.callbacks[0] = Watch(0.9)
    trainer.fit(module, GraphDataModule(Frames(), val_size=6, max_atoms=24))
    average = weights[0]
    for step, weight in enumerate(weights[1:], start=1):
        average = average.lerp(weight, max(0.1, 9 / (10 + step)))
    torch.testing.assert_close(module.model.energy_head[0].weight.data, average)
    checkpoint = torch.load(last(tmp_path), weights_only=True)
    name = "model.energy_head.0.weight"
    torch.testing.assert_close(checkpoint["state_dict"][name], average)
    assert torch.equal(checkpoint["current_model_state"][name], weights[-1])


def test_weights_to_start_from(tmp_path):
    path = str(tmp_path / "direct.safetensors")
    direct = E2FormerPotential(**MODEL, forces="direct")
    direct.references.energies[6] = -1000.0
    direct.save(path)
    with pytest.raises(ValueError, match=r"`weights` are of a model with lmax_out=1, .* one, 0:"):
        E2FormerModule(E2FormerPotential(**MODEL), weights=path)
    settings = MODEL | {"lmax_out": 1}
    module = E2FormerModule(E2FormerPotential(**settings), weights=path)
    for name, value in module.model.state_dict().items():
        assert torch.equal(value, direct.state_dict()[name])
    with pytest.raises(ValueError, match=r"`weights` must fit the model, found .* such as"):
        E2FormerModule(E2FormerPotential(**(settings | {"num_layers": 2})), weights=path)
    with pytest.raises(ValueError, match="`weights` hold a E2FormerPotential, expected a E2For"):
        E2FormerPropertyModule(E2FormerProperty(**MODEL), weights=path)


@pytest.mark.parametrize("reduce", ["sum", "mean", None])
def test_properties(tmp_path, reduce):
    """A scalar that the number and elements of the atoms determine."""
    torch.manual_seed(0)
    frames = Frames(24)
    for frame in frames:
        charges = frame.z.float()
        values = charges if reduce is None else getattr(charges, reduce)().view(1)
        frame.y = torch.stack([torch.zeros_like(values), values], dim=1)
    module = E2FormerPropertyModule(
        E2FormerProperty("0e", reduce, **MODEL), target_index=1, lr=5e-3, warmup_steps=5
    )
    trainer = make_trainer(tmp_path, max_steps=100)
    trainer.fit(module, GraphDataModule(frames, val_size=6, batch_size=6))
    results = trainer.validate(module, trainer.datamodule, verbose=False)[0]
    batch = Batch.from_data_list(list(trainer.datamodule.datasets["val"]))
    with torch.no_grad():
        error = (module.model.eval()(batch).squeeze(1) - batch.y[:, 1]).abs().mean()
    assert results["val/mae"] == pytest.approx(float(error), rel=1e-5)
    assert module.model.scale != 1.0
    kept = E2FormerPropertyModule(
        E2FormerProperty("0e", reduce, **MODEL), target_index=1, fit_scale=False
    )
    make_trainer(tmp_path / "kept", max_steps=1).fit(kept, trainer.datamodule)
    assert kept.model.scale == 1.0 and kept.model.mean == 0.0
    spread = (batch.y[:, 1] - batch.y[:, 1].mean()).abs().mean()
    assert error < 0.5 * spread


@pytest.mark.parametrize(
    "model, kwargs, message",
    [
        ({}, {"energy_weight": -1.0}, "`energy_weight` must be finite and not negative, got -1.0"),
        ({}, {"forces_weight": {}}, "`forces_weight` must be finite and not negative, got {}"),
        ({}, {"energy_weight": {-5: 1.0}}, "`energy_weight` must be given at steps from 0 on"),
        ({}, {"energy_weight": 0.0, "forces_weight": 0.0}, "are all zero, expected one above"),
        ({}, {"energy_loss": "l2"}, r"`energy_loss` must be one of \['mae', 'mse', 'huber'\]"),
        ({}, {"stress_weight": 1.0}, "`stress_weight` needs a model with stress, got one without"),
        ({"forces": None}, {}, "`forces_weight` needs a model with forces, got one without"),
        ({}, {"lr": -1.0}, "`lr` must lie in 0..inf, got -1.0"),
        ({}, {"optimizer": "sgd"}, "`optimizer` must be one of .*, got 'sgd'"),
        ({}, {"end_factor": 2.0}, "`end_factor` must lie in 0..1.0, got 2.0"),
    ],
)
def test_bad_arguments(model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_module(model, **kwargs)


def test_missing_labels(tmp_path):
    frames = Frames()
    for frame in frames:
        del frame.forces
    data = GraphDataModule(frames, batch_size=10)
    with pytest.raises(ValueError, match="`forces_weight` is not zero, but the model or the batch"):
        make_trainer(tmp_path, limit_val_batches=0).fit(make_module(), data)
    module = make_module(forces_weight=0.0)
    trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(module, data)
    assert "train/energy_loss" in trainer.callback_metrics


def test_endless_runs_need_the_last_step(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=-1, max_epochs=-1, limit_val_batches=0)
    with pytest.raises(ValueError, match="`total_steps` must be given"):
        trainer.fit(make_module(total_steps=None), GraphDataModule(Frames(), batch_size=10))


def test_labels_of_other_shapes_are_named(tmp_path):
    frames = Frames(6)
    for frame in frames.frames:
        frame.energy = frame.energy.expand(2)
    data = GraphDataModule(frames, batch_size=3)
    with pytest.raises(ValueError, match=r"`energy` must have shape \[3\], got \[6\]"):
        make_trainer(tmp_path).fit(make_module(fit_references=False), data)


def test_references_need_energies(tmp_path):
    frames = Frames(6)
    for frame in frames.frames:
        del frame.energy
    data = GraphDataModule(frames, batch_size=3)
    with pytest.raises(ValueError, match=r"`energy` to fit references.*`fit_references=False`"):
        make_trainer(tmp_path).fit(make_module(energy_weight=0.0), data)
