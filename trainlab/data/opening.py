"""Which source a loader's batches come from, on one rank and on several."""

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DistributedSampler

from trainlab.data.cut import CutSource
from trainlab.data.dealt import DealtSource
from trainlab.data.foreign import ForeignSource
from trainlab.data.loader import DataLoader
from trainlab.data.order import chain_of_samplers
from trainlab.data.sharded import ShardedSource
from trainlab.data.share import Share
from trainlab.data.sources import Source, length_of
from trainlab.distributed import Exchange, derive_seed
from trainlab.errors import DataError, InvalidTypeError, InvalidValueError

__all__ = ["open_source", "told_of_uneven"]


def open_source(
    loader: Any,
    share: Share,
    seed: int,
    *,
    shards: bool,
    exchange: Exchange | Callable[[], Exchange] | None,
    pinned: bool,
    cut: bool,
) -> Source:
    """Open what gives a loader's batches, this rank's part of them.

    Args:
        loader: a ``trainlab.DataLoader``, or any iterable of batches.
        share: what this rank gets of each global batch.
        seed: the run's. A loader's ``generator`` takes its place.
        shards: the loader gives each rank records of its own.
        exchange: connects the ranks, or opens what does; used where ``shards``, and needed if pieces are wanted.
        pinned: whether workers are to deliver into page-locked memory.
        cut: an epoch ends after ``len(loader)`` batches.

    Returns:
        The source.

    Raises:
        InvalidTypeError: the loader cannot be iterated, or can be only once.
        InvalidValueError: ``uneven`` does not fit the loader.
        DataError: the loader cannot be dealt out.
    """
    if shards:
        source, length = _of_this_rank(loader, share, seed, pinned)
        if share.whole:
            opened = exchange() if callable(exchange) else exchange
            return DealtSource(source, share, seed, own=True, exchange=opened)
        measures = isinstance(loader, DataLoader) and not loader.batched
        return _agreed(source, share, exchange, length if cut else None, cut=cut, measures=measures)
    if isinstance(loader, DataLoader):
        loader = loader if share.whole else loader.for_ranks(share.ranks)
        _check_counted(loader, share)
        _check_uneven(loader, share)
        source = loader.source(_seed_of(loader, seed), share, pinned=pinned)
    else:
        _check_foreign(loader)
        source = ForeignSource(loader)
        if share.whole and not share.alone:
            source = DealtSource(source, share, seed, own=False)
        elif not share.alone:
            raise DataError(
                "This data loader gives every process the same batches, and they would all train on the same records. "
                f"Received: {type(loader).__module__}.{type(loader).__qualname__}, on {share.ranks} ranks. Return a "
                "trainlab.DataLoader, which takes the arguments of torch's; or use a DistributedSampler; or, where it "
                "gives each process records of its own, mark it: trainlab.data.sharded(loader)."
            )
    return CutSource(source, length_of(loader)) if cut else source


def _of_this_rank(loader: Any, share: Share, seed: int, pinned: bool) -> tuple[Source, int | None]:
    """A source that knows nothing of ranks, and its length."""
    if not isinstance(loader, DataLoader):
        _check_foreign(loader)
        return ForeignSource(loader), length_of(loader)
    if not share.whole:
        loader = loader.of_one_rank(share.ranks)
    own_seed = derive_seed(_seed_of(loader, seed), "shard", share.rank)
    return loader.source(own_seed, Share(), pinned=pinned), length_of(loader)


def _agreed(
    source: Source,
    share: Share,
    exchange: Exchange | Callable[[], Exchange] | None,
    length: int | None,
    *,
    cut: bool,
    measures: bool,
) -> Source:
    if share.uneven != "scale":
        raise InvalidValueError(
            "Where the data set shards itself, a rank that has run out of records is always given one that counts as "
            f"nothing. Received: uneven={share.uneven!r}. Leave it out."
        )
    if exchange is None:
        raise InvalidValueError(
            f"The ranks of a data set that shards itself need an exchange. Received: None, for {share.ranks} ranks."
        )
    opened: Exchange = exchange() if callable(exchange) else exchange
    if cut:
        length = opened.broadcast(length, 0)  # all epochs are as long as the chief's
    agreed = ShardedSource(source, share, opened, measures=measures)
    return CutSource(agreed, length) if cut else agreed


def _seed_of(loader: DataLoader, seed: int) -> int:
    return seed if loader.generator_seed is None else loader.generator_seed


def told_of_uneven(loader: Any, share: Share) -> str | None:
    """Tell what becomes of records where global batches are no multiples of the ranks.

    Args:
        loader: the loader.
        share: what a rank gets.

    Returns:
        A sentence for the user; None if every record counts once.
    """
    if share.alone:
        return None
    for sampler in chain_of_samplers(loader):
        if isinstance(sampler, DistributedSampler) and (told := _told_of_torchs(sampler)):
            return told
    if share.whole or share.uneven == "scale" or not isinstance(loader, DataLoader):
        return None
    loader = loader.for_ranks(share.ranks)
    does = "left out" if share.uneven == "drop" else "used twice"
    if loader.iterable or loader.own_sampler is not None:
        return (
            f"uneven={share.uneven!r}: where a global batch is no multiple of {share.ranks} ranks, records of it are "
            f"{does}."
        )
    size = loader.batch_size or 1
    full, rest = divmod(len(loader.dataset), size)
    count = share.off_by([(size, full), (0 if loader.drop_last else rest, 1)])
    if not count:
        return None
    return (
        f"uneven={share.uneven!r}: {count} records of each epoch are {does}, since not all global batches of {size} "
        f"are multiples of {share.ranks} ranks."
    )


def _told_of_torchs(sampler: "DistributedSampler[Any]") -> str | None:
    size: int = len(sampler.dataset)  # type: ignore[arg-type]
    if sampler.total_size == size:
        return None
    return (
        f"torch's DistributedSampler makes all shares as large as each other: of {size} records "
        f"{abs(sampler.total_size - size)} are {'left out' if sampler.total_size < size else 'used twice'}. With a "
        "trainlab.DataLoader, without the sampler, each counts once."
    )


def _check_counted(loader: DataLoader, share: Share) -> None:
    if loader.batched or share.alone or share.whole:
        return
    raise DataError(
        "How many records the elements of a data set hold that makes its own batches is known only where they are "
        "read, and several ranks that take turns do not read each other's: records could be neither counted nor "
        f"weighted. Received: batch_size=None for {type(loader.dataset).__name__}, on {share.ranks} ranks. Pass "
        "batch_size= or batch_sampler= and let the loader make the batches; or have the data set give each rank "
        "elements of its own, and pass sharded=True."
    )


def _check_uneven(loader: DataLoader, share: Share) -> None:
    if (
        share.uneven == "drop"
        and not share.alone
        and not share.whole
        and (loader.batch_size or share.ranks) < share.ranks
    ):
        raise InvalidValueError(
            f"With uneven='drop' a global batch has at least one record for each rank. Received: batch_size="
            f"{loader.batch_size} for {share.ranks} ranks. Pass a larger one, or uneven='scale'."
        )


def _check_foreign(loader: Any) -> None:
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise InvalidTypeError(
            f"A data loader is iterated for batches. Received: {type(loader).__name__}. Return a trainlab.DataLoader."
        )
    if isinstance(loader, Iterator):
        raise InvalidTypeError(
            "A data loader is iterated anew in each epoch, and this one can be iterated only once. "
            f"Received: {type(loader).__name__}. Return a trainlab.DataLoader, or an object whose __iter__ begins anew."
        )
