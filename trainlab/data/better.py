"""BetterDataLoader: the loader for a training loop of one's own, which goes on where its checkpoint was made."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from trainlab.data.loader import DataLoader
from trainlab.data.stream import BatchStream
from trainlab.distributed import get_num_processes, get_rank
from trainlab.errors import CheckpointMismatchError, InvalidTypeError

__all__ = ["BetterDataLoader"]

_KEYS = {"epoch", "records", "batches", "stream", "seed", "shuffle", "length"}
_NUMBERS = ("epoch", "records", "batches", "seed")
_OF_STREAM = {"epoch", "held", "held_rng", "source"}
_BEGINNING: dict[str, Any] = {"records": 0, "batches": 0, "stream": None}


class BetterDataLoader(DataLoader):
    """A ``DataLoader`` that knows its epoch and its position, for a loop without a Trainer.

    Each iteration is an epoch with an order of its own, a function of the seed and the epoch's number; nobody has to
    call ``set_epoch``. With a process group, each rank gets its piece of every batch, all pieces of the same size: a
    batch that cannot be divided so is filled up with its own first records. ``state_dict`` tells where the loop is, and
    the seed; a loader with that state goes on after the last batch that was given, in the middle of an epoch too.

    Args:
        dataset: As ``DataLoader``'s.
        shuffle: Whether every epoch has an order of its own. Default False.
        random_seed: An int of which the order is a function. Default 0.
        generator: Its initial seed takes the place of ``random_seed``. Default none.
        **options: All others that ``DataLoader`` takes, ``batch_size`` among them: that of all ranks together.

    Raises:
        InvalidTypeError: ``random_seed`` is no int.

    Source: ``pystematic.torch.BetterDataLoader``.
    """

    def __init__(
        self,
        dataset: Any,
        shuffle: bool = False,
        random_seed: int = 0,
        *,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        if isinstance(random_seed, bool) or not isinstance(random_seed, int):
            raise InvalidTypeError(f"random_seed is an int. Received: {random_seed!r}.")
        if generator is None:
            generator = torch.Generator().manual_seed(random_seed % 2**64)
        super().__init__(dataset, shuffle=shuffle, generator=generator, **options)
        # The epoch that is next, and where in it to begin.
        self._epoch = 0
        self._position: dict[str, Any] | None = None
        # That of the iteration that was begun last, while it goes on.
        self._stream: BatchStream | None = None
        self._given = 0

    def __iter__(self) -> Iterator[Any]:
        position, self._position = self._position, None
        stream = self._open_stream()
        epoch, self._epoch = self._epoch, self._epoch + 1
        begun = position or _BEGINNING
        self._stream, self._given = stream, begun["batches"]
        stream.start_epoch(epoch, records=begun["records"], batches=begun["batches"], state=begun["stream"])
        return self._batches(stream)

    def state_dict(self) -> dict[str, Any]:
        """Tell where the loop is.

        Returns:
            The epoch, the position in it after the last batch that was given, and what the order depends on.
        """
        order = {"seed": self.generator_seed, "shuffle": self.shuffle, "length": self._length()}
        if (stream := self._stream) is None:
            return {"epoch": self._epoch, **(self._position or _BEGINNING), **order}
        position = {"records": stream.position(), "batches": self._given, "stream": stream.state_dict()}
        return {"epoch": self._epoch - 1, **position, **order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where another one was, with its seed; the batch size may be another one.

        Args:
            state: What ``state_dict`` gave.

        Raises:
            CheckpointMismatchError: It is no such state; or it is one of the middle of an epoch, and there the loader
                had another length, or had ``shuffle`` where it is not now.
        """
        if not isinstance(state, Mapping) or set(state) != _KEYS:
            raise CheckpointMismatchError(
                f"The state of a BetterDataLoader has the entries {', '.join(sorted(_KEYS))}. Received: {state!r:.200}."
            )
        wrong = [key for key in _NUMBERS if not _is_number(state[key])]
        if wrong or not _is_of_stream(state["stream"]):
            raise CheckpointMismatchError(
                f"In the state of a BetterDataLoader {', '.join(_NUMBERS)} are ints of at least 0, and stream is None "
                f"or has the entries {', '.join(sorted(_OF_STREAM))}. Received: {state!r:.200}."
            )
        self._check_order(state)
        self._stream = None
        self._epoch = state["epoch"]
        self._position = {key: state[key] for key in _BEGINNING}
        self.generator_seed = state["seed"]

    def _check_order(self, state: Mapping[str, Any]) -> None:
        """Refuse a position that lies elsewhere in the order that this loader has."""
        had = {key: state[key] for key in ("shuffle", "length")}
        has = {"shuffle": self.shuffle, "length": self._length()}
        is_beyond = has["length"] is not None and state["records"] > has["length"]
        if is_beyond or (state["records"] and had != has):
            raise CheckpointMismatchError(
                f"The state of a BetterDataLoader is of the middle of an epoch, after {state['records']} records, and "
                f"does not fit this one. Received: {had}, where there is {has}. Load it into a loader like the one "
                "that it is of; only the batch size may be another one."
            )

    def _length(self) -> int | None:
        """The records of an epoch; None where that is not known."""
        read = self.dataset if self.own_sampler is None else self.own_sampler
        is_known = not (self.iterable or self.sharded or self.batch_size is None) and hasattr(read, "__len__")
        return len(read) if is_known else None  # type: ignore[arg-type]

    def _open_stream(self) -> BatchStream:
        rank, ranks = get_rank(), get_num_processes()
        pads = not self.iterable and self.batch_size is not None and not self.sharded
        return BatchStream(
            self,
            seed=0,  # the generator's takes its place
            data_rank=rank,
            data_size=ranks,
            uneven="pad" if pads else "scale",
            role="iterated",
            warn=False,
        )

    def _batches(self, stream: BatchStream) -> Iterator[Any]:
        try:
            for batch in stream:
                if self._stream is stream:
                    self._given += 1
                yield batch
        finally:
            if self._stream is stream:
                self._stream = None
            stream.close()


def _is_of_stream(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, Mapping) and set(value) == _OF_STREAM and isinstance(value["source"], Mapping)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
