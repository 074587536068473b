"""Exchange: objects and numbers among the ranks of one gloo group."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed

from trainlab.distributed.packing import is_packed, pack, unpack
from trainlab.errors import InvalidStateError, InvalidValueError

if TYPE_CHECKING:
    from trainlab.distributed.watchdog import Watchdog

__all__ = ["Exchange", "caller"]

T = TypeVar("T")

# Most values fit into the first message beside their length; only longer ones need a second one.
_FIRST = 1024
_LENGTH = 8
_OURS = str(Path(__file__).parents[1]) + os.sep


class Exchange:
    """Exchanges of values among some ranks, each of which calls the same methods in the same order.

    It serves one thread at a time. With one rank every call returns at once what it was given.

    Args:
        rank: Of this process in the group.
        size: Of the group.
        group: A gloo group; None with one rank.
        watchdog: Is told what this rank waits for, and explains why it waited in vain.

    Attributes:
        rank: Of this process in the group.
        size: Of the group.
    """

    def __init__(
        self, rank: int, size: int, group: "torch.distributed.ProcessGroup | None", watchdog: "Watchdog"
    ) -> None:
        self.rank, self.size = rank, size
        self._group, self.watchdog = group, watchdog
        self._closed = False

    def allgather(self, value: T) -> list[T]:
        """Bring the values of all to all.

        Args:
            value: Anything that can be pickled; tensors are not pickled, and lose their gradients.

        Returns:
            The values in the order of the ranks. Tensors that were on a GPU are on this process's current one.

        Raises:
            InvalidTypeError: A value cannot be pickled; on every rank.
            PeerFailedError: Another rank has failed.
        """
        if self._is_alone("allgather"):
            return [value]
        own = pack(value)
        return self._unpacked(self._wait("allgather", lambda: self._allgather(own)), value)

    def gather(self, value: T, to: int = 0) -> list[T] | None:
        """Bring the values of all to one.

        Args:
            value: As for ``allgather``.
            to: The rank that gets them, default 0.

        Returns:
            The values in the order of the ranks at rank ``to``; None elsewhere.

        Raises:
            InvalidTypeError: A value cannot be pickled; where it is and where it goes.
            InvalidValueError: There is no rank ``to``.
            PeerFailedError: Another rank has failed.
        """
        self._check(to)
        if self._is_alone("gather"):
            return [value]
        own = pack(value)
        contents = self._wait("gather", lambda: self._gather(own, to))
        if contents is None:
            _check_packed(own)
            return None
        return self._unpacked(contents, value)

    def broadcast(self, value: T, source: int = 0) -> T:
        """Give all the value of one.

        Args:
            value: As for ``allgather``; that of rank ``source`` counts.
            source: The rank whose value it is, default 0.

        Returns:
            The value of rank ``source``.

        Raises:
            InvalidTypeError: The value cannot be pickled; on every rank.
            InvalidValueError: There is no rank ``source``.
            PeerFailedError: Another rank has failed.
        """
        self._check(source)
        if self._is_alone("broadcast"):
            return value
        own = pack(value) if self.rank == source else b""
        content = self._wait("broadcast", lambda: self._broadcast(own, source))
        if self.rank == source:
            _check_packed(content)
            return value
        received: T = unpack(content)
        return received

    def maximum(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number, in a single message: what ranks agree by.

        Args:
            numbers: Integers of 64 bits, equally many on each rank.

        Returns:
            For each the largest of all ranks.

        Raises:
            PeerFailedError: Another rank has failed.
        """
        if self._is_alone("maximum"):
            return list(numbers)
        vector = torch.tensor(numbers, dtype=torch.int64)
        largest = torch.distributed.ReduceOp.MAX
        self._wait("maximum", lambda: torch.distributed.all_reduce(vector, op=largest, group=self._group))
        return [int(number) for number in vector.tolist()]

    def barrier(self) -> None:
        """Wait until all ranks have come here.

        Raises:
            PeerFailedError: Another rank has failed.
        """
        if not self._is_alone("barrier"):
            self._wait("barrier", lambda: torch.distributed.all_reduce(torch.zeros(1), group=self._group))

    def close(self) -> None:
        """Use the group no more. A second call does nothing; the group itself is closed by who opened it."""
        self._closed = True
        self._group = None

    def _is_alone(self, call: str) -> bool:
        if self._closed and self.size > 1:
            raise InvalidStateError(
                f"The ranks exchange nothing any more: their context is closed. Received: {call}()."
            )
        return self.size == 1

    def _wait(self, call: str, exchange: Callable[[], T]) -> T:
        with self.watchdog.doing(call, caller()):
            try:
                return exchange()
            except RuntimeError as error:
                explained = self.watchdog.explain(error)
                if explained is error:
                    raise
                raise explained from error

    def _check(self, rank: int) -> None:
        if not 0 <= rank < self.size:
            raise InvalidValueError(f"A rank is between 0 and {self.size - 1} here. Received: {rank}.")

    def _unpacked(self, contents: list[bytes], own: T) -> list[T]:
        for content in contents:
            _check_packed(content)
        return [own if rank == self.rank else unpack(content) for rank, content in enumerate(contents)]

    def _allgather(self, own: bytes) -> list[bytes]:
        def ask(message: torch.Tensor) -> list[torch.Tensor]:
            parts = [torch.empty_like(message) for _ in range(self.size)]
            torch.distributed.all_gather(parts, message, group=self._group)
            return parts

        return _in_two_messages(own, ask)

    def _gather(self, own: bytes, to: int) -> list[bytes] | None:
        # Without the lengths of all, nobody can know how long the second message has to be.
        lengths = self._allgather(len(own).to_bytes(_LENGTH, "big"))
        longest = max(int.from_bytes(length, "big") for length in lengths)
        message = torch.zeros(longest, dtype=torch.uint8)
        _fill(message, own)
        parts = [torch.empty_like(message) for _ in lengths] if self.rank == to else None
        torch.distributed.gather(message, parts, group=self._group, group_dst=to)
        if parts is None:
            return None
        return [_read(part, int.from_bytes(length, "big")) for part, length in zip(parts, lengths, strict=True)]

    def _broadcast(self, own: bytes, source: int) -> bytes:
        def ask(message: torch.Tensor) -> list[torch.Tensor]:
            torch.distributed.broadcast(message, group=self._group, group_src=source)
            return [message]

        return _in_two_messages(own, ask)[0]


