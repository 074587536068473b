"""Damage to a checkpoint on the disk, of the kinds that disks, networks and people do."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

__all__ = ["corrupt"]


def corrupt(folder: Path, random_: random.Random) -> str:
    """Do one random damage to a checkpoint, such that it is no longer the one that was written.

    Args:
        folder: The checkpoint, whole.
        random_: Where chance comes from.

    Returns:
        What was done, with the file's name.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = random_.choice(files)
    damage = random_.choice([*_TO_BYTES, *_TO_FILES])
    if damage in _TO_BYTES and file.stat().st_size:
        before = file.read_bytes()
        after, told = _TO_BYTES[damage](before, random_)
        if after != before:
            file.write_bytes(after)
            return f"{file.name}: {told}"
    others = [other for other in files if other.read_bytes() != file.read_bytes()]
    return f"{file.name}: {_TO_FILES.get(damage, _remove)(file, random_.choice(others))}"


def _flip(data: bytes, random_: random.Random) -> tuple[bytes, str]:
    position, bit = random_.randrange(len(data)), random_.randrange(8)
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :], f"bit {bit} of byte {position}"


def _range(data: bytes, random_: random.Random) -> tuple[int, int]:
    begin = random_.randrange(len(data))
    return begin, min(len(data), begin + random_.choice([1, 8, 512, 4096, len(data)]))


def _zero(data: bytes, random_: random.Random) -> tuple[bytes, str]:
    begin, end = _range(data, random_)
    return data[:begin] + bytes(end - begin) + data[end:], f"bytes {begin} to {end} zeroed"


def _scramble(data: bytes, random_: random.Random) -> tuple[bytes, str]:
    begin, end = _range(data, random_)
    return data[:begin] + random_.randbytes(end - begin) + data[end:], f"bytes {begin} to {end} scrambled"


def _delete(data: bytes, random_: random.Random) -> tuple[bytes, str]:
    begin, end = _range(data, random_)
    return data[:begin] + data[end:], f"bytes {begin} to {end} deleted"


def _insert(data: bytes, random_: random.Random) -> tuple[bytes, str]:
    position, count = random_.randrange(len(data) + 1), random_.choice([1, 8, 512])
    return data[:position] + random_.randbytes(count) + data[position:], f"{count} bytes inserted at {position}"


def _repeat(data: bytes, random_: random.Random) -> tuple[bytes, str]:
    begin, end = _range(data, random_)
    return data[:end] + data[begin:end] + data[end:], f"bytes {begin} to {end} repeated"


def _truncate(data: bytes, random_: random.Random) -> tuple[bytes, str]:
    size = random_.randrange(len(data))
    return data[:size], f"cut to {size} bytes"


def _extend(data: bytes, random_: random.Random) -> tuple[bytes, str]:
    count = random_.choice([1, 8, 4096])
    return data + bytes(count), f"{count} zeros appended"


def _remove(file: Path, other: Path) -> str:
    file.unlink()
    return "removed"


def _empty(file: Path, other: Path) -> str:
    # A file that was empty before is gone instead.
    if file.stat().st_size == 0:
        return _remove(file, other)
    file.write_bytes(b"")
    return "emptied"


def _replace(file: Path, other: Path) -> str:
    shutil.copyfile(other, file)
    return f"replaced by {other.name}"


def _swap(file: Path, other: Path) -> str:
    one, two = file.read_bytes(), other.read_bytes()
    file.write_bytes(two)
    other.write_bytes(one)
    return f"swapped with {other.name}"


def _rename(file: Path, other: Path) -> str:
    file.rename(file.with_name(f"{file.name}.bak"))
    return "renamed"


def _make_folder(file: Path, other: Path) -> str:
    file.unlink()
    file.mkdir()
    return "replaced by a folder"


def _make_link(file: Path, other: Path) -> str:
    file.unlink()
    file.symlink_to(other.name)
    return f"replaced by a link to {other.name}"


_TO_BYTES: dict[str, Callable[[bytes, random.Random], tuple[bytes, str]]] = {
    "flip": _flip,
    "zero": _zero,
    "scramble": _scramble,
    "delete": _delete,
    "insert": _insert,
    "repeat": _repeat,
    "truncate": _truncate,
    "extend": _extend,
}
_TO_FILES: dict[str, Callable[[Path, Path], str]] = {
    "remove": _remove,
    "empty": _empty,
    "replace": _replace,
    "swap": _swap,
    "rename": _rename,
    "folder": _make_folder,
    "link": _make_link,
}
