"""Stores of every kind."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.storage.s3 import FaultyProxy, faulty_s3_store, s3_store
from trainlab.storage import Store, connection, open_store, retry


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, cache: Path) -> Iterator[Store]:
    """An empty store of each kind."""
    if request.param == "local":
        (tmp_path / "store").mkdir()
        yield open_store(tmp_path / "store")
    elif request.param == "memory":
        yield open_store(f"memory://{uuid.uuid4().hex}")
    else:
        with s3_store() as (url, options):
            yield open_store(f"{url}/runs/first", options)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the local cache, empty."""
    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once."""
    monkeypatch.setattr(retry, "PAUSES", (0.0,) * len(retry.PAUSES))


@pytest.fixture
def faulty(
    no_pauses: None, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, dict[str, Any], FaultyProxy]]:
    """A bucket behind a proxy that can be told to fail, its storage_options, and the proxy."""
    monkeypatch.setattr(connection, "S3FS_TRIES", 1)  # it pauses between them
    with faulty_s3_store() as parts:
        yield parts