def caller() -> str | None:
    """The line of the user's that leads here.

    Returns:
        Such as "train.py:12"; None if there is none outside of trainlab.
    """
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back  # type: ignore[assignment]
    return None if frame is None else f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def _check_packed(content: bytes) -> None:
    """Raise on every rank for a value that could not be packed, that of this rank too."""
    if not is_packed(content):
        unpack(content)


def _in_two_messages(own: bytes, ask: Callable[[torch.Tensor], list[torch.Tensor]]) -> list[bytes]:
    """Send length and beginning, and the rest where a value has one."""
    first = torch.zeros(_LENGTH + _FIRST, dtype=torch.uint8)
    _fill(first, len(own).to_bytes(_LENGTH, "big") + own[:_FIRST])
    heads = ask(first)
    lengths = [int.from_bytes(_read(head, _LENGTH), "big") for head in heads]
    beginnings = [_read(head[_LENGTH:], min(length, _FIRST)) for head, length in zip(heads, lengths, strict=True)]
    longest = max(lengths)
    if longest <= _FIRST:
        return beginnings
    rest = torch.zeros(longest - _FIRST, dtype=torch.uint8)
    _fill(rest, own[_FIRST:])
    tails = [_read(tail, max(length - _FIRST, 0)) for tail, length in zip(ask(rest), lengths, strict=True)]
    return [beginning + tail for beginning, tail in zip(beginnings, tails, strict=True)]


def _fill(message: torch.Tensor, content: bytes) -> None:
    if content:
        message[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _read(message: torch.Tensor, count: int) -> bytes:
    content: bytes = message[:count].numpy().tobytes()
    return content
