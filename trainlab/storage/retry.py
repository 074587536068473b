"""What a remote store's error means: which are tried again, and what a person is told about the others."""

import enum
import errno
import logging
import random
import re
import time
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

from trainlab.errors import StorageError

__all__ = ["retried"]

logger = logging.getLogger("trainlab.storage")

_T = TypeVar("_T")

# Seconds before each further attempt, of which a random part is waited.
PAUSES = (0.2, 0.8, 2.0, 5.0)
# A store that does not answer has let the library below wait several times already.
_TIMED_OUT_ATTEMPTS = 2
# Not the generator that training draws from.
_jitter = random.Random()

_USER_INFO = re.compile(r"://[^/\s@]*@")


class _Kind(enum.Enum):
    """What went wrong; the value tells what to do."""

    MISSING = "Check the name."
    NO_PLACE = "Create the bucket, or correct the URL."
    DENIED = (
        "Give credentials that may list, read, write and delete there, in storage_options or where the store's own "
        "tools look for them."
    )
    FULL = "Make room there, or raise the quota."
    TIMEOUT = (
        "Check the network and the endpoint; for a slow store give longer timeouts, for S3 "
        "storage_options={'config_kwargs': {'connect_timeout': 30, 'read_timeout': 120}}."
    )
    BUSY = "The store is overloaded or cannot be reached: check the network and the endpoint, and try again later."
    OTHER = "Check the URL and the storage_options."


_MAY_PASS = {_Kind.TIMEOUT, _Kind.BUSY}

# Codes of S3 and of HTTP.
_CODES = {
    _Kind.MISSING: "NoSuchKey 404",
    _Kind.NO_PLACE: "NoSuchBucket",
    _Kind.DENIED: "AccessDenied AllAccessDisabled AccountProblem ExpiredToken InvalidAccessKeyId InvalidToken "
    "RequestTimeTooSkewed SignatureDoesNotMatch 401 403",
    _Kind.FULL: "QuotaExceeded XMinioStorageFull XMinioAdminBucketQuotaExceeded 507",
    _Kind.TIMEOUT: "RequestTimeout 408",
    _Kind.BUSY: "InternalError NoSuchUpload OperationAborted RequestLimitExceeded RequestThrottled ServiceUnavailable "
    "SlowDown Throttling ThrottlingException TooManyRequests 429 500 502 503 504",
}
_KIND_OF_CODE = {code: kind for kind, codes in _CODES.items() for code in codes.split()}
# Classes of the libraries below, by name, so that none has to be installed.
_CLASSES = {
    _Kind.DENIED: "CredentialRetrievalError NoCredentialsError PartialCredentialsError",
    _Kind.OTHER: "ClientConnectorCertificateError ClientSSLError SSLError",
    _Kind.TIMEOUT: "ConnectTimeoutError FSTimeoutError ReadTimeoutError ServerTimeoutError TimeoutError",
    _Kind.BUSY: "ClientConnectionError ClientPayloadError ConnectionClosedError ConnectionError HTTPClientError "
    "IncompleteReadError ResponseParserError ResponseStreamingError",
}
_KIND_OF_CLASS = {name: kind for kind, names in _CLASSES.items() for name in names.split()}
_KIND_OF_ERRNO = {
    errno.ENOENT: _Kind.MISSING,
    errno.EACCES: _Kind.DENIED,
    errno.EPERM: _Kind.DENIED,
    errno.ENOSPC: _Kind.FULL,
    errno.EDQUOT: _Kind.FULL,
    errno.ETIMEDOUT: _Kind.TIMEOUT,
    **dict.fromkeys(
        (
            errno.EAGAIN,
            errno.EBUSY,
            errno.ECONNABORTED,
            errno.ECONNREFUSED,
            errno.ECONNRESET,
            errno.EHOSTUNREACH,
            errno.ENETDOWN,
            errno.ENETUNREACH,
            errno.EPIPE,
        ),
        _Kind.BUSY,
    ),
}
_KIND_OF_BUILTIN: dict[type[Exception], _Kind] = {
    FileNotFoundError: _Kind.MISSING,
    PermissionError: _Kind.DENIED,
    TimeoutError: _Kind.TIMEOUT,
    ConnectionError: _Kind.BUSY,
}


def retried(action: Callable[[], _T], *, doing: str, place: str, secrets: Collection[str] = ()) -> _T:
    """Do something with a remote store, and again after errors that may pass.

    Args:
        action: what is done; it can be done again.
        doing: what that is, for messages, such as ``write``.
        place: the URL it is done with, without credentials.
        secrets: texts that must not be in any message; default none.

    Returns:
        What ``action`` returns.

    Raises:
        FileNotFoundError: there is no such file.
        FileExistsError: there is one already.
        StorageError: anything else went wrong, or goes on to.
    """
    attempt = timed_out = 0
    while True:
        attempt += 1
        try:
            return action()
        except Exception as error:
            kind = _kind_of(error)
            timed_out += kind is _Kind.TIMEOUT
            reason = _reason(error, secrets)
            may_pass = kind in _MAY_PASS and timed_out < _TIMED_OUT_ATTEMPTS
            if not may_pass or attempt > len(PAUSES):
                if isinstance(error, StorageError):
                    raise
                raise _told(error, kind, f"Could not {doing} {place}: {reason}", attempt) from error
            pause = PAUSES[attempt - 1] * _jitter.uniform(0.5, 1)
        logger.warning(
            "Could not %s %s (attempt %d of %d), trying again in %.1f s: %s",
            *(doing, place, attempt, 1 + len(PAUSES), pause, reason),
        )
        time.sleep(pause)


def _kind_of(error: BaseException) -> _Kind:
    """What an error means, by the most telling of it and its causes."""
    chain = list(_causes(error))
    for code in (code for link in chain for code in _codes(link)):
        if code in _KIND_OF_CODE:
            return _KIND_OF_CODE[code]
    for link in chain:
        for base, kind in _KIND_OF_BUILTIN.items():
            if isinstance(link, base):
                return kind
        if isinstance(link, OSError) and link.errno in _KIND_OF_ERRNO:
            return _KIND_OF_ERRNO[link.errno]
        names = {base.__name__ for base in type(link).__mro__}
        for name, kind in _KIND_OF_CLASS.items():
            if name in names:
                return kind
    return _Kind.OTHER


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _codes(error: BaseException) -> Iterator[str]:
    """The code that botocore, aiohttp, gcsfs or azure keep with their errors."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        yield str(response.get("Error", {}).get("Code"))
        yield str(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    for attribute in ("status", "code", "status_code"):
        yield str(getattr(error, attribute, None))


def _reason(error: BaseException, secrets: Collection[str]) -> str:
    text = _USER_INFO.sub("://***@", str(error))
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return f"{type(error).__name__}: {text}"


def _told(error: Exception, kind: _Kind, text: str, attempts: int) -> OSError:
    """The error that is raised in place of a library's."""
    if kind is _Kind.MISSING:
        return FileNotFoundError(errno.ENOENT, text)
    if isinstance(error, FileExistsError):
        return FileExistsError(errno.EEXIST, text)
    often = f" ({attempts} attempts)" if attempts > 1 else ""
    number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
    return StorageError(number, f"{text}{often}. {kind.value}")
