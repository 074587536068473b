"""The files that a program's own code was loaded from, with checksums: those that no list of packages covers."""

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["checksums", "loaded_files", "read_checksums", "sha256_of"]

_INSTALLED = frozenset({"site-packages", "dist-packages"})


def loaded_files() -> list[str]:
    """List the files of Python code that this process has loaded and that are neither installed nor Python's own.

    Returns:
        Their paths, sorted; a package that was installed with ``pip install -e`` is among them, trainlab is not.
    """
    own = str(Path(__file__).parents[1])
    elsewhere = tuple(os.path.join(folder, "") for folder in (own, sysconfig.get_path("stdlib")))
    return sorted({file for file in _files_of_modules() if not file.startswith(elsewhere) and _is_own(file)})


def checksums(files: list[str]) -> str:
    """Tell the checksums of files, as ``sha256sum`` does, which can check them, too.

    Args:
        files: their paths; those that cannot be read are left out.

    Returns:
        A line for each.
    """
    found = {file: sha256_of(Path(file)) for file in files if "\n" not in file}
    return "".join(f"{digest}  {file}\n" for file, digest in found.items() if digest is not None)


def read_checksums(text: str) -> Mapping[str, str]:
    """Read what ``checksums`` gave.

    Args:
        text: its lines.

    Returns:
        The digest by path.
    """
    lines = (line.partition("  ") for line in text.split("\n"))
    return {file: digest for digest, _, file in lines if file}


def sha256_of(file: Path) -> str | None:
    """The SHA-256 of a file in hexadecimal digits; None if it cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


def _files_of_modules() -> Iterator[str]:
    for module in list(sys.modules.values()):
        # Not getattr: a module that loads itself when it is asked for something must stay asleep.
        file = getattr(module, "__dict__", {}).get("__file__")
        if isinstance(file, str) and file.endswith(".py"):
            yield os.path.abspath(file)


def _is_own(file: str) -> bool:
    return _INSTALLED.isdisjoint(Path(file).parts)
