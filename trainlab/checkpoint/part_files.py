"""What the files of all ranks hold of one model's weights, or of the state, put together without reading their data."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import BinaryIO

import torch

from trainlab.checkpoint.manifest import FileEntry, damaged
from trainlab.checkpoint.parts import Box, Parts, Piece, tiles
from trainlab.checkpoint.tensor_file import Stored, TensorIndex, read_index, read_rows

__all__ = ["PartFiles"]

# A remote file that the cache cannot hold is fetched each time that it is opened.
_MOST_OPEN = 64


class PartFiles:
    """Reads of a checkpoint's files of tensors what is asked for.

    Args:
        where: the checkpoint's path or URL, for messages.
        entries: its files.
        opened: opens one of them.
        verify: compares one of them with its checksum, if that was not done before.
        explained: names a file in what goes wrong with it.
        reads_headers: whether a header can be had without the whole file, so that it is read before it is verified:
            it only tells what lies where, and no data of a file is used before that.
    """

    def __init__(
        self,
        where: str,
        entries: Mapping[str, FileEntry],
        *,
        opened: Callable[[str], BinaryIO],
        verify: Callable[[str], None],
        explained: Callable[[str], AbstractContextManager[None]],
        reads_headers: bool,
    ) -> None:
        self._where = where
        self._entries = entries
        self._opened = opened
        self._verify = verify
        self._explained = explained
        self._reads_headers = reads_headers
        self._indexes: dict[str, TensorIndex] = {}
        self._files: dict[str, BinaryIO] = {}

    def found(self, own: str, others: Iterable[str]) -> tuple[dict[str, Parts], dict[str, Parts]]:
        """Put together what files hold.

        Args:
            own: the file of one rank.
            others: those of the other ranks.

        Returns:
            The tensors of which the ranks hold parts, by name; and those that the one rank holds alone. Tied ones are
            one object.

        Raises:
            CheckpointDamagedError: a file is no file of tensors, or the parts of a tensor are not the whole of it.
        """
        held: dict[str, list[tuple[str, Stored]]] = {}
        alone: dict[str, Stored] = {}
        for file in (own, *others):
            for name, stored in self._index(file).tensors.items():
                if stored.part is not None:
                    held.setdefault(name, []).append((file, stored))
                elif file == own:
                    alone[name] = stored
        twice = sorted(held.keys() & alone.keys())
        if twice:
            raise damaged(self._where, own, f"{twice[0][:200]!r} is whole here, and there are parts of it, too")
        made: dict[tuple[tuple[str, str], ...], Parts] = {}
        shared = {}
        for name, pieces in held.items():
            key = tuple((file, stored.name) for file, stored in pieces)
            if key not in made:
                made[key] = self._joined(name, pieces)
            shared[name] = made[key]
        single: dict[str, Parts] = {}
        for stored in alone.values():
            piece = Piece(Box((0,) * len(stored.shape), stored.shape), partial(self._rows, own, stored))
            single[stored.name] = single.get(stored.name) or Parts(stored.shape, stored.dtype, [piece])
        return shared, {name: single[stored.name] for name, stored in alone.items()}

    def close(self) -> None:
        """Close the files; one that is read from again is opened again."""
        while self._files:
            self._files.popitem()[1].close()

    def _joined(self, name: str, pieces: list[tuple[str, Stored]]) -> Parts:
        boxes, wholes = zip(*(stored.part for _, stored in pieces if stored.part is not None), strict=True)
        dtypes = {stored.dtype for _, stored in pieces}
        if len(set(wholes)) > 1 or len(dtypes) > 1 or not tiles(wholes[0], boxes):
            raise damaged(
                self._where, pieces[0][0], f"the ranks' parts of {name[:200]!r} are not one tensor, each element once"
            )
        read = [
            Piece(box, partial(self._rows, file, stored)) for (file, stored), box in zip(pieces, boxes, strict=True)
        ]
        return Parts(wholes[0], dtypes.pop(), read)

    def _index(self, name: str) -> TensorIndex:
        if name not in self._indexes:
            if not self._reads_headers:
                self._verify(name)
            with self._explained(name):
                file = self._file(name)
                file.seek(0)
                self._indexes[name] = read_index(file, size=self._entries[name].size, name=f"{self._where}/{name}")
        return self._indexes[name]

    def _rows(self, name: str, stored: Stored, begin: int, end: int) -> torch.Tensor:
        self._verify(name)
        with self._explained(name):
            return read_rows(self._file(name), self._indexes[name], stored, begin, end, name=f"{self._where}/{name}")

    def _file(self, name: str) -> BinaryIO:
        file = self._files.pop(name, None)
        if file is None:
            while len(self._files) >= _MOST_OPEN:
                self._files.pop(next(iter(self._files))).close()
            file = self._opened(name)
        self._files[name] = file
        return file
