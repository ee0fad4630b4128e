"""Training steps with forces in two processes, by each way to share the work among them.

    torchrun --standalone --nproc-per-node 2 sharded_runs.py <folder>

writes what each process found. With ``lightning`` before the folder, and no torchrun: the same with
Lightning.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Batch, Data

from e2former_pyg import E2FormerPotential, PotentialOutput

WAYS = ("ddp", "zero", "fsdp", "fsdp-blocks")
STEPS = 3


def make_potential() -> E2FormerPotential:
    torch.manual_seed(0)
    options = {"hidden_channels": 8, "num_layers": 2, "lmax": 2, "heads": 2, "num_radial": 6}
    return E2FormerPotential(cutoff=4.0, stress=True, **options).double()


def make_graphs() -> list[Data]:
    """Periodic ones of 3 to 6 atoms, with labels by chance."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [
        Data(
            z=torch.tensor([1, 6, 8])[torch.randint(3, (size,), generator=generator)],
            pos=1.5 * random(size, 3),
            cell=9.0 * torch.eye(3, dtype=torch.float64)[None],
            energy=random(1),
            forces=random(size, 3),
        )
        for size in range(3, 7)
    ]


def loss_of(out: PotentialOutput, data: Batch) -> Tensor:
    """A sum over graphs, which the processes of a run divide among them."""
    assert out.forces is not None and out.stress is not None
    errors = (out.energy - data.energy).square().sum() + (out.forces - data.forces).square().sum()
    return errors + 1e4 * out.stress.square().sum()


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def held(tensors: list[Tensor]) -> int:
    """Bytes of them in this process."""
    local = (t.to_local() if hasattr(t, "to_local") else t for t in tensors)
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def train(way: str, graphs: list[Data], folder: Path | None = None) -> dict:
    """Steps of this process with its graphs; ``one``: those of one process with all of them."""
    potential = make_potential()
    model: nn.Module = potential
    if way in ("ddp", "zero"):
        model = DistributedDataParallel(potential)
    if way == "fsdp-blocks":
        for block in potential.backbone.blocks:
            fully_shard(block, reshard_after_forward=False)
    if way.startswith("fsdp"):
        fully_shard(potential)
    if way == "zero":
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1e-2)
        states = optimizer.optim.state
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        states = optimizer.state
    data, processes = Batch.from_data_list(graphs), 1 if way == "one" else 2
    steps = []
    for _ in range(STEPS):
        if way == "fsdp-blocks":
            potential.set_reshard_after_backward(False)
        out = model(data)
        if way == "fsdp-blocks":
            potential.set_reshard_after_backward(True)
        (processes * loss_of(out, data)).backward()
        parameters = list(potential.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        outputs = {"energy": out.energy, "forces": out.forces, "stress": out.stress}
        steps.append(
            {name: value.detach() for name, value in outputs.items()}
            | {"gradients": [whole(gradient) for gradient in gradients]}
        )
        optimizer.step()
        moments = [t for state in states.values() for t in state.values() if t.dim() > 0]
        sizes = [held(list(kind)) for kind in (parameters, gradients, moments)]
        optimizer.zero_grad()
    if folder is not None:
        potential.save(folder / f"{way}.safetensors")
    weights = [whole(parameter.detach()) for parameter in potential.parameters()]
    return {"steps": steps, "weights": weights, "bytes": sizes}


def run_two_processes(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    mine = make_graphs()[2 * rank : 2 * rank + 2]
    results = {way: train(way, mine, folder if "fsdp" in way else None) for way in WAYS}
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def run_lightning(folder: Path) -> None:
    """One run with DDP, one that is sharded, and one of these in two parts."""
    from lightning.pytorch import seed_everything
    from lightning.pytorch.strategies import ModelParallelStrategy
    from small_runs import Frames, Record, last, make_module, make_trainer

    from e2former_pyg.training import E2FormerModule, ExponentialAverage, GraphDataModule

    class ShardedModule(E2FormerModule):
        def configure_model(self) -> None:
            fully_shard(self.model, mesh=self.device_mesh["data_parallel"])

    def run(root: Path, steps: int, sharded: bool, resume: bool = False) -> list[tuple]:
        seed_everything(1, verbose=False)
        module = make_module({"dropout": 0.0})
        if sharded:
            module = ShardedModule(module.model, lr=1e-2, warmup_steps=3, total_steps=20)
        module.model.double()
        record = Record()
        strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=False)
        options = {"devices": 2, "strategy": strategy if sharded else "ddp", "max_steps": steps}
        trainer = make_trainer(root, record, **options)
        kept = [c for c in trainer.callbacks if not isinstance(c, ExponentialAverage)]
        trainer.callbacks = kept
        data = GraphDataModule(Frames(), val_size=7, max_atoms=24)
        trainer.fit(module, data, ckpt_path=last(root) if resume else None)
        return record.steps

    results = {
        "ddp": run(folder / "ddp", 5, False),
        "sharded": run(folder / "sharded", 5, True),
        "parts": run(folder / "parts", 3, True) + run(folder / "parts", 5, True, resume=True),
    }
    torch.save(results, folder / f"lightning{dist.get_rank()}.pt")


if __name__ == "__main__":
    if sys.argv[1] == "lightning":
        run_lightning(Path(sys.argv[2]))
    else:
        run_two_processes(Path(sys.argv[1]))
