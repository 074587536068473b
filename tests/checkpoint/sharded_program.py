"""What the ranks of the tests of sharded checkpoints do: FSDP2 over gloo, with shards of all sizes."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainlab.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    Entry,
    Snapshot,
    Write,
    load_checkpoint,
    load_weights,
    only_parts,
    save_checkpoint,
)
from trainlab.distributed import DistributedContext, init_distributed
from trainlab.errors import TrainlabError
from trainlab.optim import load_optimizer_state, optimizer_state_dict
from trainlab.storage import faults, open_store

DETAILS = {"progress": {"batches_trained": 5, "epochs_trained": 0}, "trial_class": "digits:Digits"}
Tensors = dict[str, torch.Tensor]


class Model(nn.Module):
    """Sizes that no number of ranks divides, tied weights, and a buffer that is not sharded."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(7, 5)
        self.body = nn.Linear(5, 3)
        self.back = nn.Linear(3, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.full((2,), float(seed)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.back(self.body(self.embedding(x)).relu()))
        return result


def build(seed: int, *, replicas: int = 1, sharded: bool = True) -> tuple[Model, torch.optim.Optimizer]:
    """A model, distributed over all ranks, and its optimizer."""
    model = Model(seed)
    if sharded:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        size = torch.distributed.get_world_size()
        shape = (size,) if replicas == 1 else (replicas, size // replicas)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards")[-len(shape) :])
        fully_shard(model, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train(model: Model, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """The same steps on every rank."""
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.tensor([step, 3, 6])).square().sum().backward()
        optimizer.step()


def whole(model: Model, optimizer: torch.optim.Optimizer) -> tuple[Tensors, list[Tensors]]:
    """All weights and all of the optimizer's state, whole on every rank; a collective."""
    weights = {key: _whole(value) for key, value in model.state_dict().items()}
    states = optimizer.state_dict()["state"]
    return weights, [{key: _whole(value) for key, value in states[number].items()} for number in sorted(states)]


def _whole(value: Any) -> torch.Tensor:
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()


def snapshot(context: DistributedContext, model: Model, optimizer: torch.optim.Optimizer) -> Snapshot:
    """What this rank saves, in the way of a run."""
    state: dict[str, Any] = {"optimizers": [optimizer_state_dict(optimizer)], "note": "the run's"}
    if context.rank:
        state = only_parts(state) or {}
    return Snapshot(
        weights={"model": {"0": model.state_dict()}},
        state={**state, "own": {"rank": context.rank, "draws": torch.full((2,), float(context.rank))}},
        details=DETAILS,
        rank=context.rank,
        ranks=context.size,
    )


def writer(context: DistributedContext, root: str, **options: Any) -> CheckpointWriter:
    """A writer of all ranks; a collective."""
    channel = context.channel(f"checkpoints {root}")
    return CheckpointWriter(open_store(root), channel=channel, rank=context.rank, ranks=context.size, **options)


def start(
    context: DistributedContext, made: CheckpointWriter, content: Snapshot, batches: int = 5, **options: Any
) -> Write:
    """Begin a checkpoint under the chief's name for it."""
    name = context.exchange.broadcast(made.next_name(batches))
    return made.start(content, Entry(name, 0, batches, 0), **{"wait": False, **options})


def restore(model: Model, optimizer: torch.optim.Optimizer, path: Path | str) -> Any:
    """Load a checkpoint into whatever distribution there is; the state."""
    with Checkpoint.open(path, verify=False) as checkpoint:
        weights = checkpoint.weights(like={"0": model.state_dict()})["0"]
        state = checkpoint.state()
        model.load_state_dict(weights)
        load_optimizer_state(optimizer, state["optimizers"][0])
        owned = [checkpoint.state(rank=rank)["own"] for rank in range(checkpoint.ranks)]
    return {"note": state["note"], "own": owned, "tied": weights["head.weight"] is weights["embedding.weight"]}


def saves(root: str, mode: str, replicas: int = 1) -> Any:
    """Train, save beside the training, and change everything before it is written."""
    context = init_distributed()
    model, optimizer = build(0, replicas=replicas)
    train(model, optimizer, 3)
    expected = whole(model, optimizer)
    made = writer(context, root, mode=mode)
    write = start(context, made, snapshot(context, model, optimizer))
    train(model, optimizer, 1)
    assert made.settle(wait=True) is write
    made.close()
    context.close()
    return {"expected": expected, "error": write.error, "location": str(write.location), "names": made.names}


def reloads(path: str, again: str | None = None, replicas: int = 1) -> Any:
    """Load a checkpoint into another model of however many ranks there are, and perhaps save it from there."""
    context = init_distributed()
    model, optimizer = build(9, replicas=replicas)
    told = restore(model, optimizer, path)
    found = whole(model, optimizer)
    kinds = {type(value).__name__ for state in optimizer.state.values() for value in state.values()}
    train(model, optimizer, 1)
    trained = whole(model, optimizer)
    if again is not None:
        fresh, its_optimizer = build(3)
        restore(fresh, its_optimizer, path)
        made = writer(context, again, mode="sync")
        write = start(context, made, snapshot(context, fresh, its_optimizer))
        if write.error is not None:
            raise write.error
    warm = build(4, replicas=replicas)[0]
    load_weights(warm, path)
    same = all(torch.equal(_whole(value), found[0][key]) for key, value in warm.state_dict().items())
    context.close()
    return {"found": found, "trained": trained, "told": told, "kinds": kinds, "warm": same}


def dies(root: str, victim: int, point: str) -> Any:
    """Make one checkpoint, and kill a rank in the middle of the second: what the others have of it."""
    context = init_distributed()
    made = writer(context, root)
    for batches in (1, 2):
        content = Snapshot(
            weights={"model": {"0": {"weight": torch.full((3,), float(batches))}}},
            state={"own": context.rank},
            details=DETAILS,
            rank=context.rank,
            ranks=context.size,
        )
        if batches == 2 and context.rank == victim:
            faults.hook = lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == point else None
        write = start(context, made, content, batches)
        made.settle(wait=True)
    made.close()
    context.close()
    return {"error": type(write.error).__name__, "text": str(write.error)}


def saves_in_own_loop(root: str) -> Any:
    """Save without a writer: what is distributed, what is not, and what cannot be saved."""
    context = init_distributed()
    model, optimizer = build(0)
    train(model, optimizer, 1)
    expected = whole(model, optimizer)
    state = {"step": 1, "rank": context.rank, "optimizer": optimizer_state_dict(optimizer)}
    told = {"sharded": str(save_checkpoint(state, f"{root}/batch-0000001", weights=model))}
    told["plain"] = str(save_checkpoint({"rank": context.rank}, f"{root}/batch-0000002"))
    for name, odd in (("exists", None), ("one rank", 3 if context.rank == 1 else None)):
        try:
            save_checkpoint(1, f"{root}/batch-0000002", weights=odd)
        except TrainlabError as error:
            told[name] = str(error)
    fresh, its_optimizer = build(5)
    load_weights(fresh, told["sharded"])
    load_optimizer_state(its_optimizer, load_checkpoint(told["sharded"])["optimizer"])
    found = whole(fresh, its_optimizer)
    context.close()
    return {**told, "expected": expected, "found": found}
