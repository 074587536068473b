"""What the tests of compat share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainlab.compat import determined as pytorch


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in a folder of its own, so that runs/ lands there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def open_run() -> Iterator[Callable[..., pytorch.PyTorchTrialContext]]:
    """Open runs on the CPU without a display; they are closed at the end."""
    opened: list[pytorch.PyTorchTrialContext] = []

    def open_one(**arguments: Any) -> pytorch.PyTorchTrialContext:
        context = pytorch.init(**{"progress": False, "device": "cpu", **arguments})
        opened.append(context)
        return context

    yield open_one
    for context in opened:
        context.close()
