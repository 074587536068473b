"""The file system of a URL: made by fsspec, with options checked, and made anew after a fork."""

import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec  # type: ignore[import-untyped]
import fsspec.core  # type: ignore[import-untyped]

from trainlab.errors import InvalidValueError, MissingDependencyError, did_you_mean
from trainlab.storage.retry import retried

__all__ = ["Connection"]

_T = TypeVar("_T")

_S3 = {"s3", "s3a"}
# Where folders are only parts of names. To make one there could make a bucket.
_OBJECT_STORES = _S3 | {"abfs", "abfss", "adl", "az", "gcs", "gs", "memory", "oci", "oss"}
# Whose options are all named in their signatures; others hand some on.
_OPTIONS_KNOWN = _S3 | {"memory"}
# Not its default of 5: with its timeout of 15 seconds, and our second attempt, a store that does not answer is given
# up after a minute and a half.
S3FS_TRIES = 3
_SECRET = re.compile(r"key|secret|token|passw|credential|sas|connection_string|auth|cert", re.IGNORECASE)


class Connection:
    """A file system of fsspec at one URL, whose errors are told as StorageError.

    Args:
        url: the URL.
        options: for the file system, as fsspec takes them.

    Attributes:
        url: The URL, without a ``/`` at its end.
        root: The same as the file system's own methods take it.
        is_s3: Whether it is S3, or speaks like it.
        has_folders: Whether folders exist there without files in them.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.url = _checked_url(url)
        self._protocol = url.partition("://")[0]
        self._options = dict(options)
        # Shorter ones keep no secret, and would be found in every word.
        self._secrets = {text for text in _secrets(self._options) if len(text) >= 4}
        self.is_s3 = self._protocol in _S3
        self.has_folders = self._protocol not in _OBJECT_STORES
        self._file_system = self._made()
        self._process = os.getpid()
        self.root: str = self._file_system._strip_protocol(self.url).rstrip("/")

    def do(self, doing: str, place: str, action: Callable[[Any], _T]) -> _T:
        """Do something with the file system, and again if that may help.

        Args:
            doing: what is done, for messages, such as ``write``.
            place: the URL it is done with.
            action: does it, with the file system.

        Returns:
            What ``action`` returns.

        Raises:
            FileNotFoundError: there is no such file.
            FileExistsError: there is one already.
            StorageError: anything else went wrong, or goes on to.
        """

        def fresh() -> _T:
            if self._process != os.getpid():  # connections do not survive a fork
                self._file_system, self._process = self._made(), os.getpid()
            self._file_system.invalidate_cache()  # of listings, which others may have made untrue
            return action(self._file_system)

        return retried(fresh, doing=doing, place=place, secrets=self._secrets)

    def _made(self) -> Any:
        _check_options(self._protocol, self._options)
        options = dict(self._options)
        if self.is_s3:
            # s3fs tries again itself. What botocore would wait between tries of its own, it would draw from the
            # generator that training draws from.
            options["config_kwargs"] = {"retries": {"total_max_attempts": 1}, **(options.get("config_kwargs") or {})}
        try:
            fs, _ = fsspec.core.url_to_fs(self.url, skip_instance_cache=True, **options)
        except Exception as error:
            raise InvalidValueError(
                f"No file system can be made for {self.url} with the storage_options {sorted(self._options)}: "
                f"{type(error).__name__}. Look these options up in the documentation of its package."
            ) from error
        if self.is_s3:
            fs.retries = S3FS_TRIES
        return fs


def _checked_url(url: str) -> str:
    protocol, _, rest = url.partition("://")
    if "::" in url:
        raise InvalidValueError(f"A store is at one URL, not at a chain of them. Received: {protocol!r} and more")
    if urlsplit(url).password is not None:
        raise InvalidValueError(
            "A URL is written to logs, so it has no password; give it in storage_options. "
            f"Received: '{protocol}://***@{rest.rpartition('@')[2]}'"
        )
    return url.rstrip("/") if rest.strip("/") else f"{protocol}://"


def _check_options(protocol: str, options: Mapping[str, Any]) -> None:
    """Refuse a protocol that is not known or not installed, and options that it does not know."""
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ValueError as error:
        known = ", ".join(sorted(fsspec.available_protocols()))
        raise InvalidValueError(f"No file system is known for {protocol}://. Known are: {known}") from error
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or "the package"
        raise MissingDependencyError(
            f"{protocol}:// needs a package that is not installed: {error}. "
            f"Try: pip install {missing.partition('.')[0]}"
        ) from error
    if protocol not in _OPTIONS_KNOWN:
        return
    named = {name for base in kind.__mro__ for name in inspect.signature(base.__init__).parameters}
    known_options = named - {"self", "args", "kwargs", "storage_options"} | {"profile", "use_listings_cache"}
    for option in options:
        if option not in known_options:
            meant = did_you_mean(option, known_options)
            raise InvalidValueError(
                f"The file system of {protocol}:// has no option {option!r}.{meant} Known are: {sorted(known_options)}"
            )


def _secrets(options: Mapping[str, Any], is_secret: bool = False) -> Iterator[str]:
    """The texts among options that nobody should read."""
    for name, value in options.items():
        hidden = is_secret or _SECRET.search(str(name)) is not None
        if isinstance(value, Mapping):
            yield from _secrets(value, hidden and str(name) not in {"client_kwargs", "config_kwargs"})
        elif hidden and isinstance(value, str):
            yield value
