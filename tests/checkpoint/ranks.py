"""Several ranks in one process: channels between threads, and tensors as each rank of a group would hold them."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.checkpoint.samples import DETAILS
from trainlab.checkpoint import CheckpointWriter, Entry, Snapshot, Write, only_parts
from trainlab.errors import PeerFailedError
from trainlab.storage import Store, open_store


class Channels:
    """The channels of all ranks, one a thread."""

    def __init__(self, ranks: int) -> None:
        self.dead = threading.Event()
        self._to_chief: list[queue.Queue[bytes]] = [queue.Queue() for _ in range(ranks)]
        self._from_chief: list[queue.Queue[bytes]] = [queue.Queue() for _ in range(ranks)]

    def of(self, rank: int) -> "ThreadChannel":
        """The channel of a rank."""
        return ThreadChannel(self, rank)

    def take(self, one: "queue.Queue[bytes]") -> bytes:
        """Wait for a message, or for the news that a rank is gone."""
        while True:
            try:
                return one.get(timeout=0.01)
            except queue.Empty:
                if self.dead.is_set():
                    raise PeerFailedError("Rank 1 of 2 was killed in checkpoint.") from None


class ThreadChannel:
    """One rank's."""

    def __init__(self, channels: Channels, rank: int) -> None:
        self._channels, self._rank = channels, rank

    def gather(self, value: bytes) -> list[bytes] | None:
        """As trainlab's own."""
        to_chief = self._channels._to_chief
        to_chief[self._rank].put(value)
        return None if self._rank else [self._channels.take(one) for one in to_chief]

    def broadcast(self, value: bytes | None = None) -> bytes:
        """As trainlab's own."""
        if self._rank:
            return self._channels.take(self._channels._from_chief[self._rank])
        assert value is not None
        for one in self._channels._from_chief[1:]:
            one.put(value)
        return value


def on_each(ranks: int, function: Callable[[int], Any]) -> list[Any]:
    """Call a function on each of several ranks, in threads; what each returned, or raised."""
    results: list[Any] = [None] * ranks

    def call(rank: int) -> None:
        try:
            results[rank] = function(rank)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=call, args=(rank,), daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a rank hangs"
    return results


@contextmanager
def as_rank(rank: int, ranks: int, mesh: Sequence[int] | None = None) -> Iterator[DeviceMesh]:
    """Be a rank of a process group in which nothing is ever sent."""
    torch.distributed.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        yield DeviceMesh("cpu", torch.arange(ranks).reshape(tuple(mesh or (ranks,))))
    finally:
        torch.distributed.destroy_process_group()
        # They are by the mesh, and take that of another rank for the same.
        _clear_sharding_prop_cache()
        getattr(torch._C, "_clear_DTensor_sharding_propagator_cache", lambda: None)()


def share(whole: torch.Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> DTensor:
    """The DTensor that this rank has of a tensor; cut by torch.chunk, as torch says that it does."""
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    local = whole
    for number, placement in enumerate(placements):
        if isinstance(placement, Shard):
            chunks = local.chunk(mesh.size(number), placement.dim)
            here = coordinate[number]
            local = chunks[here] if here < len(chunks) else local.narrow(placement.dim, 0, 0)
    return _distributed(local.clone(), whole, mesh, placements)


def _distributed(
    local: torch.Tensor, whole: torch.Tensor, mesh: DeviceMesh, placements: Sequence[Placement]
) -> DTensor:
    stride = torch.empty(whole.shape).stride()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=whole.shape, stride=stride)


WHOLE = {
    "even": torch.arange(24.0).reshape(8, 3),
    "uneven": torch.arange(35, dtype=torch.int64).reshape(7, 5),
    "few": torch.arange(2.0).bfloat16(),
    "one": torch.tensor([True]),
    "phase": torch.arange(6.0).reshape(3, 2) * (1 - 2j),
}


def snapshots(
    ranks: int, mesh: Sequence[int] | None = None, placements: Sequence[Placement] | None = None
) -> list[Snapshot]:
    """What each rank saves: sharded weights, of which two are tied, and a state that has sharded tensors, too."""
    made = []
    for rank in range(ranks):
        with as_rank(rank, ranks, mesh) as grid:
            how = list(placements or [*[Replicate()] * (grid.ndim - 1), Shard(0)])
            held = {name: share(whole, grid, how) for name, whole in WHOLE.items()}
            tied = _distributed(held["even"].to_local(), WHOLE["even"], grid, how)
            plain = {"plain": torch.full((3,), 7.0)}
            state = {"moments": [{"step": torch.tensor(3.0), "average": held["uneven"]}], "run": "the chief's"}
            own = {"own": {"rank": rank, "draw": torch.full((2,), float(rank))}}
            made.append(
                Snapshot(
                    weights={"model": {"0": {**held, "tied": tied, **plain}}},
                    state={**(state if rank == 0 else only_parts(state)), **own},
                    details=DETAILS,
                    rank=rank,
                    ranks=ranks,
                )
            )
    return made


def writers(place: Path | Store, ranks: int, channels: Channels | None = None, **options: Any) -> list[Any]:
    """A writer of each rank."""
    channels = channels or Channels(ranks)
    stores = [open_store(place) if isinstance(place, Path) else place for _ in range(ranks)]
    return on_each(
        ranks,
        lambda rank: CheckpointWriter(stores[rank], channel=channels.of(rank), rank=rank, ranks=ranks, **options),
    )


def save(made: list[CheckpointWriter], contents: list[Snapshot], batches: int = 5, **options: Any) -> list[Write]:
    """Write a checkpoint by all of them; what each of them settles."""
    name = made[0].next_name(batches)

    def one(rank: int) -> Write | None:
        made[rank].start(contents[rank], Entry(name, 0, batches, 0), **{"wait": False, **options})
        return made[rank].settle(wait=True)

    return on_each(len(made), one)


def write_sharded(place: Path | Store, ranks: int, *, batches: int = 5, **how: Any) -> Path:
    """A checkpoint of several ranks; an error is raised."""
    done = save(writers(place, ranks, mode="sync"), snapshots(ranks, **how), batches)
    for write in done:
        if isinstance(write, Exception):
            raise write
        if write.error is not None:
            raise write.error
    return Path(done[0].location)
