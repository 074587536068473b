"""Reading a checkpoint: nothing is believed before it is checked, and nothing in it is ever executed."""

import errno
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch

from trainlab.checkpoint.absence import absence
from trainlab.checkpoint.json_text import parse_json
from trainlab.checkpoint.layout import has_lost_its_manifest, list_checkpoints, split_location
from trainlab.checkpoint.manifest import (
    LARGEST_MANIFEST,
    MANIFEST,
    UNFINISHED,
    FileEntry,
    Manifest,
    damaged,
    read_manifest,
)
from trainlab.checkpoint.matching import shown
from trainlab.checkpoint.part_files import PartFiles
from trainlab.checkpoint.parts import Parts
from trainlab.checkpoint.sharding import is_sharded, place_tree
from trainlab.checkpoint.tensor_file import read_unless_parts
from trainlab.checkpoint.tree import decode
from trainlab.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    StorageError,
)
from trainlab.storage import Checksum, Store, open_store

__all__ = ["Checkpoint", "latest_checkpoint"]

_READ_BYTES = 2**20
# What opening a link in a circle, a socket and a device without a driver gives.
_NO_FILE = {errno.ELOOP, errno.ENXIO, errno.ENODEV}
_Read = TypeVar("_Read")
_logger = logging.getLogger("trainlab.checkpoint")


