"""What the tests of training share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import trainlab


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in a folder of its own, so that runs/ lands there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def open_run() -> Iterator[Callable[..., trainlab.TrialContext]]:
    """Open runs without a display; they are closed at the end."""
    opened: list[trainlab.TrialContext] = []

    def open_one(**arguments: Any) -> trainlab.TrialContext:
        context = trainlab.init(**{"progress": False, "device": "cpu", **arguments})
        opened.append(context)
        return context

    yield open_one
    for context in opened:
        context.close()
