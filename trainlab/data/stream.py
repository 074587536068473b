"""What the training loop and a validation read: batches on the device, epoch by epoch, from any position."""

import logging
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch

from trainlab.data.foreign import inexactness
from trainlab.data.loader import DataLoader
from trainlab.data.opening import open_source, told_of_uneven
from trainlab.data.sharded import ShardedLoader, ShardedSource, shards_itself, without_shards
from trainlab.data.share import NOTHING, Part, Share
from trainlab.data.transfer import SideStream
from trainlab.distributed import Exchange, RngState
from trainlab.errors import DataError, InvalidStateError

__all__ = ["BatchStream"]

_logger = logging.getLogger("trainlab.data")

_DISORDER = (
    "The training data loader has in_order=False: its batches come as its workers have them ready, in an order that no "
    "resume can repeat. Leave it out for an exact one."
)


class BatchStream:
    """The batches of a loader, epoch by epoch.

    Args:
        loader: a ``trainlab.DataLoader``, or any iterable of batches.
        seed: the run's; with the epoch it sets the order. A loader's ``generator`` takes its place.
        move: puts a batch on the device; None leaves batches where they are.
        device: where ``move`` puts them. On a CUDA device, batches are copied there out of page-locked memory on a
            stream of their own before ``move`` gets them.
        data_rank: whose share is wanted.
        data_size: among how many ranks the data is dealt out.
        deal: "pieces" of each global batch, as for training, or whole "batches" in turn, number ``k`` to rank ``k``
            modulo ``data_size``, as for validation: each value is then the same to the bit for any number of ranks.
        uneven: what becomes of a batch of which the ranks get unequal pieces. "scale": pieces differ by at most one
            record, and a rank without one gets the first to stand in; "drop": the batch's last records are left out;
            "pad": it is filled up with its own first records.
        exchange: connects the ranks where a data set shards itself, for this stream alone; or a function that opens
            one, called on all ranks and only if it is needed. Without one, a validation works, but for ``stand_in`` on
            a rank without a batch.
        cut_by_len: an epoch ends after ``len(loader)`` batches, and one iterator goes on over the epochs.
        role: "training" or "validation", for messages.
        warn: whether ``warn_of_inexactness`` is to warn of a loader that is not trainlab's.

    Attributes:
        epoch_length: batches that this rank gives in the whole epoch; None if it is not known. Current from
            ``start_epoch`` on.

    Raises:
        InvalidTypeError: for a loader that cannot be iterated, or can be only once.
        InvalidValueError: for options that are unknown, or do not fit the loader.
        DataError: for a loader whose batches cannot be dealt out among several ranks.
    """

    def __init__(
        self,
        loader: Any,
        *,
        seed: int,
        move: Callable[[Any], Any] | None = None,
        device: torch.device | None = None,
        data_rank: int = 0,
        data_size: int = 1,
        deal: str = "pieces",
        uneven: str = "scale",
        exchange: Exchange | Callable[[], Exchange] | None = None,
        cut_by_len: bool = False,
        role: str = "training",
        warn: bool = True,
    ) -> None:
        self._share = Share(data_rank, data_size, deal, uneven)
        copied_aside = device is not None and device.type == "cuda" and move is not None
        self._inner_move: Callable[[Any], Any] | None = None
        self._side = SideStream(device) if copied_aside and device is not None else None
        self._move = self._move_aside if copied_aside else move
        self._users_move = move
        self._latest: Any = NOTHING
        self._deals_whole = self._share.whole and data_size > 1
        if self._deals_whole:
            self._move, self._inner_move = self._move_and_keep, self._move
        self._role = role
        self._warns = role == "training" and (warn or isinstance(loader, DataLoader))
        self._shards = shards_itself(loader, self._share)
        self._loader = loader = loader.loader if isinstance(loader, ShardedLoader) else loader
        self._tells_of_uneven = data_rank == 0
        self._source = open_source(
            loader, self._share, seed, shards=self._shards, exchange=exchange, pinned=copied_aside, cut=cut_by_len
        )
        self.epoch_length: int | None = None
        self._batches: Generator[Any, None, None] | None = None
        self._epoch: int | None = None
        self._given = 0
        self._begun_at_start = True
        self._held: Any = NOTHING
        self._before_held: dict[str, Any] = {}

    def start_epoch(
        self, epoch: int, *, records: int = 0, batches: int = 0, state: Mapping[str, Any] | None = None
    ) -> None:
        """Begin an epoch, or go on in one.

        Where a batch was held when ``state`` was saved, it is fetched again here, which uses this process's random
        generators: put them back to what they were only after this call.

        Args:
            epoch: number of the epoch, from 0.
            records: ``position()`` at which to go on, default 0.
            batches: number of batches of this epoch given by then, default 0.
            state: what ``state_dict`` gave there; None or ``{}`` if there is none.

        Raises:
            InvalidStateError: whole batches are dealt out, and the position is not an epoch's beginning.
        """
        self._drop_held()
        self._close_batches()
        self._epoch = epoch
        self._given = batches
        self._begun_at_start = not batches and not records
        if self._deals_whole and not self._begun_at_start:
            raise InvalidStateError(
                "Batches that are dealt out whole are read from an epoch's beginning. "
                f"Received: a position of {records} records."
            )
        source_state = state["source"] if state else None
        if source_state is not None and not isinstance(self._source, ShardedSource):
            source_state = without_shards(source_state, records)
        self._batches = self._source.batches(epoch, records, batches, source_state)
        self.epoch_length = self._source.length
        self._tell_of_uneven()
        if state and state["held"] and state["epoch"] == epoch:
            if state["held_rng"] is not None:
                RngState.from_state_dict(state["held_rng"]).restore()
            self._fetch_ahead()

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> Any:
        if self._held is not NOTHING:
            batch = self._held
            self._drop_held()
            self._given += 1
            return batch
        if self._batches is None:
            self._check_begun()
            raise StopIteration
        try:
            batch = next(self._batches)
        except StopIteration:
            self._refuse_empty()
            raise
        self._given += 1
        return batch if self._move is None else self._move(batch)

    def exhausted(self) -> bool:
        """Tell whether no batch follows in this epoch; may fetch the next one, and hold it, to find out.

        Raises:
            DataError: if the epoch has no batch at all.
        """
        if self._held is not NOTHING:
            return False
        self._check_begun()
        if self._source.exact and self.epoch_length is not None:
            more: bool | None = self._given < self.epoch_length
        else:
            more = self._source.more()
            if more is None:
                more = self._fetch_ahead()
        if not more:
            self._refuse_empty()
            self._close_batches()
        return not more

    def position(self) -> int:
        """Return the global records given since the epoch's beginning; a batch that is held is not given."""
        return self._source.records if self._held is NOTHING else int(self._before_held["records"])

    @property
    def total_batches(self) -> int | None:
        """Global batches of the epoch; None if not known, as it is at its end unless the data shards itself."""
        return self._source.total if self._deals_whole else self.epoch_length

    @property
    def shards_itself(self) -> bool:
        """Whether each of several ranks reads records of its own."""
        return self._shards

    @property
    def batch_number(self) -> int:
        """Number of the global batch that was given last, or of which a piece was, from 0 in its epoch."""
        return self._part().number if self._deals_whole else self._given - 1

    @property
    def local_records(self) -> int:
        """Records of the batch given last that count; 0 if it only stands in. Of several ranks only."""
        return self._part().local_records

    @property
    def global_records(self) -> int:
        """Records of the batch given last that count, all ranks together. Of several ranks only."""
        return self._part().global_records

    @property
    def is_stand_in(self) -> bool:
        """Whether the batch given last is to be run as all others and to count as nothing."""
        return self._share.ranks > 1 and self._part().local_records == 0

    def stand_in(self) -> Any:
        """Give a batch once more, to be counted as nothing, for ranks that go on when this one's epoch has ended.

        Returns:
            The batch that this rank was given last, or another rank's first one where it got none.

        Raises:
            DataError: there is none.
        """
        if self._latest is NOTHING:
            batch = self._source.first_batch() if self._deals_whole else NOTHING
            if batch is NOTHING:
                raise DataError(
                    f"Rank {self._share.rank} has no batch of the {self._role} data set, and so nothing to stand in "
                    f"with. Received: {type(self._loader).__name__}. Give it at least one record."
                )
            self._latest = batch if self._inner_move is None else self._inner_move(batch)
        return self._latest

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume at this position needs besides the position, as plain data and tensors."""
        before = self._before_held
        source = before.get("source")
        return {
            "epoch": self._epoch,
            "held": self._held is not NOTHING,
            "held_rng": before.get("rng"),
            "source": self._source.state_dict() if source is None else source,
        }

    def warn_of_inexactness(self) -> None:
        """Warn, once, if a resume from this stream's state is not exact; to be called at the first checkpoint."""
        if not self._warns:
            return
        self._warns = False
        if isinstance(self._loader, DataLoader):
            reason = _DISORDER if self._loader.num_workers > 1 and not self._loader.in_order else None
        else:
            reason = inexactness(self._loader)
        if reason is not None:
            _logger.warning(reason)

    def close(self) -> None:
        """End the workers; ``start_epoch`` may follow."""
        self._drop_held()
        self._close_batches()
        self._latest = NOTHING
        self._source.close()

    def _move_aside(self, batch: Any) -> Any:
        # Chosen only where both are there. What cannot be moved is told of by the user's move.
        return self._users_move(self._side(batch))  # type: ignore[misc]

    def _move_and_keep(self, batch: Any) -> Any:
        self._latest = batch if self._inner_move is None else self._inner_move(batch)
        return self._latest

    def _part(self) -> Part:
        part: Part | None = self._source.part if self._held is NOTHING else self._before_held["part"]
        if part is None:
            raise InvalidStateError(
                "Only of several ranks, and after a batch was given, is it known which records of it are whose. "
                f"Received: {self._share.ranks} rank(s), {self._given} batches given."
            )
        return part

    def _tell_of_uneven(self) -> None:
        if not self._tells_of_uneven:
            return
        self._tells_of_uneven = False
        if (told := told_of_uneven(self._loader, self._share)) is not None:
            _logger.warning(told)

    def _fetch_ahead(self) -> bool:
        """Fetch the next batch and hold it, with what is needed to fetch it again; tell whether there was one."""
        if self._batches is None:
            return False
        here = self._source.fetches_here
        before = {
            "records": self._source.records,
            "rng": RngState.capture(devices=False).state_dict() if here else None,
            "source": self._source.state_dict(),
            "part": self._source.part,
        }
        try:
            batch = next(self._batches)
        except StopIteration:
            return False
        self._held = batch if self._move is None else self._move(batch)
        self._before_held = before
        return True

    def _drop_held(self) -> None:
        self._held = NOTHING
        self._before_held = {}

    def _close_batches(self) -> None:
        batches, self._batches = self._batches, None
        if batches is not None:
            batches.close()

    def _check_begun(self) -> None:
        if self._epoch is None:
            raise InvalidStateError("No epoch was begun, so there are no batches. Call start_epoch first.")

    def _refuse_empty(self) -> None:
        if self._deals_whole and (self._shards or self._source.total != 0):
            return  # others have batches, or may have
        if self._given == 0 and self._begun_at_start:
            dataset = f" of {type(self._loader.dataset).__name__}" if hasattr(self._loader, "dataset") else ""
            dropping = " Its last batch is not full and is left out (drop_last=True)."
            raise DataError(
                f"The {self._role} data set is empty: its loader gave no batch in epoch {self._epoch}."
                f"{dropping if getattr(self._loader, 'drop_last', False) else ''} "
                f"Received: {type(self._loader).__name__}{dataset}. "
                "Look at how its records are found; an iterable data set must give them anew each time it is iterated."
            )