class Checkpoint:
    """A checkpoint that was opened. Made by ``Checkpoint.open``.

    Until it is closed, or is no longer used, no run of this machine removes it (in an object store: this process).
    It is a context manager, which closes it.

    Attributes:
        path: Its folder: a path, or the text of a URL.
        name: The folder's name.
        sequence: Its number among those of its folder; a later one has a greater one.
        created: When it was written, a date and time of ISO 8601.
        progress: The run's counters.
        trial_class: The Trial's class, as ``module:Name``.
        hparams: The hyperparameters.
        exp_conf: The experiment's configuration.
        versions: The versions of what wrote it, by name.
        models: The names of the models whose weights it holds, by role.
        ranks: How many ranks wrote it.
        files: Size and checksum of each of its files but the manifest, by name.
        size: The bytes of all of them.
    """

    def __init__(self, store: Store, name: str, manifest: Manifest, release: Callable[[], None]) -> None:
        self.path = store.location(name)
        self.name = name
        self.sequence = manifest.sequence
        self.created = manifest.created
        self.trial_class = manifest.trial_class
        self.models = {role: list(models) for role, models in manifest.weights.items()}
        self.files = manifest.files
        self.size = sum(entry.size for entry in manifest.files.values())
        self.progress: dict[str, Any] = self._told(manifest.progress, dict)
        self.hparams: Any = self._told(manifest.hparams)
        self.exp_conf: Any = self._told(manifest.exp_conf)
        self.versions: dict[str, Any] = self._told(manifest.versions, dict)
        self.ranks = 1 + len(manifest.ranks)
        self._weights = [manifest.weights, *(of["weights"] for of in manifest.ranks)]
        self._state = [manifest.state, *(of["state"] for of in manifest.ranks)]
        self._store = store
        self._release = release
        self._verified: set[str] = set()
        # Made when it is needed: it refers to this object, which otherwise ends when nobody uses it any more.
        self._made_part_files: PartFiles | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        verify: bool = True,
        storage_options: Mapping[str, Any] | None = None,
    ) -> "Checkpoint":
        """Open a checkpoint.

        Args:
            path: Its folder, or its URL such as ``s3://bucket/run/checkpoints/batch-0000500``.
            verify: Compare every file with its checksum; default True. Names and sizes are always checked, and what
                is read later is compared when it is read.
            storage_options: For the file system of a URL, as fsspec takes them; default none.

        Returns:
            The checkpoint.

        Raises:
            CheckpointNotFoundError: There is none at ``path``.
            CheckpointDamagedError: A file of it is missing or changed.
            CheckpointError: What is there is not one of trainlab's, or cannot be read.
        """
        parent, name = split_location(path)
        store = open_store(parent, storage_options)
        try:
            return cls.open_in(store, name, verify=verify)
        except CheckpointNotFoundError as error:
            with _readable(str(store.location(name))):
                raise absence(store, name, storage_options) from error

    @classmethod
    def open_in(cls, store: Store, name: str, *, verify: bool = True) -> "Checkpoint":
        """Open a checkpoint of a store.

        Args:
            store: The folder of the checkpoints.
            name: Its folder's name.
            verify: As for ``open``.

        Returns:
            The checkpoint.

        Raises:
            CheckpointNotFoundError: There is none of this name.
            CheckpointDamagedError: A file of it is missing or changed.
            CheckpointError: It is not one of trainlab's, or cannot be read.
        """
        where = str(store.location(name))
        with _readable(where), _of_file(store, where, MANIFEST):
            try:
                release = store.hold(name, MANIFEST)
            except (FileNotFoundError, NotADirectoryError) as error:
                if has_lost_its_manifest(store, name):
                    raise damaged(where, MANIFEST, "it is missing") from error
                raise CheckpointNotFoundError(f"There is no checkpoint. Received: {where}.") from error
            try:
                try:
                    data = store.read(f"{name}/{MANIFEST}", LARGEST_MANIFEST)
                except FileNotFoundError as error:
                    raise CheckpointNotFoundError(f"The checkpoint was removed. Received: {where}.") from error
                checkpoint = cls(store, name, read_manifest(data, where), release)
                checkpoint._check_files()
                if verify:
                    checkpoint.verify()
            except BaseException:
                release()
                raise
        return checkpoint

    def weights(
        self,
        role: str = "model",
        names: Collection[str] | None = None,
        *,
        like: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    ) -> dict[str, dict[str, torch.Tensor]]:
        """Read weights. The files are compared with their checksums on the way.

        Args:
            role: Which; default "model".
            names: The models' names. Default: all, see ``models``.
            like: State dicts by the models' names. Where one has a DTensor of the same shape this rank's part of the
                weight is read, whatever the ranks that saved it, and comes as such a DTensor. Default none.

        Returns:
            State dicts by the models' names, whole and on the CPU but for those that are ``like`` others. Tied tensors
            are tied again.

        Raises:
            CheckpointMismatchError: The checkpoint holds no weights of this role, or of such a name.
            CheckpointDamagedError: A file is not what was written.
            CheckpointError: A file cannot be read.
        """
        placed = {}
        with self._closing_files():
            for name in self._models(role, names):
                expected = {} if like is None else like.get(name, {})
                stored = self._stored_weights(role, name, in_parts=any(map(is_sharded, expected.values())))
                placed[name] = self._placed(stored, expected)
        return placed

    def stored_weights(
        self, role: str = "model", names: Collection[str] | None = None
    ) -> "dict[str, dict[str, torch.Tensor | Parts]]":
        """Give weights of which those that several ranks saved are read only when they are asked for.

        Args:
            role: Which; default "model".
            names: The models' names. Default: all, see ``models``.

        Returns:
            State dicts as of ``weights``, with ``Parts`` in them.

        Raises:
            CheckpointMismatchError: The checkpoint holds no weights of this role, or of such a name.
            CheckpointDamagedError: A file is not what was written.
            CheckpointError: A file cannot be read.
        """
        return {name: self._stored_weights(role, name) for name in self._models(role, names)}

    def stored_forms(self, role: str, name: str) -> dict[str, Parts]:
        """Tell the shapes and dtypes of weights, of which nothing is read.

        Args:
            role: Which.
            name: The model's name.

        Returns:
            Handles by key; tied ones are one object.

        Raises:
            CheckpointDamagedError: A file is not what was written.
            CheckpointError: A file cannot be read.
        """
        with self._closing_files():
            shared, alone = self._part_files.found(self._weights[0][role][name], self._files_of_others(role, name))
        return {**alone, **shared}

    def _models(self, role: str, names: Collection[str] | None) -> list[str]:
        if role not in self._weights[0]:
            raise CheckpointMismatchError(
                f"The checkpoint {self.path} holds no weights of this role. Received: {role!r}. "
                f"It holds: {', '.join(map(repr, self._weights[0])) or 'none'}."
            )
        files = self._weights[0][role]
        unknown = [name for name in names or () if name not in files]
        if unknown:
            raise CheckpointMismatchError(
                f"The checkpoint {self.path} holds no {role} of this name. Received: {unknown[0]!r}. "
                f"It holds: {', '.join(map(repr, files)) or 'none'}."
            )
        return [name for name in files if names is None or name in names]

    def state(self, classes: Mapping[str, type] | None = None, rank: int = 0, *, whole: bool = False) -> Any:
        """Read everything else that was saved. The files are compared with their checksums on the way.

        Args:
            classes: The enums, named tuples and dataclasses that it may hold, see ``decode``. Default: those that are
                registered.
            rank: Whose: the first rank's is the run's, another's is what that rank had of its own. Default 0.
            whole: Whether to read tensors that were DTensors whole. Default False: there are ``Parts`` in their place,
                whose data is read when it is asked for, until the checkpoint is closed.

        Returns:
            The tree that was saved, its tensors on the CPU.

        Raises:
            CheckpointDamagedError: A file is not what was written.
            CheckpointError: A file cannot be read, or holds something of a class that is not known.
            CheckpointMismatchError: Not so many ranks wrote it.
        """
        if not 0 <= rank < self.ranks:
            raise CheckpointMismatchError(
                f"The checkpoint {self.path} was written by {self.ranks} ranks. Received: rank {rank}. "
                f"Pass one from 0 to {self.ranks - 1}."
            )
        structure, tensors = self._state[rank]["structure"], self._state[rank]["tensors"]
        content = self._read(structure, _read_content)
        with _readable(str(self.path)):
            try:
                parsed = parse_json(content)
            except ValueError as error:
                raise damaged(str(self.path), structure, str(error)) from error
            others = [of["tensors"] for number, of in enumerate(self._state) if number != rank]
            with self._closing_files():
                stored = self._stored(tensors, others)
                return self._decoded(parsed, self._placed(stored, {}) if whole else stored, classes)

    def verify(self) -> None:
        """Compare every file with its checksum, except for those that were compared when they were read.

        Of tensors that several ranks saved the parts are looked at, too: together they have to be the whole.

        Raises:
            CheckpointDamagedError: A file is not what was written.
            CheckpointError: A file cannot be read.
        """
        for name in self.files:
            self._verify_file(name)
        if self.ranks > 1:
            with self._closing_files():
                own, *others = [of["tensors"] for of in self._state]
                self._part_files.found(own, others)
                for role, models in self._weights[0].items():
                    for name, file in models.items():
                        self._part_files.found(file, self._files_of_others(role, name))

    def close(self) -> None:
        """Let the checkpoint be removed again. What was read stays; ``Parts`` may not be read any more."""
        with self._closing_files():
            self._release()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r})"

    def _told(self, encoded: Any, kind: type = object) -> Any:
        decoded = self._decoded(encoded, {}, None)
        if not isinstance(decoded, kind):
            raise damaged(str(self.path), MANIFEST, f"it tells a {type(decoded).__name__} and no {kind.__name__}")
        return decoded

    def _decoded(
        self, encoded: Any, tensors: "Mapping[str, torch.Tensor | Parts]", classes: Mapping[str, type] | None
    ) -> Any:
        try:
            return decode(encoded, tensors) if classes is None else decode(encoded, tensors, classes)
        except CheckpointError as error:
            raise type(error)(f"The checkpoint {self.path}: {error}") from error

    def _check_files(self) -> None:
        """Compare names and sizes with the manifest."""
        where = str(self.path)
        with _of_file(self._store, where, "its folder"):
            found = self._store.files(self.name)
        for name, entry in self.files.items():
            if name not in found:
                raise damaged(where, name, "it is missing")
            if found[name] != entry.size:
                raise damaged(where, name, f"it has {found[name]} bytes instead of {entry.size}")
        strangers = sorted(found.keys() - self.files.keys() - {MANIFEST, UNFINISHED})
        if strangers:
            _logger.warning("The checkpoint %s has files that are not part of it: %s.", where, shown(strangers))

    @contextmanager
    def _closing_files(self) -> Iterator[None]:
        """Close at the end what was opened to be read in parts; it is opened again when it is needed."""
        try:
            yield
        finally:
            if self._made_part_files is not None:
                self._made_part_files.close()

    @property
    def _part_files(self) -> PartFiles:
        if self._made_part_files is None:
            self._made_part_files = PartFiles(
                str(self.path),
                self.files,
                opened=self._open_file,
                verify=self._verify_file,
                explained=self._explained,
                reads_headers=self._store.is_local,
            )
        return self._made_part_files

    def _files_of_others(self, role: str, name: str) -> list[str]:
        return [of[role][name] for of in self._weights[1:] if name in of.get(role, {})]

    def _stored_weights(self, role: str, name: str, *, in_parts: bool = False) -> "dict[str, torch.Tensor | Parts]":
        own, others = self._weights[0][role][name], self._files_of_others(role, name)
        return self._stored(own, others, in_parts=in_parts)

    def _stored(self, own: str, others: list[str], *, in_parts: bool = False) -> "dict[str, torch.Tensor | Parts]":
        """The tensors of a file, and the parts of tensors that are there or in the files of other ranks.

        ``in_parts`` is for all of them, for one who wants less than the whole of each.
        """
        if not others and not in_parts:
            read = self._read(
                own,
                lambda file, entry, where: read_unless_parts(
                    file, size=entry.size, checksum=entry.checksum, name=where
                ),
                is_whole=lambda result: result is not None,
            )
            if read is not None:
                return {**read}
        shared, alone = self._part_files.found(own, others)
        if in_parts:
            return {**alone, **shared}
        with _readable(str(self.path)):
            whole = {id(parts): parts.whole() for parts in alone.values()}
        return {**{name: whole[id(parts)] for name, parts in alone.items()}, **shared}

    def _placed(
        self, stored: "Mapping[str, torch.Tensor | Parts]", expected: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Each tensor whole, or like the one of its name; tied ones are tied again."""
        made: dict[Any, torch.Tensor] = {}
        placed = {}
        with _readable(str(self.path)):
            for name, tensor in stored.items():
                like = expected.get(name)
                key = (id(tensor), getattr(like, "device_mesh", None), getattr(like, "placements", None))
                if key not in made:
                    made[key] = place_tree(tensor, like)
                placed[name] = made[key]
        return placed

    def _verify_file(self, name: str) -> None:
        if name not in self._verified:
            self._read(name, _read_through)

    def _open_file(self, name: str) -> BinaryIO:
        entry = self.files[name]
        return self._store.open(f"{self.name}/{name}", size=entry.size, checksum=entry.checksum)

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        with _readable(str(self.path)), _of_file(self._store, str(self.path), name):
            yield

    def _read(
        self,
        name: str,
        read: Callable[[BinaryIO, FileEntry, str], _Read],
        *,
        is_whole: Callable[[_Read], bool] = lambda result: True,
    ) -> _Read:
        entry, file, where = self.files[name], f"{self.name}/{name}", str(self.path)
        with _readable(where), _of_file(self._store, where, name):
            try:
                with self._store.open(file, size=entry.size, checksum=entry.checksum) as opened:
                    result = read(opened, entry, f"{where}/{name}")
            except CheckpointDamagedError:
                if self._store.is_local:
                    raise
                # It may be the copy in the cache that is damaged.
                self._store.forget(file, entry.checksum)
                with self._store.open(file, size=entry.size, checksum=entry.checksum) as opened:
                    result = read(opened, entry, f"{where}/{name}")
        if is_whole(result):
            self._verified.add(name)
        return result


def latest_checkpoint(
    place: Store | str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> Path | str | None:
    """The newest checkpoint that is whole; damaged ones are reported as errors in the log and passed over.

    Args:
        place: The folder of the checkpoints, a path or a URL; it need not exist.
        storage_options: For the file system of a URL, as fsspec takes them; default none.

    Returns:
        Its path, or URL; None if there is none, or none that is whole.

    Raises:
        CheckpointError: ``place`` cannot be read; or none is whole, and of one that cannot be told: it cannot be read,
            or is of a later format version.
    """
    store = open_store(place, storage_options) if isinstance(place, (str, os.PathLike)) else place
    passed_over: list[CheckpointError] = []
    found = None
    for name in reversed(list_checkpoints(store)):
        try:
            Checkpoint.open_in(store, name).close()
        except CheckpointNotFoundError as error:
            _logger.info("A checkpoint was removed while the newest was looked for. %s", error)
        except CheckpointError as error:
            passed_over.append(error)
        else:
            found = store.location(name)
            break
    instead = f"{found} is used instead" if found else f"there is no other one in {store.url}"
    for reason in passed_over:
        _logger.error("A checkpoint is passed over, and %s. %s", instead, reason)
    uncertain = [reason for reason in passed_over if not isinstance(reason, CheckpointDamagedError)]
    if found is None and uncertain:
        raise uncertain[0]
    return found


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Name the checkpoint in what the operating system or a store says."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint {where} cannot be read: {str(error.strerror or error).rstrip('.')}. Make it readable."
        ) from error
    except MemoryError as error:
        raise CheckpointError(
            f"There is not enough memory to read the checkpoint {where}. "
            "Close other programs, or use a machine with more."
        ) from error


@contextmanager
def _of_file(store: Store, where: str, name: str) -> Iterator[None]:
    """Tell what is wrong with a file from what is wrong with its reading."""
    try:
        yield
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise damaged(where, name, "it is missing") from error
    except OSError as error:
        # A local store refuses only what is no file, or too large a one. All else are errors of the system.
        is_no_file = isinstance(error, StorageError) or error.errno in _NO_FILE
        if not (store.is_local and is_no_file):
            raise
        raise damaged(where, name, error.strerror or str(error)) from error


def _read_content(file: BinaryIO, entry: FileEntry, where: str) -> bytearray:
    content = bytearray()
    checksum = Checksum(entry.checksum.partition(":")[0])
    while piece := file.read(min(_READ_BYTES, entry.size + 1 - len(content))):
        checksum.update(piece)
        content += piece
    _compare(len(content), checksum, entry, where)
    return content


def _read_through(file: BinaryIO, entry: FileEntry, where: str) -> None:
    size, checksum = 0, Checksum(entry.checksum.partition(":")[0])
    piece = memoryview(bytearray(_READ_BYTES))
    while count := file.readinto(piece):  # type: ignore[attr-defined]  # every binary file has it
        size += count
        checksum.update(piece[:count])
    _compare(size, checksum, entry, where)


def _compare(size: int, checksum: Checksum, entry: FileEntry, where: str) -> None:
    if size != entry.size or checksum.text != entry.checksum:
        raise CheckpointDamagedError(
            f"The checkpoint is damaged: the content of {where} is not what was written. "
            "Use another checkpoint, or restore the file from a copy."
        )
